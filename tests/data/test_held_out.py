"""Which documents are held out: so many as asked for, and never a copy of one that is trained on."""

import tarfile

import numpy as np
import pytest

from tests.shared import shared_file
from transnormer_jax.data import ByteTokenizer, DataConfig, load_split
from transnormer_jax.data.held_out import cut_document, split_numbers, text_key


def keys_of(texts):
    return np.array([text_key(text) for text in texts], np.uint64)


def counts(keys, fractions):
    return np.bincount(split_numbers(keys, fractions), minlength=3).tolist()


@pytest.mark.parametrize(
    ("documents", "fraction", "expected"),
    [
        (1000, 0.1, [100, 100, 800]),
        (1000, 0.0, [0, 0, 1000]),
        (5, 0.01, [1, 1, 3]),
        (3, 0.01, [1, 1, 1]),
        (2, 0.01, [1, 0, 1]),
        (2, 0.49, [1, 0, 1]),
        (1, 0.3, [0, 0, 1]),
        (0, 0.3, [0, 0, 0]),
    ],
)
def test_so_many_are_held_out(documents, fraction, expected):
    keys = keys_of(f"text {i}" for i in range(documents))
    assert counts(keys, {"validation": fraction, "test": fraction}) == expected


def test_those_of_the_lowest_keys_are_held_out():
    keys = keys_of(f"text {i}" for i in range(1000))
    splits = split_numbers(keys, {"validation": 0.1, "test": 0.2})
    assert keys[splits == 0].max() < keys[splits == 1].min() < keys[splits == 1].max() < keys[splits == 2].min()
    assert [*np.bincount(splits)] == [100, 200, 700]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.49])
def test_copies_are_in_one_split_and_some_text_is_left_to_train_on(seed, fraction):
    random = np.random.default_rng(seed)
    texts = random.zipf(1.5, 50) % 20
    keys = keys_of(map(str, texts))
    splits = split_numbers(keys, {"validation": fraction, "test": fraction})
    assert all(len(set(splits[keys == key])) == 1 for key in keys)
    assert {0, 2} <= set(splits)


@pytest.mark.parametrize("line", ["a line of text\r\n", "été数学 " * 20_000 + "\n", "数学"])
@pytest.mark.parametrize("held_out", [0.01, 0.1, 0.3])
def test_a_document_is_cut_in_three_without_loss(line, held_out):
    text = line * (600_000 // len(line.encode()))
    (first, train), (low, validation), (high, test) = cut_document(text, held_out)
    assert train + validation + test == text
    assert low < high < first
    for piece in (validation, test):
        assert len(piece.encode()) / len(text.encode()) == pytest.approx(held_out, abs=0.01)
    assert len(line) > 1000 or "\n" not in line or (train[-1], validation[-1]) == ("\n", "\n")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one\ntwo\nthree\n\n", ["one\n", "two\n", "three\n\n"]),
        ("one\ntwo", ["one\n", "two"]),
        ("ab", ["a", "b"]),
        ("a", ["a"]),
    ],
)
def test_little_text_is_cut_as_far_as_it_goes(text, pieces):
    assert [piece for _, piece in cut_document(text, 0.01)] == pieces


def test_of_one_file_the_end_is_held_out(tmp_path):
    with tarfile.open(shared_file("data/wikitext2_shakespeare.tar.xz")) as archive:
        text = archive.extractfile("tinyshakespeare/input.txt").read()
    (tmp_path / "input.txt").write_bytes(text)
    config = DataConfig("plain_text", str(tmp_path / "input.txt"), data_dir=str(tmp_path / "data"))
    splits = [load_split(config, ByteTokenizer(), split) for split in ("train", "validation", "test")]
    assert [len(documents) for documents in splits] == [1, 1, 1]
    assert b"".join(ByteTokenizer().decode(documents[0].tolist()).encode() for documents in splits) == text
    for documents in splits[1:]:
        assert documents.num_tokens == pytest.approx(0.01 * len(text), rel=0.02)
