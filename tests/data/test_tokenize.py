import dataclasses
import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest

from tests.data.corpus import ListCorpus
from transnormer_jax.data import ByteTokenizer
from transnormer_jax.data import tokenize as tokenize_module
from transnormer_jax.data.bad_records import BadRecord, InvalidBytes
from transnormer_jax.data.held_out import text_key
from transnormer_jax.data.tokenize import Tokenization
from transnormer_jax.data.tokenized import Manifest, damaged_shards, open_tokenized
from transnormer_jax.errors import UserError

TEXTS = ["first", "été 数学", "", "x" * 1000, "last"]


class WideTokenizer(ByteTokenizer):
    """A vocabulary that needs more than 16 bits."""

    vocab_size = 1 << 17

    def encode_batch(self, texts):
        return [np.full(len(text), self.vocab_size - 1, np.uint32) for text in texts]


class SlowTokenizer(ByteTokenizer):
    """Takes 20 ms per call."""

    def encode_batch(self, texts):
        time.sleep(0.02)
        return super().encode_batch(texts)


class Interrupted(ListCorpus):
    """Does something before the last text is read."""

    def __init__(self, texts, action, size=1):
        super().__init__(texts, size)
        self.action = action

    def read(self, part):
        for number, text in enumerate(self.texts[part * self.size : (part + 1) * self.size]):
            if part * self.size + number == len(self.texts) - 1:
                self.action()
            yield text_key(text), text


def tokenize(corpus, directory, coder=None, bad_records="stop", **options):
    Tokenization(corpus, coder or ByteTokenizer(), directory, bad_records).run(**options)
    return open_tokenized(directory)


def contents(documents):
    return [ByteTokenizer().decode(document.tolist()) for document in documents]


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def small_shards(monkeypatch):
    """A shard ends with every call of the tokenizer, which gets one text."""
    monkeypatch.setattr(tokenize_module, "_SHARD_BYTES", 1)
    monkeypatch.setattr(tokenize_module, "_BATCH_CHARACTERS", 1)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("batch_characters", [1, 8, 1 << 22])
@pytest.mark.parametrize("shard_bytes", [1, 500, 1 << 24])
def test_documents_are_the_texts_in_order(tmp_path, monkeypatch, size, batch_characters, shard_bytes):
    monkeypatch.setattr(tokenize_module, "_BATCH_CHARACTERS", batch_characters)
    monkeypatch.setattr(tokenize_module, "_SHARD_BYTES", shard_bytes)
    parts = []
    documents = tokenize(ListCorpus(TEXTS, size), tmp_path / "split", on_part=lambda: parts.append(1))
    assert len(parts) == -(-len(TEXTS) // size)
    assert contents(documents) == TEXTS
    assert len(documents) == len(TEXTS)
    assert documents.lengths.tolist() == documents.num_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert documents.num_tokens == sum(documents.lengths)
    assert documents[-1].tolist() == documents[4].tolist()
    assert documents[0].dtype == np.uint16
    with pytest.raises(IndexError):
        documents[5]
    manifest = Manifest.read(tmp_path / "split")
    assert sum(shard.documents for shard in manifest.shards) == len(TEXTS)
    assert sum(shard.tokens for shard in manifest.shards) == documents.num_tokens
    assert sum(shard.bytes for shard in manifest.shards) == documents.num_tokens
    assert documents.keys.tolist() == [text_key(text) for text in TEXTS]
    assert manifest.tokenizer == ByteTokenizer.fingerprint
    assert damaged_shards(tmp_path / "split") == []


def test_a_large_vocabulary_is_stored_whole(tmp_path):
    documents = tokenize(ListCorpus(TEXTS), tmp_path / "split", WideTokenizer())
    assert documents[0].tolist() == [(1 << 17) - 1] * 5
    # Bytes are those of the text, whatever the tokens are.
    assert documents.num_bytes.tolist() == [len(text.encode()) for text in TEXTS]


@pytest.mark.parametrize("max_tokens", [0, 4, 17, 1017, 10**9])
def test_a_sample_is_whole_documents_within_the_limit(tmp_path, max_tokens):
    documents = tokenize(ListCorpus(TEXTS, 2), tmp_path / "split")
    sample = documents.sample(max_tokens)
    found = contents(sample)
    assert [text for text in TEXTS if text in found] == found  # in the order of the corpus, each whole
    assert sample.num_tokens == sum(sample.lengths) == sum(sample.num_bytes) == sum(len(x.encode()) for x in found)
    assert sample.num_tokens <= max_tokens or len(sample) == 1
    assert len(sample) == len(TEXTS) or max_tokens < 10**9
    assert contents(documents.sample(max_tokens)) == found


def test_a_sample_comes_from_all_over_the_corpus(tmp_path):
    documents = tokenize(ListCorpus([f"{i:04}" for i in range(1000)], 1000), tmp_path / "split")
    found = contents(documents.sample(400))
    assert len(found) == 100
    assert 400 < np.mean([int(text) for text in found]) < 600
    # Another limit takes more of the same.
    assert set(found) < set(contents(documents.sample(800)))


def test_the_texts_are_read_once(tmp_path):
    tokenize(ListCorpus(TEXTS), tmp_path / "split")
    assert contents(tokenize(Interrupted(TEXTS, pytest.fail), tmp_path / "split")) == TEXTS


@pytest.mark.parametrize("size", [1, 5])
def test_a_failed_run_keeps_its_shards_for_the_next(tmp_path, small_shards, size):
    with pytest.raises(ZeroDivisionError):
        tokenize(Interrupted(TEXTS, lambda: 1 / 0, size), tmp_path / "split")
    assert not (tmp_path / "split").exists()
    encoded = []

    class Noting(ByteTokenizer):
        def encode_batch(self, texts):
            encoded.extend(texts)
            return super().encode_batch(texts)

    assert contents(tokenize(ListCorpus(TEXTS, size), tmp_path / "split", Noting())) == TEXTS
    assert encoded == TEXTS[-1:]
    assert [path.name for path in tmp_path.iterdir()] == ["split"]


MANY = [f"document {i} " * (i % 17) for i in range(120)]


def tokenize_slowly(directory):
    # In a process of its own: each document is a shard, and takes 20 ms in one of two workers.
    Tokenization(ListCorpus(MANY), SlowTokenizer(), directory).run(workers=2)


@pytest.mark.slow
def test_killed_twice_it_ends_as_undisturbed(tmp_path):
    tokenize(ListCorpus(MANY), tmp_path / "undisturbed")
    chance, seen = random.Random(0), 0
    for _ in range(2):
        process = multiprocessing.get_context("spawn").Process(target=tokenize_slowly, args=(tmp_path / "split",))
        process.start()
        incomplete = tmp_path / "incomplete.split"
        # Killed in the midst of the work: some shards after those of the runs before.
        wanted = seen + chance.randrange(1, 20)
        while process.is_alive() and len(list(incomplete.glob("*.json"))) < wanted:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        seen = len(list(incomplete.glob("*.json")))
        assert wanted <= seen < len(MANY)
    finished = {path: path.stat().st_mtime_ns for path in incomplete.glob("*.tokens")}
    tokenize(ListCorpus(MANY), tmp_path / "split")
    assert files(tmp_path / "split") == files(tmp_path / "undisturbed")
    kept = {path.stat().st_mtime_ns for path in (tmp_path / "split").glob("*.tokens")}
    assert sum(made in kept for made in finished.values()) >= seen


def test_of_two_runs_at_once_the_first_to_finish_wins(tmp_path, small_shards):
    def other_run():
        tokenize(ListCorpus(TEXTS), tmp_path / "split")

    assert contents(tokenize(Interrupted(TEXTS, other_run), tmp_path / "split")) == TEXTS
    assert [path.name for path in tmp_path.iterdir()] == ["split"]


@pytest.mark.slow
def test_two_runs_side_by_side_leave_the_same(tmp_path):
    tokenize(ListCorpus(MANY), tmp_path / "alone")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=tokenize_slowly, args=(tmp_path / "split",)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert files(tmp_path / "split") == files(tmp_path / "alone")


def test_whoever_completes_the_last_part_makes_the_directory(tmp_path):
    tokenize(ListCorpus(TEXTS), tmp_path / "alone")
    for count, part in enumerate((3, 1, 0, 4, 2), start=1):
        work = Tokenization(ListCorpus(TEXTS), ByteTokenizer(), tmp_path / "split")
        work.complete_part(part)
        assert (tmp_path / "split").exists() == (count == 5)
        assert count == 5 or work.progress() == count
    assert files(tmp_path / "split") == files(tmp_path / "alone")


@pytest.mark.parametrize("kind", ["tokens", "index"])
def test_a_shard_cut_short_is_found_and_mended(tmp_path, kind):
    split, texts = tmp_path / "split", ListCorpus(TEXTS)
    tokenize(texts, split)
    before, damaged = files(split), split / f"00003.{kind}"
    damaged.write_bytes(damaged.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"00003.{kind}' holds [\d,]+ bytes of [\d,]+: write it again with .*--verify"):
        open_tokenized(split)
    assert Tokenization(texts, ByteTokenizer(), split).repair() == [3]
    assert files(split) == before
    assert [path.name for path in tmp_path.iterdir()] == ["split"]


def test_a_flipped_bit_is_found_by_its_checksum(tmp_path):
    tokenize(ListCorpus(TEXTS), tmp_path / "split")
    path = tmp_path / "split" / "00001.tokens"
    content = bytearray(path.read_bytes())
    content[2] ^= 1
    path.write_bytes(content)
    assert damaged_shards(tmp_path / "split") == [1]
    with pytest.raises(UserError, match=r"shard 1 .* cannot be written as it was: the dataset or the tokenizer"):
        Tokenization(ListCorpus(["other", *TEXTS[2:], "texts"]), ByteTokenizer(), tmp_path / "split").repair()


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_tokens_is_the_users_error(tmp_path, texts):
    with pytest.raises(UserError, match="there is no text to tokenise"):
        tokenize(ListCorpus(texts), tmp_path / "split")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write tokens to .* choose another data_dir"):
        tokenize(ListCorpus(TEXTS), tmp_path / "file" / "split")


def test_the_manifest_is_plain_json(tmp_path):
    tokenize(ListCorpus(TEXTS, 5), tmp_path / "split")
    manifest = json.loads((tmp_path / "split" / "manifest.json").read_text())
    assert manifest["shards"][0]["documents"] == len(TEXTS)
    assert manifest["dtype"] == "uint16"


class Faulty(ListCorpus):
    """Has a bad record instead of each empty text, and bytes that are not UTF-8 in each text with U+FFFD."""

    def read(self, part):
        for number, (key, text) in enumerate(super().read(part)):
            yield (key, text) if text else BadRecord("a.jsonl", "line", part * self.size + number + 1, "it is empty")
            if "\ufffd" in text:
                yield InvalidBytes("a.jsonl")


FAULTY = ["first", "", "b\ufffdd", "", "", "w\ufffdrse", "last"]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_bad_records_are_one_error_and_then_may_be_skipped(tmp_path, small_shards, size):
    work = Tokenization(Faulty(FAULTY, size), ByteTokenizer(), tmp_path / "split")
    with pytest.raises(UserError) as caught:
        work.run()
    expected = [f"  'a.jsonl', line {number}: it is empty" for number in (2, 4, 5)]
    assert str(caught.value).splitlines()[:-1] == ["3 records cannot be read:", *expected]
    assert "config.data.bad_records='skip'" in str(caught.value)

    coder = ByteTokenizer()
    coder.encode_batch = pytest.fail  # everything has been tokenised
    dataclasses.replace(work, coder=coder, bad_records="skip").run()
    assert contents(open_tokenized(tmp_path / "split")) == [text for text in FAULTY if text]
    assert Manifest.read(tmp_path / "split").notes == {
        "bad_records": {"count": 3, "first": [line.strip() for line in expected]},
        "not_utf8": {"documents": 2, "files": ["a.jsonl"]},
    }
    tokenize(Faulty(FAULTY, size), tmp_path / "again", bad_records="skip")
    assert files(tmp_path / "split") == files(tmp_path / "again")
    (tmp_path / "split" / "00001.tokens").write_bytes(b"")
    assert work.repair() == [1]
    assert files(tmp_path / "split") == files(tmp_path / "again")


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_killed_run_goes_on_behind_bad_records(tmp_path, small_shards, size):
    tokenize(Faulty(FAULTY, size), tmp_path / "undisturbed", bad_records="skip")
    for stop in range(4):
        work = Tokenization(Faulty(FAULTY, size), ByteTokenizer(), tmp_path / f"split{stop}", "skip")
        calls = iter([None] * stop)
        work.coder.encode_batch = lambda texts, calls=calls: next(calls, 1) or ByteTokenizer().encode_batch(texts)
        with pytest.raises(TypeError):
            work.run()
        del work.coder.encode_batch
        work.run()
        assert files(work.directory) == files(tmp_path / "undisturbed")


def test_a_wrong_field_stops_a_part_early(tmp_path):
    corpus, read = Faulty([""] * 5000, 5000), []
    each = corpus.read
    corpus.read = lambda part: (read.append(one) or one for one in each(part))
    with pytest.raises(UserError, match=r"at least 1,001 records cannot be read; the first 10 are:\n"):
        tokenize(corpus, tmp_path / "split")
    assert len(read) == 1001
    with pytest.raises(UserError, match="5,000 records cannot be read"):
        tokenize(corpus, tmp_path / "split", bad_records="skip")  # nothing is left


@pytest.mark.slow
def test_many_bad_records_are_counted_and_ten_are_shown(tmp_path):
    with pytest.raises(UserError, match=r"300 records cannot be read; the first 10 are:\n") as caught:
        tokenize(Faulty([""] * 300 + ["text"], 50), tmp_path / "split", workers=2)
    assert str(caught.value).count("\n  ") == 10
