"""Text files as a corpus: every document once, in a split that depends on it alone, however the files are cut."""

import itertools
import json
import lzma
import os

import pytest

from tests.shared import shared_file
from transnormer_jax.data import corpus as corpus_module
from transnormer_jax.data.corpus import TextFiles, cut
from transnormer_jax.errors import UserError


def read(files, documents="line", held_out=0.1):
    corpus = TextFiles(str(files), documents, held_out)
    splits = {}
    for part in range(len(corpus)):
        for split, text in corpus.read(part):
            splits.setdefault(split, []).append(text)
    return splits


def test_splits_share_no_document_and_no_copy(tmp_path):
    lines = [f"line {number}" for number in range(1000)]
    (tmp_path / "one.txt").write_text("\n".join(lines))
    with lzma.open(tmp_path / "two.txt.xz", "wt") as file:
        file.write("\n".join(reversed(lines)))
    splits = read(tmp_path)
    assert sorted(itertools.chain(*splits.values())) == sorted(lines * 2)
    for one, other in itertools.combinations(("train", "validation", "test"), 2):
        assert not set(splits[one]) & set(splits[other])
    assert 60 < len(splits["validation"]) / 2 < 140
    assert 60 < len(splits["test"]) / 2 < 140


def test_a_document_keeps_its_split_when_others_come(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"line {number}" for number in range(100)))
    before = read(path)
    path.write_text("\n".join(f"line {number}" for number in range(50, 200)))
    after = read(path)
    assert set(before["train"]).isdisjoint(after["validation"])
    assert set(before["validation"]).isdisjoint(after["train"])


def test_nothing_held_out_is_all_training(tmp_path):
    (tmp_path / "text.txt").write_text("a\nb\nc")
    assert read(tmp_path / "text.txt", held_out=0.0) == {"train": ["a", "b", "c"]}


def test_changed_files_and_settings_are_another_corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("old one")
    seen = [TextFiles(str(path), "line")]
    path.write_text("new one")
    os.utime(path, ns=(1, 1))  # The same size within the clock's tick: the time alone tells.
    seen += [TextFiles(str(path), "line"), TextFiles(str(path), "file"), TextFiles(str(path), "line", 0.2)]
    assert len({corpus.fingerprint for corpus in seen}) == len(seen)
    assert TextFiles(str(path), "line", 0.2).fingerprint == seen[-1].fingerprint


LINES = "".join(f"line {i} {'été' * (i % 5)}\r\n" + "\n" * (i % 3 == 0) for i in range(200))
DELIMITED = "before\n" + "".join(f"<doc id={i}>\n{'text ' * (i % 7)}\n\nmore {i}\n</doc>\n" for i in range(100)) + "cut"
RECORDS = "".join(json.dumps({"text": f"a record\nof two lines {i}", "n": "é" * (i % 9)}) + "\n" for i in range(100))


@pytest.mark.parametrize(
    ("name", "documents", "text"),
    [("a.txt", "line", LINES), ("a.txt", "delimited", DELIMITED), ("a.jsonl", "file", RECORDS)],
    ids=["lines", "delimited", "records"],
)
@pytest.mark.parametrize("part_bytes", [1, 7, 100, 1000])
def test_a_file_may_be_cut_anywhere(tmp_path, monkeypatch, name, documents, text, part_bytes):
    (tmp_path / name).write_bytes(text.encode())
    whole = read(tmp_path / name, documents)
    monkeypatch.setattr(corpus_module, "_PART_BYTES", part_bytes)
    monkeypatch.setattr(corpus_module, "_MOST_PARTS", 10**6)
    corpus = TextFiles(str(tmp_path / name), documents, 0.1)
    assert len(corpus) == -(-len(text.encode()) // part_bytes)
    assert read(tmp_path / name, documents) == whole
    names = [(file, number) for part in range(len(corpus)) for file, number, _ in corpus.documents(part)]
    assert len(set(names)) == len(names) == sum(map(len, whole.values()))


def test_small_files_share_a_part_and_what_has_no_lines_is_whole(monkeypatch):
    monkeypatch.setattr(corpus_module, "_PART_BYTES", 10)
    sizes = [("a.txt", 4), ("b.txt", 5), ("c.txt", 5), ("d.txt.gz", 50), ("e.txt", 30), ("f.parquet", 25)]
    files = [[*part.files] for part in cut(sizes, "line")]
    assert files == [["a.txt", "b.txt"], ["c.txt"], ["d.txt.gz"], *[["e.txt"]] * 3, ["f.parquet"]]
    assert [[*part.files] for part in cut(sizes, "file")][1:] == [["c.txt"], ["d.txt.gz"], ["e.txt"], ["f.parquet"]]
    monkeypatch.setattr(corpus_module, "_MOST_PARTS", 2)
    assert len(cut([("a.txt", 1000)], "line")) == 2


@pytest.mark.parametrize("held_out", [-0.1, 0.5])
def test_a_bad_fraction_is_the_users_error(tmp_path, held_out):
    (tmp_path / "text.txt").write_text("a")
    with pytest.raises(UserError, match=f"held_out is {held_out}: choose a fraction"):
        read(tmp_path / "text.txt", held_out=held_out)


def test_wikipedia_extract(tmp_path):
    with lzma.open(shared_file("data/enwiki2015_first100M.txt.xz")) as archive:
        prefix = archive.read(1_000_000)
    (tmp_path / "wiki.txt").write_bytes(prefix)
    texts = list(itertools.chain(*read(tmp_path / "wiki.txt", documents="delimited").values()))
    assert len(texts) == prefix.count(b"<doc id=")
    assert not any("<doc id=" in text or "</doc>" in text for text in texts)
    assert any(text.startswith("Anarchism\n") for text in texts)
