"""Every task through the whole training program: it trains, and is evaluated."""

import dataclasses
import json
from pathlib import Path

import chex
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.papers.data.local_files import write_mnist, write_reviews, write_speech
from transnormer_jax.errors import UserError
from transnormer_jax.papers.config import BaselineConfig
from transnormer_jax.training import Config, default_config, evaluate_run, load_workdir, train

pytestmark = pytest.mark.usefixtures("on_one_device")


def make_config(architecture: str = "baseline", **model) -> ConfigDict:
    if architecture == "baseline":
        model = {**TINY, **model}
    config = default_config(architecture, **model)
    config.num_steps = 4
    config.batch_size = config.evaluation.batch_size = 8
    config.log_every = config.checkpoint_every = 2
    config.evaluation.every = 0
    config.optimizer.warmup_steps = 1
    return config


TINY = dataclasses.asdict(BaselineConfig.preset("tiny"))


def duplication(directory: Path):
    config = make_config(attention="lsh", max_length=128, dropout=0.1, vocab_size=11)
    config.task.name = "duplication"
    config.sequence_length = 128
    return config


def masked_lm(directory: Path):
    (directory / "text.txt").write_text("".join(f"line {i} says {i * i}\n" for i in range(300)))
    config = make_config(attention="t2", causal=False, vocab_size=260)
    config.task.name = "masked_lm"
    config.data.dataset, config.data.documents, config.data.held_out = "plain_text", "line", 0.1
    config.data.files = str(directory / "text.txt")
    config.sequence_length = 32
    return config


def classification(directory: Path):
    write_reviews(directory)
    config = make_config(attention="linformer", causal=False)
    config.task.name = "classification"
    config.data.dataset, config.data.eval_split = "imdb_reviews", "test"
    config.data.files = str(directory)
    config.sequence_length = 32
    return config


def images(directory: Path):
    write_mnist(directory)
    config = make_config(attention="linear", max_length=784, vocab_size=256)
    config.task.name = "images"
    config.data.dataset, config.data.eval_split = "mnist", "test"
    config.data.files = str(directory)
    config.sequence_length = 783
    return config


def speech(directory: Path, architecture: str = "baseline", **model):
    write_speech(directory)
    config = make_config(architecture, **model)
    config.task.name = "speech"
    config.task.num_classes = 6
    config.task.frames_per_token = 2 if architecture == "bilstm" else 1
    config.data.dataset, config.data.eval_split = "an4", "test"
    config.data.files = str(directory)
    config.sequence_length = 16
    return config


def bilstm(directory: Path):
    return speech(directory, "bilstm", num_layers=1, hidden_dim=8)


def transnormer_speech(directory: Path):
    return speech(directory, attention="softmax", causal=False)


METRICS = {
    duplication: "accuracy",
    masked_lm: "perplexity",
    classification: "accuracy",
    images: "bits_per_dim",
    bilstm: "error_rate",
    transnormer_speech: "error_rate",
}


@pytest.mark.slow
@pytest.mark.parametrize("make", METRICS, ids=lambda make: make.__name__)
def test_every_task_trains_and_is_evaluated(make, tmp_path):
    config = make(tmp_path)
    config.data.data_dir = str(tmp_path / "datasets")
    whole = train(Config.from_dict(config.to_dict()), tmp_path / "whole")
    assert np.isfinite(whole[METRICS[make]])
    if make == duplication:  # it draws random numbers in every step, for dropout and hashes
        # The learning rate is planned for all steps, so a run that a signal stops is played by its checkpoints.
        resumed = tmp_path / "resumed"
        (resumed / "checkpoints").mkdir(parents=True)
        (tmp_path / "whole" / "checkpoints" / "2").rename(resumed / "checkpoints" / "2")
        assert train(Config.from_dict(config.to_dict()), resumed)["loss"] == whole["loss"]
        chex.assert_trees_all_equal(load_workdir(tmp_path / "whole").params, load_workdir(resumed).params)
    report = evaluate_run(tmp_path / "whole")
    assert report["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert json.loads((tmp_path / "whole" / "eval.json").read_text()) == report


def test_what_does_not_fit_together_is_refused(tmp_path):
    def error(config, **changes) -> str:
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            setattr(getattr(config, section) if section else config, name, value)
        with pytest.raises(UserError) as caught:
            train(Config.from_dict(config.to_dict()), tmp_path / "workdir")
        return str(caught.value)

    assert "causal=True" in error(duplication(tmp_path), model__causal=False)
    assert "causal=False" in error(masked_lm(tmp_path), model__causal=True)
    masked = masked_lm(tmp_path)
    masked.data.data_dir = str(tmp_path / "datasets")
    assert "set it to 260" in error(masked, model__vocab_size=259)  # the mask is a token more
    assert "did you mean" in error(classification(tmp_path), task__name="clasification").lower()
    recurrent = bilstm(tmp_path)
    assert "unknown config key config.task.frames_per_token" in error(recurrent, task__name="classification")
    del recurrent.task.frames_per_token
    assert "architecture='transnormer'" in error(recurrent)
    config = classification(tmp_path)
    config.data.data_dir = str(tmp_path / "datasets")
    assert "set it to 2" in error(config, task__num_classes=1)
    assert "config.task.num_classes=0 must be at least 1" in error(config, task__num_classes=0)
    assert not (tmp_path / "workdir").exists()
