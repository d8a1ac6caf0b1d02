"""A workdir has its tokenizer and chat template: moved to another machine, it needs nothing beside it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from tests.training.small_config import small_config
from transnormer_jax.data import RELEASED_TEMPLATE, load_tokenizer
from transnormer_jax.data.tokenizer_training import train_bpe, train_unigram
from transnormer_jax.errors import UserError
from transnormer_jax.inference import Generator
from transnormer_jax.training import Config, evaluate_run, load_workdir, train
from transnormer_jax.training.workdir import chat_template, find_tokenizer, keep_tokenizer, read_config, write_config

TEXTS = [f"line {i} says {i} times {i % 7} is {i * (i % 7)}\n" for i in range(300)]


def with_tokenizer(config: Config, tokenizer: Path | str) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=str(tokenizer)))


@pytest.fixture
def config(tmp_path) -> Config:
    """A run whose tokenizer is beside it."""
    values = small_config(tmp_path)
    (tmp_path / "corpus.txt").write_text("".join(TEXTS))
    values.data.files, values.data.documents, values.data.held_out = str(tmp_path / "corpus.txt"), "line", 0.1
    (tmp_path / "own").mkdir()
    train_bpe(TEXTS, 300, tmp_path / "own")
    values.model.vocab_size = 300
    values.data.tokenizer = str(tmp_path / "own")
    values.num_steps = values.checkpoint_every = 2
    values.optimizer.warmup_steps = 1
    return Config.from_dict(values.to_dict())


@pytest.mark.slow
@pytest.mark.usefixtures("on_one_device")
def test_a_moved_run_resumes_is_evaluated_and_generates(config, tmp_path):
    train(config, tmp_path / "here")
    fingerprint = load_tokenizer(config.data.tokenizer).fingerprint
    shutil.move(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "own")
    run = load_workdir(tmp_path / "there")
    assert run.tokenizer.fingerprint == fingerprint
    Generator(run.model_config, run.params, run.tokenizer).generate(["line 5"], max_new_tokens=2)
    assert evaluate_run(tmp_path / "there", config)["step"] == 2  # names the tokenizer that is gone
    assert train(dataclasses.replace(config, num_steps=3), tmp_path / "there") is not None
    with pytest.raises(UserError, match="another tokenizer"):
        train(with_tokenizer(dataclasses.replace(config, num_steps=4), "bytes"), tmp_path / "there")


@pytest.mark.parametrize("kind", ["directory", "file", "sentencepiece"])
def test_the_copy_is_the_same_tokenizer(config, tmp_path, kind):
    source = tmp_path / "own"
    if kind == "file":
        source = source / "tokenizer.json"
    elif kind == "sentencepiece":
        (tmp_path / "pieces").mkdir()
        train_unigram(TEXTS, 290, tmp_path / "pieces")
        source = tmp_path / "pieces" / "tokenizer.model"
    config = with_tokenizer(config, source)
    write_config(tmp_path / "run", config)
    keep_tokenizer(tmp_path / "run", config)
    original = load_tokenizer(str(source)).fingerprint
    shutil.rmtree(source if source.is_dir() else source.parent)
    kept = find_tokenizer(config, tmp_path / "run")
    assert kept.data.tokenizer == str(tmp_path / "run" / "tokenizer")
    assert load_tokenizer(kept.data.tokenizer).fingerprint == original
    assert read_config(tmp_path / "run").data.tokenizer == kept.data.tokenizer


def test_the_chat_template_comes_along(config, tmp_path):
    own = tmp_path / "own" / "tokenizer_config.json"
    own.write_text(json.dumps({"chat_template": "{{ messages }}"}))
    write_config(tmp_path / "run", config)
    keep_tokenizer(tmp_path / "run", config)
    shutil.rmtree(tmp_path / "own")
    assert chat_template(read_config(tmp_path / "run")) == "{{ messages }}"


def test_fine_tuning_by_the_released_template_keeps_it(config, tmp_path):
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, name="supervised_lm"))
    keep_tokenizer(tmp_path / "run", config)
    assert (tmp_path / "run" / "tokenizer" / "chat_template.jinja").read_text() == RELEASED_TEMPLATE


def test_the_tokenizer_of_a_start_that_saved_nothing_is_replaced(config, tmp_path):
    keep_tokenizer(tmp_path / "run", config)
    (tmp_path / "other").mkdir()
    train_bpe(TEXTS[:20], 280, tmp_path / "other")
    keep_tokenizer(tmp_path / "run", with_tokenizer(config, tmp_path / "other"))
    kept = load_tokenizer(str(tmp_path / "run" / "tokenizer"))
    assert kept.fingerprint == load_tokenizer(str(tmp_path / "other")).fingerprint
    keep_tokenizer(tmp_path / "run", with_tokenizer(config, "bytes"))
    assert not (tmp_path / "run" / "tokenizer").exists()


def test_a_bucket_keeps_the_tokenizer_too(gs, config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep_tokenizer("gs://bench/kept", config)
    kept = with_tokenizer(config, "gs://bench/kept/tokenizer")
    assert load_tokenizer(kept.data.tokenizer).fingerprint == load_tokenizer(config.data.tokenizer).fingerprint
