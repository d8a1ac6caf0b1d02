import multiprocessing
import os
import signal

import numpy as np
import pytest

from transnormer_jax.data import ByteTokenizer, tokenized
from transnormer_jax.data.tokenized import tokenize
from transnormer_jax.errors import UserError

TEXTS = ["first", "été 数学", "", "x" * 1000, "last"]


class WideTokenizer(ByteTokenizer):
    """A vocabulary that needs more than 16 bits."""

    vocab_size = 1 << 17

    def encode_batch(self, texts):
        return [np.full(len(text), self.vocab_size - 1, np.uint32) for text in texts]


def texts_then(action):
    yield from TEXTS
    action()


def contents(documents):
    return [ByteTokenizer().decode(document.tolist()) for document in documents]


@pytest.mark.parametrize("batch_characters", [1, 8, 1 << 22])
def test_documents_are_the_texts_in_order(tmp_path, monkeypatch, batch_characters):
    monkeypatch.setattr(tokenized, "_BATCH_CHARACTERS", batch_characters)
    documents = tokenize(TEXTS, ByteTokenizer(), tmp_path / "split")
    assert contents(documents) == TEXTS
    assert len(documents) == len(TEXTS)
    assert documents.lengths.tolist() == documents.num_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert documents.num_tokens == sum(documents.lengths)
    assert documents[-1].tolist() == documents[4].tolist()
    assert documents[0].dtype == np.uint16
    with pytest.raises(IndexError):
        documents[5]


def test_a_large_vocabulary_is_stored_whole(tmp_path):
    documents = tokenize(TEXTS, WideTokenizer(), tmp_path / "split")
    assert documents[0].tolist() == [(1 << 17) - 1] * 5
    # Bytes are those of the text, whatever the tokens are.
    assert documents.num_bytes.tolist() == [len(text.encode()) for text in TEXTS]


@pytest.mark.parametrize(("max_tokens", "count"), [(0, 1), (4, 1), (5, 1), (16, 1), (17, 3), (1017, 4), (10**9, 5)])
def test_the_head_is_whole_documents_within_the_limit(tmp_path, max_tokens, count):
    head = tokenize(TEXTS, ByteTokenizer(), tmp_path / "split").head(max_tokens)
    assert contents(head) == TEXTS[:count]
    assert head.num_tokens == sum(head.lengths) == sum(head.num_bytes)


def test_the_texts_are_read_once(tmp_path):
    tokenize(TEXTS, ByteTokenizer(), tmp_path / "split")
    again = tokenize(texts_then(pytest.fail), ByteTokenizer(), tmp_path / "split")
    assert contents(again) == TEXTS


def test_a_failed_run_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        tokenize(texts_then(lambda: 1 / 0), ByteTokenizer(), tmp_path / "split")
    assert not list(tmp_path.iterdir())


def die_halfway(directory):
    tokenized._BATCH_CHARACTERS = 1
    tokenize(texts_then(lambda: os.kill(os.getpid(), signal.SIGKILL)), ByteTokenizer(), directory)


def test_what_a_killed_run_leaves_is_not_read(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=die_halfway, args=(tmp_path / "split",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.iterdir())
    assert contents(tokenize(["whole"], ByteTokenizer(), tmp_path / "split")) == ["whole"]


def test_of_two_runs_at_once_the_first_to_finish_wins(tmp_path):
    def other_run():
        tokenize(TEXTS, ByteTokenizer(), tmp_path / "split")

    documents = tokenize(texts_then(other_run), ByteTokenizer(), tmp_path / "split")
    assert contents(documents) == TEXTS
    assert [path.name for path in tmp_path.iterdir()] == ["split"]


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_tokens_is_the_users_error(tmp_path, texts):
    with pytest.raises(UserError, match="the split has no tokens"):
        tokenize(texts, ByteTokenizer(), tmp_path / "split")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write tokens to .* choose another data_dir"):
        tokenize(TEXTS, ByteTokenizer(), tmp_path / "file" / "split")
