import gzip
import lzma

import fsspec
import pytest

from transnormer_jax.data.find_files import file_identity, find_files
from transnormer_jax.data.text_files import check_document_mode, read_documents
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
        ("paragraph", "\r\none\r\ntwo\r\n \r\n\r\nthree\n\n\nfour", ["one\r\ntwo", "three", "four"]),
        ("chunk", "one\r\n\r\ntwo\n", ["one\r\n\r\ntwo\n"]),
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


def test_an_unknown_document_mode_is_the_users_error():
    with pytest.raises(UserError, match="unknown document mode 'lines': did you mean 'line'"):
        check_document_mode("lines")


def test_files_of_a_store(tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe(
        {"/corpus/a.txt": b"one\ntwo\n", "/corpus/deep/b.txt.gz": gzip.compress(b"three"), "/corpus/c.md": b"no"}
    )
    try:
        files = find_files("memory://corpus").files
        assert files == ("memory:///corpus/a.txt", "memory:///corpus/deep/b.txt.gz")
        assert find_files("memory://corpus/**/*.txt*").files == files
        assert [list(read_documents(file, "line")) for file in files] == [["one", "two"], ["three"]]
        before = file_identity(files[0])
        assert before == file_identity(files[0])
        store.pipe("/corpus/a.txt", b"one\ntwo\nmore\n")
        assert before != file_identity(files[0])
    finally:
        store.rm("/corpus", recursive=True)


def test_what_is_no_unicode_becomes_the_replacement_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "half \\ud800 pair, whole \\ud83d\\ude00 pair"}\n{"text": "byte \xff, \xc3\xa9"}\n')
    assert list(read_documents(path, "file")) == ["half \ufffd pair, whole \U0001f600 pair", "byte \ufffd, \u00e9"]


def test_the_last_kind_in_a_name_counts(tmp_path):
    file = tmp_path / "dump.txt.jsonl"
    file.write_text('{"text": "a document"}\n')
    assert list(read_documents(file, "file")) == ["a document"]


@pytest.mark.parametrize("line", ["word " * 9 + "\n", "été数学🙂" * 20_000 + "\r\n", "x" * 300_000 + "\n", "\n"])
def test_chunks_are_the_whole_text_in_pieces_of_64_kib(tmp_path, line):
    text = "first\n" + line * (600_000 // len(line.encode())) + "last\ncut o"
    (tmp_path / "a.txt").write_bytes(text.encode())
    chunks = list(read_documents(tmp_path / "a.txt", "chunk"))
    assert "".join(chunks) == text or not line.strip()
    assert max(len(chunk.encode()) for chunk in chunks) <= 2 << 16
    assert all(chunk.endswith("\n") for chunk in chunks[:-1]) or len(line) > 1 << 16
