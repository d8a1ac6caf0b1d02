"""What a run does when something under it fails: the data, the disk, or time itself."""

import runpy
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.commands import ROOT, assert_fails, run, write_tiny_config
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


@pytest.mark.slow
def test_the_watchdog_shows_where_a_late_step_is_and_lets_it_go_on(capfd):
    with Watchdog(1) as watchdog:
        assert "stacks_on" in stacks_on(capfd)
        watchdog.step()  # armed again
        assert "stacks_on" in stacks_on(capfd)


@pytest.mark.slow
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


def test_a_disk_too_full_for_a_line_of_metrics_is_one_sentence(tmp_path, monkeypatch):
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("needs /dev/full")
    writer = MetricWriter(tmp_path, first_step=1)
    writer._lines.close()
    monkeypatch.setattr(writer, "_lines", full.open("w"))
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        writer.write(1, {"loss": 1.0})
    writer.close()


def test_a_missing_wandb_is_one_sentence(tmp_path, monkeypatch):
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


# Trains where the checkpoints are on a disk of their own, too small for the run, and again when it is larger.
_SMALL_DISK = """
import os, runpy, subprocess, sys

checkpoints, *command = sys.argv[1:]
os.unshare(os.CLONE_NEWNS)
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", checkpoints], check=True)

def train():
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
    sys.exit()

status = train()
print("kept", *os.listdir(checkpoints), flush=True)
subprocess.run(["mount", "-o", "remount,size=20m", checkpoints], check=True)
print("with room:", train(), flush=True)
sys.exit(status)
"""


@pytest.mark.slow
def test_a_full_disk_ends_the_run_which_resumes_where_there_is_room(tmp_path):
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs a name space of its own, in which to mount a small disk")
    config, workdir, program = write_tiny_config(tmp_path), tmp_path / "run", tmp_path / "program.py"
    (workdir / "checkpoints").mkdir(parents=True)
    program.write_text(_SMALL_DISK)
    flags = [f"--config={config}", f"--workdir={workdir}", "--config.keep_checkpoints=9"]
    status, out, err = run(program, workdir / "checkpoints", ROOT / "train.py", *flags)
    first, _, second = out.partition("\nkept ")
    assert_fails((status, first, err), "could not be written", "No space left on device", "make room")
    kept = [int(name) for name in second.partition("\n")[0].split() if name.isdigit()]
    assert kept
    assert f"resumed from checkpoint {max(kept)}" in second
    assert "held out" in second
    assert "with room: 0" in second
