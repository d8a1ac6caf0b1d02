"""A run whose workdir and tokens are in a bucket, as a user starts it."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT, assert_fails, run, start, write_tiny_config
from transnormer_jax import storage
from transnormer_jax.training.metrics import read_metrics
from transnormer_jax.training.parameters import saved_steps

pytestmark = pytest.mark.slow

WORKDIR = "gs://bench/runs/a"


@pytest.fixture(scope="module")
def config(tmp_path_factory, gs) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("config")
    config = write_tiny_config(directory)
    corpus = storage.as_path("gs://bench/corpus/corpus.txt")
    storage.write_text(corpus, (directory / "corpus.txt").read_text())
    changed = config.read_text().replace(str(directory / "corpus.txt"), str(corpus))
    config.write_text(changed.replace(str(directory / "datasets"), "gs://bench/datasets"))
    (directory / "corpus.txt").unlink()
    os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
    yield config
    del os.environ["XDG_CACHE_HOME"]


@pytest.fixture(scope="module")
def finished(config) -> storage.AnyPath:
    """Stopped once, resumed on a host that has copied nothing, and finished."""
    process = start("train.py", f"--config={config}", f"--workdir={WORKDIR}", "--config.profile_at=3")
    for line in process.lines():
        if "step 12/40" in line:
            process.send_signal(signal.SIGTERM)
            break
    out, err = process.communicate(timeout=300)
    assert "stopped by SIGTERM" in out, err
    workdir = storage.as_path(WORKDIR)
    stopped_at = saved_steps(workdir)[-1]
    assert 10 < stopped_at < 40
    assert read_metrics(workdir)[-1]["step"] == stopped_at
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    status, out, err = run("train.py", f"--config={config}", f"--workdir={WORKDIR}")
    assert status == 0, err
    assert f"resumed from checkpoint {stopped_at}" in out
    return workdir


def test_all_that_a_run_writes_is_in_the_bucket(finished):
    names = {child.name for child in storage.children(finished)}
    assert {"checkpoints", "config.json", "metrics.jsonl", "tensorboard"} <= names
    steps = [line["step"] for line in read_metrics(finished) if "loss" in line]
    assert steps == list(range(1, 41))
    assert saved_steps(finished)[-1] == 40
    assert (finished / "tensorboard" / "plugins" / "profile").is_dir()
    assert not (ROOT / "gs:").exists()


def test_the_run_is_evaluated_and_generates(finished):
    status, out, err = run("eval.py", f"--workdir={finished}")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1]) == json.loads((finished / "eval.json").read_text())
    status, out, err = run("-m", "transnormer_jax.generate", f"--workdir={finished}", "--prompt=line 7")
    assert status == 0, err
    assert out.startswith("line 7")


def test_the_run_has_a_report(finished):
    pytest.importorskip("matplotlib")
    status, out, err = run("-m", "transnormer_jax.report", f"--workdir={finished}", "--max_new_tokens=2")
    assert status == 0, err
    assert "wrote gs://bench/runs/a/report.html" in out
    assert "<html" in (finished / "report.html").read_text()


def test_the_run_is_converted_there_and_back(finished):
    for way in ("--to_hugging_face=gs://bench/hf", "--from_hugging_face=gs://bench/hf"):
        workdir = finished if "to" in way.partition("=")[0] else "gs://bench/runs/back"
        status, _, err = run("-m", "transnormer_jax.convert", way, f"--workdir={workdir}")
        assert status == 0, err
    assert saved_steps(storage.as_path("gs://bench/runs/back")) == [0]


def test_a_run_begins_with_the_parameters_of_one_in_the_bucket(config, finished, tmp_path):
    status, out, err = run(
        "train.py", f"--config={config}", f"--workdir={tmp_path}/run", f"--config.init_from={finished}",
        "--config.num_steps=5",
    )  # fmt: skip
    assert status == 0, err
    assert f"begins with the parameters of step 40 of {finished}" in out


@pytest.mark.parametrize("workdir", ["az://container/run", "s3://bench/run", "gs://none/run", "README.md"])
def test_a_wrong_workdir_is_one_sentence(config, workdir):
    assert_fails(run("train.py", f"--config={config}", f"--workdir={workdir}"), workdir)
    assert not (ROOT / workdir.partition("/")[0]).is_dir()
