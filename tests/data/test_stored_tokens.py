"""A corpus on a store: uploaded once, and read by hosts that have neither the texts nor a prepared dataset."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from transnormer_jax import storage
from transnormer_jax.data import ByteTokenizer, DataConfig, load_split
from transnormer_jax.data.tokenized import Manifest
from transnormer_jax.errors import UserError


def host(monkeypatch, directory: Path) -> None:
    """From here on, this is a host with a disk of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_second_host_needs_the_store_alone(request, tmp_path, monkeypatch, scheme):
    request.getfixturevalue(scheme)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("".join(f"line {i}\n" for i in range(300)))
    config = DataConfig("plain_text", str(corpus), "line", held_out=0.1, data_dir=f"{scheme}://bench/data")
    host(monkeypatch, tmp_path / "first")
    prepared = load_split(config, ByteTokenizer(), "train")
    assert (tmp_path / "first" / "transnormer_jax" / "datasets" / "tokenized").is_dir()

    # The same host again finds them, and copies what it has uploaded.
    again = load_split(config, ByteTokenizer(), "train")
    shutil.rmtree(corpus)
    host(monkeypatch, tmp_path / "second")
    there = load_split(config, ByteTokenizer(), "train")
    assert not (tmp_path / "second" / "transnormer_jax" / "datasets").exists()
    for documents in (again, there):
        np.testing.assert_array_equal(documents.lengths, prepared.lengths)
        np.testing.assert_array_equal(documents[17], prepared[17])
    assert len(load_split(config, ByteTokenizer(), "validation")) == 30


def test_changed_texts_are_other_tokens(gs, tmp_path, monkeypatch):
    host(monkeypatch, tmp_path / "first")
    corpus = tmp_path / "corpus.txt"
    config = DataConfig("plain_text", str(corpus), "line", held_out=0.0, data_dir="gs://bench/changing")
    for text in ("one\n", "one\ntwo\n"):
        corpus.write_text(text * 3)
        assert len(load_split(config, ByteTokenizer(), "train")) == 3 * len(text.splitlines())


def test_what_is_on_the_store_has_its_manifest(gs, tmp_path, monkeypatch):
    host(monkeypatch, tmp_path / "first")
    (tmp_path / "corpus.txt").write_text("one\ntwo\n")
    storage.as_path("gs://bench/texts/corpus.txt").write_text("one\ntwo\n")
    config = DataConfig("plain_text", "gs://bench/texts/*.txt", "line", held_out=0.0, data_dir="gs://bench/manifest")
    documents = load_split(config, ByteTokenizer(), "train")
    [directory] = [one for one in storage.children(storage.as_path("gs://bench/manifest/tokenized")) if one.is_dir()]
    assert Manifest.read(directory).shards[0].tokens == documents.num_tokens == 6


def test_a_store_that_is_not_there_is_one_sentence(gs, tmp_path, monkeypatch):
    host(monkeypatch, tmp_path / "first")
    (tmp_path / "corpus.txt").write_text("one\n" * 9)
    config = DataConfig("plain_text", str(tmp_path / "corpus.txt"), "line", held_out=0.0, data_dir="gs://none/data")
    with pytest.raises(UserError, match=r"config.data.data_dir: 'gs://none/data/tokenized' cannot be used"):
        load_split(config, ByteTokenizer(), "train")
