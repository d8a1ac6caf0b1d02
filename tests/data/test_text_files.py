import gzip
import lzma

import pytest

from transnormer_jax.data.text_files import check_document_mode, find_files, read_documents
from transnormer_jax.errors import UserError

MARKED = '<doc id="1" title="A">\nA\n\nfirst\n</doc>\n<doc id="2">\nsecond <doc>\n</doc>\n\nthird\n<|endoftext|>\ncut o'


@pytest.mark.parametrize(("suffix", "opened"), [("", open), (".gz", gzip.open), (".xz", lzma.open)])
@pytest.mark.parametrize(
    ("documents", "text", "expected"),
    [
        ("file", "one\r\n\r\ntwo\n", ["one\r\n\r\ntwo\n"]),
        ("line", "one\r\n \n  two\nthree", ["one", "  two", "three"]),
        ("marked", MARKED, ["A\n\nfirst\n", "second <doc>\n", "\nthird\n", "cut o"]),
        ("file", " \n", []),
        ("line", "", []),
    ],
)
def test_documents_of_plain_and_compressed_files(tmp_path, suffix, opened, documents, text, expected):
    path = tmp_path / f"text.txt{suffix}"
    with opened(path, "wb") as file:
        file.write(text.encode())
    assert list(read_documents(path, documents)) == expected


def test_a_character_cut_in_two_is_replaced(tmp_path):
    (tmp_path / "cut.txt").write_bytes("été".encode()[:-1])
    assert list(read_documents(tmp_path / "cut.txt", "file")) == ["ét�"]


@pytest.mark.parametrize(("name", "compress"), [("a.xz", lzma.compress), ("a.gz", gzip.compress)])
def test_a_damaged_archive_is_the_users_error(tmp_path, name, compress):
    (tmp_path / name).write_bytes(compress(bytes(range(256)) * 100)[:-20])
    with pytest.raises(UserError, match=f"cannot read .*{name}.*: replace it"):
        list(read_documents(tmp_path / name, "file"))
    (tmp_path / name).write_bytes(b"not compressed")
    with pytest.raises(UserError, match=f"cannot read .*{name}.*: replace it"):
        list(read_documents(tmp_path / name, "file"))


def test_files_directories_and_patterns_are_found_once_and_sorted(tmp_path):
    names = ["b.txt", "a.txt.xz", "sub/c.txt.gz", "sub/d.md", "odd[1].txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*patterns):
        paths = find_files(", ".join(f"{tmp_path}/{pattern}" for pattern in patterns))
        return [path.relative_to(tmp_path.resolve()).as_posix() for path in paths]

    assert found("") == ["a.txt.xz", "b.txt", "odd[1].txt", "sub/c.txt.gz"]
    assert found("sub/d.md", "b.txt", "*.txt") == ["b.txt", "odd[1].txt", "sub/d.md"]
    assert found("**/*.md", "sub") == ["sub/c.txt.gz", "sub/d.md"]
    assert found("odd[1].txt") == ["odd[1].txt"]


@pytest.mark.parametrize("pattern", ["missing.txt", "*.nothing", "empty"])
def test_a_missing_file_is_the_users_error(tmp_path, pattern):
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.txt").touch()
    with pytest.raises(UserError, match=r"no text file matches .*: give an existing file, directory or glob pattern"):
        find_files(f"{tmp_path}/there.txt,{tmp_path}/{pattern}")


@pytest.mark.parametrize("patterns", ["", " , "])
def test_no_files_is_the_users_error(patterns):
    with pytest.raises(UserError, match="'plain_text' needs files: set `files`"):
        find_files(patterns)


def test_an_unknown_document_mode_is_the_users_error():
    with pytest.raises(UserError, match="unknown document mode 'lines': did you mean 'line'"):
        check_document_mode("lines")
