import gzip
import json
import lzma
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from transnormer_jax.data.text_files import check_document_mode, file_identity, find_files, read_documents
from transnormer_jax.errors import UserError

MARKED = '<doc id="1" title="A">\nA\n\nfirst\n</doc>\n<doc id="2">\nsecond <doc>\n</doc>\n\nthird\n<|endoftext|>\ncut o'


@pytest.mark.parametrize(("suffix", "opened"), [("", open), (".gz", gzip.open), (".xz", lzma.open)])
@pytest.mark.parametrize(
    ("documents", "text", "expected"),
    [
        ("file", "one\r\n\r\ntwo\n", ["one\r\n\r\ntwo\n"]),
        ("line", "one\r\n \n  two\nthree", ["one", "  two", "three"]),
        ("delimited", MARKED, ["A\n\nfirst\n", "second <doc>\n", "\nthird\n", "cut o"]),
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
        files = find_files(", ".join(f"{tmp_path}/{pattern}" for pattern in patterns))
        return [Path(file).relative_to(tmp_path.resolve()).as_posix() for file in files]

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


RECORDS = [
    {"text": "first\nline", "id": 1},
    {"text": " ", "id": 2},
    {"id": 3, "text": "Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n"},
]


def write_records(path):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
        return
    with {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in RECORDS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.b.jsonl.xz", "a.parquet"])
def test_records_are_documents(tmp_path, name):
    write_records(tmp_path / name)
    assert find_files(str(tmp_path)) == (str((tmp_path / name).resolve()),)
    assert list(read_documents(tmp_path / name, "file")) == ["first\nline", RECORDS[2]["text"]]
    with pytest.raises(UserError, match="record 1 has no 'body': choose one of: id, text"):
        list(read_documents(tmp_path / name, "file", "body"))


def test_a_record_cut_short_is_the_users_error_after_those_before_it(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "whole"}\n{"text": "cut o')
    documents = read_documents(tmp_path / "a.jsonl", "file")
    assert next(documents) == "whole"
    with pytest.raises(UserError, match=r"cannot read .*a\.jsonl.*: replace it"):
        next(documents)
    write_records(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet.*: replace it"):
        list(read_documents(tmp_path / "a.parquet", "file"))


def test_files_of_a_store(tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe(
        {"/corpus/a.txt": b"one\ntwo\n", "/corpus/deep/b.txt.gz": gzip.compress(b"three"), "/corpus/c.md": b"no"}
    )
    try:
        files = find_files("memory://corpus")
        assert files == ("memory:///corpus/a.txt", "memory:///corpus/deep/b.txt.gz")
        assert find_files("memory://corpus/**/*.txt*") == files
        assert [list(read_documents(file, "line")) for file in files] == [["one", "two"], ["three"]]
        before = file_identity(files[0])
        assert before == file_identity(files[0])
        store.pipe("/corpus/a.txt", b"one\ntwo\nmore\n")
        assert before != file_identity(files[0])
    finally:
        store.rm("/corpus", recursive=True)


class Locked(fsspec.AbstractFileSystem):
    """A store that knows us not."""

    protocol = "locked"

    def info(self, path, **_):
        raise PermissionError("no credentials\nfor this bucket")


@pytest.mark.parametrize("url", ["locked://bucket/*.txt", "nonsense://bucket/a.txt"])
def test_a_store_that_does_not_answer_is_the_users_error(url):
    fsspec.register_implementation("locked", Locked, clobber=True)
    with pytest.raises(UserError, match=r"cannot look for '.*' \(.*\): check the name, the network, and"):
        find_files(url)


def test_what_is_no_unicode_becomes_the_replacement_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "half \\ud800 pair, whole \\ud83d\\ude00 pair"}\n{"text": "byte \xff, \xc3\xa9"}\n')
    assert list(read_documents(path, "file")) == ["half \ufffd pair, whole \U0001f600 pair", "byte \ufffd, \u00e9"]


def test_the_last_kind_in_a_name_counts(tmp_path):
    file = tmp_path / "dump.txt.jsonl"
    file.write_text('{"text": "a document"}\n')
    assert list(read_documents(file, "file")) == ["a document"]


def test_a_field_without_text_is_the_users_error(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": null}\n{"text": ["a"]}\n')
    with pytest.raises(UserError, match="record 2 has no text in 'text'"):
        list(read_documents(file, "file"))


def test_zstandard_is_not_read_as_it_lies(tmp_path, monkeypatch):
    (tmp_path / "a.txt.zst").write_bytes(b"(\xb5/\xfd")
    monkeypatch.setattr("fsspec.utils.infer_compression", lambda name: None)
    with pytest.raises(UserError, match="pip install zstandard"):
        list(read_documents(tmp_path / "a.txt.zst", "file"))
