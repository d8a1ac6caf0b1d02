"""A run that stops: what it saves, when, how it ends, and how it goes on."""

import dataclasses
import errno
import gc
import json
import os
import signal
import threading
import time
from pathlib import Path

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint._src.futures.synchronization import MultihostSynchronizedValue as Tracker

from tests.training.small_config import small_config, write_counting
from transnormer_jax import storage
from transnormer_jax.errors import UserError
from transnormer_jax.training import load_workdir, loop, reading
from transnormer_jax.training.config import Config
from transnormer_jax.training.goodput import Stopwatch
from transnormer_jax.training.progress import window_means
from transnormer_jax.training.setup import load_setup
from transnormer_jax.training.step import StepMetrics
from transnormer_jax.training.stop_signal import StopSignal

pytestmark = pytest.mark.usefixtures("on_one_device")


def config_for(directory: Path, **changes: object) -> Config:
    values = small_config(directory)
    values.data.files = write_counting(directory)
    values.log_every = 1
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        setattr(getattr(values, section) if section else values, key, value)
    return Config.from_dict(values.to_dict())


def steps_in(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_signal_in_an_evaluation_ends_it_and_loses_no_step(tmp_path, capfd):
    config = config_for(tmp_path, num_steps=9, evaluation__every=5, checkpoint_every=5)
    seen = []

    def interrupted(config, mesh):
        setup = load_setup(config, mesh)

        def evaluate(params, on_batch):
            for _ in range(1000):  # an evaluation of an hour, if nobody stops it
                seen.append(steps_in(tmp_path / "run"))
                if len(seen) == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.02)
                on_batch()
            return {"loss": 1.0, "seconds": 1.0}

        return setup._replace(evaluate=evaluate)

    assert loop.train(config, tmp_path / "run", load=interrupted) is None
    assert len(seen) < 50
    assert steps_in(tmp_path / "run") == [5]  # saved before the evaluation began, and not once more
    assert "stopped by SIGTERM" in capfd.readouterr().out
    assert loop.train(config, tmp_path / "run") is not None
    assert [line["step"] for line in lines_of(tmp_path / "run") if "grad_norm" in line] == list(range(1, 10))


@pytest.mark.slow
def test_checkpoints_by_time(tmp_path):
    config = config_for(tmp_path, num_steps=4, checkpoint_every=0, checkpoint_minutes=1e-9, keep_checkpoints=99)
    loop.train(config, tmp_path / "run")
    assert steps_in(tmp_path / "run") == [1, 2, 3, 4]


@pytest.mark.slow
def test_no_more_than_the_interval_and_one_step_are_ever_at_risk(tmp_path, monkeypatch):
    at_risk, made = [], []

    class Slow(loop.Checkpoints):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            made.append(self)

        def check(self) -> None:
            """Writing takes until somebody waits for it."""

    monkeypatch.setattr(loop, "Checkpoints", Slow)
    monkeypatch.setattr(loop.Profiler, "begin_step", lambda self, step: at_risk.append(step - max(made[0].complete, 0)))
    loop.train(config_for(tmp_path, num_steps=10, checkpoint_every=4), tmp_path / "run")
    assert at_risk == [1, 2, 3, 4, 5, 2, 3, 4, 5, 2]


@pytest.mark.slow
def test_the_newest_multiples_and_the_best_are_kept(tmp_path):
    losses = {2: 5.0, 4: 1.0, 6: 4.0, 8: 3.0, 10: 2.0}
    config = config_for(
        tmp_path, num_steps=12, checkpoint_every=1, evaluation__every=2, keep_checkpoints=2, keep_every=6, keep_best=2
    )

    def with_losses(config, mesh):
        steps = iter(losses)
        return load_setup(config, mesh)._replace(
            evaluate=lambda params, on_batch: {"loss": losses.get(next(steps, 0), 9.0), "seconds": 0.0}
        )

    loop.train(config, tmp_path / "run", load=with_losses)
    assert steps_in(tmp_path / "run") == [4, 6, 10, 11, 12]  # best 4 and 10, multiple of six 6 and 12, newest 11 and 12


@pytest.mark.slow
def test_a_broken_checkpoint_falls_back_to_the_one_before(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(reading, "_RETRY_SECONDS", ())
    config = config_for(tmp_path, num_steps=6, checkpoint_every=3)
    workdir = tmp_path / "run"
    loop.train(config, workdir)
    whole = load_workdir(workdir)
    array = max((workdir / "checkpoints" / "6" / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    torn = bytearray(array.read_bytes())
    for i in range(2000, 2064):
        torn[i] ^= 0x10
    array.write_bytes(torn)
    capfd.readouterr()
    assert load_workdir(workdir).step == 3
    assert "checkpoint 6 is broken" in capfd.readouterr().err
    loop.train(config, workdir)
    out = capfd.readouterr().out
    assert "checkpoint 6 is broken" in out
    assert "resumed from checkpoint 3" in out
    assert (workdir / "broken_checkpoints" / "6").is_dir()
    resumed = load_workdir(workdir)
    assert (resumed.step, whole.step) == (6, 6)
    chex.assert_trees_all_equal(resumed.params, whole.params)
    assert [line["step"] for line in lines_of(workdir) if "grad_norm" in line] == list(range(1, 7))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax leaves coroutines behind
def test_without_a_readable_checkpoint_nothing_begins_and_nothing_is_moved(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_RETRY_SECONDS", ())
    config = config_for(tmp_path, num_steps=4, checkpoint_every=1)
    loop.train(config, tmp_path / "run")
    kept = steps_in(tmp_path / "run")
    for step in kept:  # cut short, as by a dying machine, or gone
        for file in (tmp_path / "run" / "checkpoints" / str(step)).rglob("d/*"):
            file.write_bytes(file.read_bytes()[:50]) if step % 2 else file.unlink()
    with pytest.raises(UserError, match=r"none of the 3 checkpoints .* can be read"):
        loop.train(config, tmp_path / "run")
    gc.collect()
    assert steps_in(tmp_path / "run") == kept == [2, 3, 4]


@pytest.mark.slow
def test_more_steps_continue_a_finished_run(tmp_path, capfd):
    config = config_for(tmp_path, num_steps=4, checkpoint_every=4)
    loop.train(config, tmp_path / "run")
    loop.train(dataclasses.replace(config, num_steps=6, seed=5), tmp_path / "run")
    out = capfd.readouterr().out
    assert "resumed from checkpoint 4" in out
    assert out.count("warning: config.seed changed since the last start: the run goes on at row") == 1
    assert lines_of(tmp_path / "run")[-1]["step"] == 6


@pytest.mark.slow
def test_steps_that_are_not_finite_stop_the_run(tmp_path):
    config = config_for(tmp_path, max_skipped_steps=3, optimizer__learning_rate=1e30, optimizer__clip_norm=0.0)
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row, up to step .*learning_rate"):
        loop.train(config, tmp_path / "run")


@pytest.mark.slow
def test_goodput_is_the_share_of_wall_time_in_steps(tmp_path):
    config = config_for(tmp_path, num_steps=200, checkpoint_every=20, evaluation__every=50)
    began = time.time()
    loop.train(config, tmp_path / "run")
    wall = time.time() - began
    first = lines_of(tmp_path / "run")[-1]
    seconds = {name: value for name, value in first.items() if name.startswith("seconds/")}
    assert sum(seconds.values()) == pytest.approx(wall, rel=0.02)
    assert first["goodput"] == pytest.approx(first["seconds/step"] / wall, rel=0.02)
    for name in ("compile", "save", "evaluate", "step"):
        assert seconds[f"seconds/{name}"] > 0


def test_a_restart_counts_the_time_between_as_down():
    former = {"step": 4, "time": 1000.0, "seconds/step": 30.0, "seconds/start": 10.0}
    watch = Stopwatch(former, began=1100.0)
    assert watch.seconds["down"] == 100.0
    assert watch.seconds["step"] == 30.0


def test_the_mean_over_a_window_weighs_predictions_and_leaves_out_what_is_not_finite():
    def step(loss: float, predictions: float, skipped: int) -> StepMetrics:
        values = dict.fromkeys(StepMetrics._fields, 0.0) | {"tokens": 10.0, "grad_norm": loss}
        values |= {"loss_sum": loss * predictions, "correct": predictions / 2, "predictions": predictions}
        values |= {"skipped_steps": skipped}
        return StepMetrics(**{name: np.float32(value) for name, value in values.items()})

    scalars = window_means([step(2.0, 30, 0), step(float("nan"), 50, 1), step(6.0, 10, 1)])
    assert scalars["loss"] == 3.0
    assert scalars["accuracy"] == 0.5
    assert scalars["tokens"] == 30
    assert (scalars["grad_norm"], scalars["skipped_steps"]) == (6.0, 1)  # of the last step


def test_the_second_interrupt_aborts(capfd):
    seen = []

    def work() -> None:
        with StopSignal(seen.append):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
            assert seen == ["SIGINT"]
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        work()
    err = capfd.readouterr().err
    assert "Ctrl-C aborts at once" in err
    assert "aborting" in err


@pytest.mark.slow
def test_a_second_ctrl_c_saves_the_last_whole_step(tmp_path, monkeypatch):
    config = config_for(tmp_path, num_steps=50, checkpoint_every=100)
    evaluate_count = []

    def impatient(step_watch):
        evaluate_count.append(1)
        if len(evaluate_count) == 7:
            raise KeyboardInterrupt  # what the second Ctrl-C raises in the main thread

    monkeypatch.setattr(loop.Watchdog, "step", impatient)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path / "run")
    assert len(steps_in(tmp_path / "run")) == 1


@pytest.mark.slow
def test_no_process_begins_a_step_before_all_have_compiled_it(tmp_path, monkeypatch):
    happened = []
    batches = loop.batches_on_mesh

    def observed(*given):
        for batch in batches(*given):
            happened.append("a batch")
            yield batch

    monkeypatch.setattr(loop.multihost, "barrier", happened.append)
    monkeypatch.setattr(loop, "batches_on_mesh", observed)
    loop.train(config_for(tmp_path, num_steps=5), tmp_path / "run")
    assert happened.index("compiling the training step") < happened.index("a batch")


@pytest.mark.slow
def test_a_checkpoint_that_fails_in_the_background_ends_the_run_before_the_next_one(tmp_path, monkeypatch):
    finalize = ocp.CheckpointManager._finalize_checkpoint

    def failing(manager, step):
        finalize(manager, step)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "_finalize_checkpoint", failing)
    with pytest.raises(UserError, match="No space left on device"):
        loop.train(config_for(tmp_path, num_steps=1000, checkpoint_every=5), tmp_path / "run")
    assert lines_of(tmp_path / "run")[-1]["step"] < 10


@pytest.mark.slow
def test_a_process_that_cannot_write_says_so_while_the_others_wait_for_it(tmp_path, monkeypatch):
    """Orbax passes a failure on after a barrier, where the others wait for this process's part."""
    released, gave_up = threading.Event(), []
    track = Tracker.set

    def join_barrier(tracker, value):
        if value is False and not released.wait(20):
            gave_up.append(tracker)
        track(tracker, value)

    def fail(checkpointer):
        if threading.current_thread().name == "save_finalize":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Tracker, "set", join_barrier)
    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", fail)
    with pytest.raises(UserError, match="No space left on device"):
        loop.train(config_for(tmp_path, num_steps=1000, checkpoint_every=5), tmp_path / "run")
    released.set()
    assert not gave_up
    assert lines_of(tmp_path / "run")[-1]["step"] < 10


@pytest.mark.parametrize("name", ["config.json", "parameters.txt"])
def test_a_disk_that_is_full_at_the_start_is_one_sentence(tmp_path, monkeypatch, name):
    write = storage.write_text

    def refusing(path, text):
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(storage, "write_text", refusing)
    with pytest.raises(UserError, match=r"run' cannot be written \(No space left on device\): .* make room"):
        loop.train(config_for(tmp_path, num_steps=5), tmp_path / "run")
