"""What a run does when something under it fails: the data, the disk, or time itself."""

import os
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.commands import ROOT, assert_fails, write_tiny_config
from transnormer_jax.errors import UserError
from transnormer_jax.training import loop
from transnormer_jax.training.checkpoints import Checkpoints
from transnormer_jax.training.config import Config
from transnormer_jax.training.metrics import MetricWriter
from transnormer_jax.training.step import TrainState
from transnormer_jax.training.watchdog import Watchdog


def tiny(directory: Path, **changes: object) -> Config:
    values = runpy.run_path(str(write_tiny_config(directory)))["get_config"]().to_dict()
    values["evaluation"]["batch_size"] = 8
    return Config.from_dict(values | changes)


def stacks_on(capfd) -> str:
    """What the watchdog has printed, waiting for it."""
    text = ""
    for _ in range(300):
        text += capfd.readouterr().err
        if "most recent call first" in text:
            return text
        time.sleep(0.1)
    return text


def test_the_watchdog_shows_where_a_late_step_is_and_lets_it_go_on(capfd):
    with Watchdog(1) as watchdog:
        assert "stacks_on" in stacks_on(capfd)
        watchdog.step()  # armed again
        assert "stacks_on" in stacks_on(capfd)


def test_the_watchdog_is_silent_in_a_pause_and_afterwards(capfd):
    with Watchdog(1) as watchdog:
        watchdog.pause()
        time.sleep(1.5)
        watchdog.step()
    time.sleep(1.5)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_an_exception_saves_the_last_whole_step_and_goes_on(tmp_path, monkeypatch, capfd):
    config = tiny(tmp_path, num_steps=8, checkpoint_every=100)
    batches_on_mesh = loop.batches_on_mesh

    def torn(*arguments):
        batches = batches_on_mesh(*arguments)
        for _ in range(5):
            yield next(batches)
        raise RuntimeError("the data are gone")

    monkeypatch.setattr(loop, "batches_on_mesh", torn)
    with pytest.raises(RuntimeError, match="the data are gone"):
        loop.train(config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["5"]
    assert "saved step 5" in capfd.readouterr().err
    monkeypatch.undo()
    resumed = loop.train(config, tmp_path / "run")
    assert "resumed from checkpoint 5" in capfd.readouterr().out
    whole = loop.train(config, tmp_path / "whole")
    assert resumed is not None
    assert whole is not None
    assert resumed["loss"] == whole["loss"]


def test_a_disk_too_full_for_a_line_of_metrics_is_told(tmp_path, monkeypatch):
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("needs /dev/full")
    writer = MetricWriter(tmp_path, first_step=1)
    writer._lines.close()
    monkeypatch.setattr(writer, "_lines", full.open("w"))
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        writer.write(1, {"loss": 1.0})
    writer.close()


def test_a_missing_wandb_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is missing: in a clone, pip install -e '\.\[wandb\]', or leave"):
        MetricWriter(tmp_path, first_step=1, wandb_project="p")


@pytest.mark.parametrize("gone", ["step", "params"])
def test_a_state_that_was_donated_is_not_saved(tmp_path, gone):
    config = tiny(tmp_path)
    with Checkpoints(tmp_path / "run", config=config, tokenizer="") as checkpoints:
        state = TrainState(jnp.array(3), {"embedding": jnp.ones(2)}, jnp.zeros(2))
        for x in jax.tree.leaves(getattr(state, gone)):
            x.delete()
        checkpoints.save_in_emergency(state, rows=0)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_resumes_where_there_is_room(tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs a name space of its own, in which to mount a small disk")
    config, workdir = write_tiny_config(tmp_path), tmp_path / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    command = [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}", "--config.keep_checkpoints=9"]
    where = shlex.quote(str(workdir / "checkpoints"))
    first, second = ([shlex.quote(str(tmp_path / f"{name}.{i}")) for name in ("out", "err")] for i in (1, 2))
    script = f"""
        mount -t tmpfs -o size=1500k tmpfs {where} || exit 99
        {shlex.join(command)} > {first[0]} 2> {first[1]}; status=$?
        ls {where} > {shlex.quote(str(tmp_path / "kept"))}
        mount -o remount,size=20m {where} && {shlex.join(command)} > {second[0]} 2> {second[1]} || exit 98
        exit $status
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    shell = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=ROOT, env=environment, check=False)
    out, err = ((tmp_path / f"{name}.1").read_text() for name in ("out", "err"))
    assert_fails((shell.returncode, out, err), "could not be written", "No space left on device", "make room")
    kept = [int(name) for name in (tmp_path / "kept").read_text().split() if name.isdigit()]
    assert kept
    again = (tmp_path / "out.2").read_text()
    assert f"resumed from checkpoint {max(kept)}" in again
    assert "held out" in again
