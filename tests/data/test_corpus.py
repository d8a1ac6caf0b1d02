"""Text files as a corpus: every document once, with a key that depends on it alone, however the files are cut."""

import itertools
import json
import lzma
import os

import pytest

from tests.shared import shared_file
from transnormer_jax.data import corpus as corpus_module
from transnormer_jax.data import text_files
from transnormer_jax.data.corpus import TextFiles, cut
from transnormer_jax.data.held_out import text_key


def read(files, documents="line"):
    corpus = TextFiles(str(files), documents)
    return list(itertools.chain.from_iterable(corpus.read(part) for part in range(len(corpus))))


def test_the_key_depends_on_the_text_alone(tmp_path):
    lines = [f"line {number}" for number in range(1000)]
    (tmp_path / "one.txt").write_text("\n".join(lines))
    with lzma.open(tmp_path / "two.txt.xz", "wt") as file:
        file.write("\n".join(reversed(lines)))
    found = read(tmp_path)
    assert [text for _, text in found] == lines + lines[::-1]
    assert [key for key, _ in found] == [text_key(text) for _, text in found]
    assert len({key for key, _ in found}) == len(lines)


def test_changed_files_and_settings_are_another_corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("old one")
    seen = [TextFiles(str(path), "line")]
    path.write_text("new one")
    os.utime(path, ns=(1, 1))  # The same size within the clock's tick: the time alone tells.
    seen += [TextFiles(str(path), "line"), TextFiles(str(path), "file"), TextFiles(str(path), "file", held_out=0.2)]
    assert len({corpus.fingerprint for corpus in seen}) == len(seen)


def test_the_fraction_belongs_to_a_single_file_alone(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    assert len({TextFiles(str(tmp_path), "file", held_out=fraction).fingerprint for fraction in (0, 0.1)}) == 1
    one = str(tmp_path / "a.txt")
    assert len({TextFiles(one, "line", held_out=fraction).fingerprint for fraction in (0, 0.1)}) == 1


LINES = "".join(f"line {i} {'été' * (i % 5)}\r\n" + "\n" * (i % 3 == 0) for i in range(200))
DELIMITED = "before\n" + "".join(f"<doc id={i}>\n{'text ' * (i % 7)}\n\nmore {i}\n</doc>\n" for i in range(100)) + "cut"
RECORDS = "".join(json.dumps({"text": f"a record\nof two lines {i}", "n": "é" * (i % 9)}) + "\n" for i in range(100))


PARAGRAPHS = "\r\nfirst\r\n" + "".join(f"{'word ' * (i % 7)}été {i}\r\n" + " \r\n" * (i % 4) for i in range(200))
CHUNKS = "first " + "".join("数学" * (i % 30) + "\n" * (i % 3) for i in range(60)) + "cut o"


@pytest.mark.parametrize(
    ("name", "documents", "text"),
    [
        ("a.txt", "line", LINES),
        ("a.txt", "delimited", DELIMITED),
        ("a.txt", "paragraph", PARAGRAPHS),
        ("a.txt", "chunk", CHUNKS),
        ("a.jsonl", "file", RECORDS),
    ],
    ids=["lines", "delimited", "paragraphs", "chunks", "records"],
)
@pytest.mark.parametrize("part_bytes", [1, 7, 100, 1000])
def test_a_file_may_be_cut_anywhere(tmp_path, monkeypatch, name, documents, text, part_bytes):
    (tmp_path / name).write_bytes(text.encode())
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", 50)
    whole = read(tmp_path / name, documents)
    monkeypatch.setattr(corpus_module, "_PART_BYTES", part_bytes)
    monkeypatch.setattr(corpus_module, "_MOST_PARTS", 10**6)
    corpus = TextFiles(str(tmp_path / name), documents)
    assert len(corpus) == -(-len(text.encode()) // part_bytes)
    assert read(tmp_path / name, documents) == whole
    names = [(file, number) for part in range(len(corpus)) for file, number, _ in corpus.documents(part)]
    assert len(set(names)) == len(names) == len(whole)


def test_small_files_share_a_part_and_what_has_no_lines_is_whole(monkeypatch):
    monkeypatch.setattr(corpus_module, "_PART_BYTES", 10)
    sizes = [("a.txt", 4), ("b.txt", 5), ("c.txt", 5), ("d.txt.gz", 50), ("e.txt", 30), ("f.parquet", 25)]
    files = [[*part.files] for part in cut(sizes, "line")]
    assert files == [["a.txt", "b.txt"], ["c.txt"], ["d.txt.gz"], *[["e.txt"]] * 3, ["f.parquet"]]
    assert [[*part.files] for part in cut(sizes, "file")][1:] == [["c.txt"], ["d.txt.gz"], ["e.txt"], ["f.parquet"]]
    monkeypatch.setattr(corpus_module, "_MOST_PARTS", 2)
    assert len(cut([("a.txt", 1000)], "line")) == 2


def test_wikipedia_extract(tmp_path):
    with lzma.open(shared_file("data/enwiki2015_first100M.txt.xz")) as archive:
        prefix = archive.read(1_000_000)
    (tmp_path / "wiki.txt").write_bytes(prefix)
    texts = [text for _, text in read(tmp_path / "wiki.txt", documents="delimited")]
    assert len(texts) == prefix.count(b"<doc id=")
    assert not any("<doc id=" in text or "</doc>" in text for text in texts)
    assert any(text.startswith("Anarchism\n") for text in texts)
