import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest

from tests.data.corpus import ListTexts
from transnormer_jax.data import ByteTokenizer
from transnormer_jax.data import tokenize as tokenize_module
from transnormer_jax.data.tokenize import repair, tokenize
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


class Interrupted(ListTexts):
    """Does something before the last text is read."""

    def __init__(self, texts, action):
        super().__init__(texts)
        self.action = action

    def read(self, start, stop):
        for index in range(start, stop):
            if index == len(self) - 1:
                self.action()
            yield self.texts[index]


def contents(documents):
    return [ByteTokenizer().decode(document.tolist()) for document in documents]


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(params=[1, 500, 1 << 24])
def shard_bytes(request, monkeypatch):
    monkeypatch.setattr(tokenize_module, "_SHARD_BYTES", request.param)
    return request.param


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(tokenize_module, "_SHARD_BYTES", 1)


@pytest.mark.parametrize("batch_characters", [1, 8, 1 << 22])
def test_documents_are_the_texts_in_order(tmp_path, monkeypatch, shard_bytes, batch_characters):
    monkeypatch.setattr(tokenize_module, "_BATCH_CHARACTERS", batch_characters)
    documents = tokenize(ListTexts(TEXTS), ByteTokenizer(), tmp_path / "split")
    assert contents(documents) == TEXTS
    assert len(documents) == len(TEXTS)
    assert documents.lengths.tolist() == documents.num_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert documents.num_tokens == sum(documents.lengths)
    assert documents[-1].tolist() == documents[4].tolist()
    assert documents[0].dtype == np.uint16
    with pytest.raises(IndexError):
        documents[5]


def test_the_manifest_counts_what_is_there(tmp_path, shard_bytes):
    told = []
    documents = tokenize(ListTexts(TEXTS), ByteTokenizer(), tmp_path / "split", on_shard=told.append)
    manifest = Manifest.read(tmp_path / "split")
    assert manifest.shards == tuple(told)
    assert len(manifest.shards) == {1: 5, 500: 3, 1 << 24: 1}[shard_bytes]
    assert manifest.documents == len(TEXTS)
    assert manifest.tokens == manifest.bytes == documents.num_tokens
    assert manifest.tokenizer == ByteTokenizer.fingerprint
    assert damaged_shards(tmp_path / "split") == []


def test_a_large_vocabulary_is_stored_whole(tmp_path):
    documents = tokenize(ListTexts(TEXTS), WideTokenizer(), tmp_path / "split")
    assert documents[0].tolist() == [(1 << 17) - 1] * 5
    # Bytes are those of the text, whatever the tokens are.
    assert documents.num_bytes.tolist() == [len(text.encode()) for text in TEXTS]


@pytest.mark.parametrize("max_tokens", [0, 4, 17, 1017, 10**9])
def test_a_sample_is_whole_documents_within_the_limit(tmp_path, shard_bytes, max_tokens):
    documents = tokenize(ListTexts(TEXTS), ByteTokenizer(), tmp_path / "split")
    sample = documents.sample(max_tokens)
    found = contents(sample)
    assert [text for text in TEXTS if text in found] == found  # in the order of the corpus, each whole
    assert sample.num_tokens == sum(sample.lengths) == sum(sample.num_bytes) == sum(len(x.encode()) for x in found)
    assert sample.num_tokens <= max_tokens or len(sample) == 1
    assert len(sample) == len(TEXTS) or max_tokens < 10**9
    assert contents(documents.sample(max_tokens)) == found


def test_a_sample_comes_from_all_over_the_corpus(tmp_path):
    texts = [f"{i:04}" for i in range(1000)]
    found = contents(tokenize(ListTexts(texts), ByteTokenizer(), tmp_path / "split").sample(400))
    assert len(found) == 100
    assert 400 < np.mean([int(text) for text in found]) < 600
    # Another limit takes more of the same.
    assert set(found) < set(contents(tokenize(ListTexts(texts), ByteTokenizer(), tmp_path / "split").sample(800)))


def test_the_texts_are_read_once(tmp_path):
    tokenize(ListTexts(TEXTS), ByteTokenizer(), tmp_path / "split")
    again = tokenize(Interrupted(TEXTS, pytest.fail), ByteTokenizer(), tmp_path / "split")
    assert contents(again) == TEXTS


def test_a_failed_run_keeps_its_shards_for_the_next(tmp_path, small_shards):
    with pytest.raises(ZeroDivisionError):
        tokenize(Interrupted(TEXTS, lambda: 1 / 0), ByteTokenizer(), tmp_path / "split")
    assert not (tmp_path / "split").exists()

    class LastOnly(ListTexts):
        def read(self, start, stop):
            assert start == len(TEXTS) - 1
            return super().read(start, stop)

    assert contents(tokenize(LastOnly(TEXTS), ByteTokenizer(), tmp_path / "split")) == TEXTS
    assert [path.name for path in tmp_path.iterdir()] == ["split"]


MANY = [f"document {i} " * (i % 17) for i in range(120)]


def tokenize_slowly(directory):
    # In a process of its own: each document is a shard, and takes 20 ms in one of two workers.
    tokenize_module._SHARD_BYTES = 1
    tokenize(ListTexts(MANY), SlowTokenizer(), directory, workers=2)


@pytest.mark.slow
def test_killed_three_times_it_ends_as_undisturbed(tmp_path, small_shards):
    tokenize(ListTexts(MANY), ByteTokenizer(), tmp_path / "undisturbed")
    chance, seen = random.Random(0), 0
    for _ in range(3):
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
    tokenize(ListTexts(MANY), ByteTokenizer(), tmp_path / "split")
    assert files(tmp_path / "split") == files(tmp_path / "undisturbed")
    kept = sum((tmp_path / "split" / path.name).stat().st_mtime_ns == time for path, time in finished.items())
    assert kept >= seen


def test_of_two_runs_at_once_the_first_to_finish_wins(tmp_path, small_shards):
    def other_run():
        tokenize(ListTexts(TEXTS), ByteTokenizer(), tmp_path / "split")

    documents = tokenize(Interrupted(TEXTS, other_run), ByteTokenizer(), tmp_path / "split")
    assert contents(documents) == TEXTS
    assert [path.name for path in tmp_path.iterdir()] == ["split"]


@pytest.mark.slow
def test_two_runs_side_by_side_leave_the_same(tmp_path, small_shards):
    tokenize(ListTexts(MANY), ByteTokenizer(), tmp_path / "alone")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=tokenize_slowly, args=(tmp_path / "split",)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert files(tmp_path / "split") == files(tmp_path / "alone")


@pytest.mark.parametrize("kind", ["tokens", "index"])
def test_a_shard_cut_short_is_told_and_mended(tmp_path, small_shards, kind):
    split, texts = tmp_path / "split", ListTexts(TEXTS)
    tokenize(texts, ByteTokenizer(), split)
    before, damaged = files(split), split / f"00003.{kind}"
    damaged.write_bytes(damaged.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"00003.{kind}' holds [\d,]+ bytes of [\d,]+: write it again with .*--verify"):
        open_tokenized(split)
    assert repair(texts, ByteTokenizer(), split) == [3]
    assert files(split) == before


def test_a_flipped_bit_is_found_by_its_checksum(tmp_path, small_shards):
    tokenize(ListTexts(TEXTS), ByteTokenizer(), tmp_path / "split")
    path = tmp_path / "split" / "00001.tokens"
    content = bytearray(path.read_bytes())
    content[2] ^= 1
    path.write_bytes(content)
    assert damaged_shards(tmp_path / "split") == [1]
    with pytest.raises(UserError, match=r"shard 1 .* cannot be written as it was: the dataset or the tokenizer"):
        repair(ListTexts(["other", *TEXTS[2:], "texts"]), ByteTokenizer(), tmp_path / "split")


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_tokens_is_the_users_error(tmp_path, texts):
    with pytest.raises(UserError, match="the split has no tokens"):
        tokenize(ListTexts(texts), ByteTokenizer(), tmp_path / "split")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write tokens to .* choose another data_dir"):
        tokenize(ListTexts(TEXTS), ByteTokenizer(), tmp_path / "file" / "split")


def test_the_manifest_is_plain_json(tmp_path):
    tokenize(ListTexts(TEXTS), ByteTokenizer(), tmp_path / "split")
    manifest = json.loads((tmp_path / "split" / "manifest.json").read_text())
    assert manifest["shards"][0]["documents"] == len(TEXTS)
    assert manifest["dtype"] == "uint16"
