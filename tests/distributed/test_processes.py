"""Runs of several processes: they train as one, stop as one, resume on any number, and outlive the loss of any one."""

import json
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import forked
from tests.commands import start, write_tiny_config
from transnormer_jax.distributed import processes
from transnormer_jax.distributed.abort_handling import LOST
from transnormer_jax.distributed.processes import Membership
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerLLM
from transnormer_jax.start import STOPPED
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.parameters import restore_params
from transnormer_jax.training.workdir import read_config

STEPS = 12
OPTIONS = (f"--config.num_steps={STEPS}", "--config.checkpoint_every=4", "--config.evaluation.batch_size=8")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(
    config: Path, workdir: Path, *, count: int, devices: int, mesh: str = "data=-1,fsdp=2"
) -> list[forked.Program]:
    """Starts the processes of a run, each with so many CPU devices."""
    sizes = [f"--config.mesh.{size}" for size in mesh.split(",")]
    command = ["train.py", f"--config={config}", f"--workdir={workdir}", *sizes, *OPTIONS]
    return start_all(command, count=count, devices=devices)


def start_all(command: list[str], *, count: int, devices: int) -> list[forked.Program]:
    shared = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"]
    members = [[*shared, f"--process_id={i}"] for i in range(count)] if count > 1 else [[]]
    return [start(*command, *member, JAX_NUM_CPU_DEVICES=str(devices)) for member in members]


def finish(run: list[forked.Program]) -> list[tuple[int, str, str]]:
    """Waits for all; exit status, stdout and stderr of each."""
    texts = [process.communicate(timeout=280) for process in run]
    return [(process.returncode, *text) for process, text in zip(run, texts, strict=True)]


def finish_well(run: list[forked.Program], expected: int = 0) -> list[tuple[int, str, str]]:
    results = finish(run)
    assert [status for status, _, _ in results] == [expected] * len(run), "\n".join(
        text for one in results for text in one[1:]
    )
    return results


def wait_for_step(process: forked.Program, step: int) -> None:
    for line in process.lines():
        if f"step {step:>2}/{STEPS}" in line:
            return
    raise AssertionError(process.communicate(timeout=10))


def losses_of(workdir: Path) -> Iterator[tuple[int, float]]:
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        if "loss" in (scalars := json.loads(line)):
            yield scalars["step"], scalars["loss"]


def assert_same_losses(workdir: Path, expected: Path) -> None:
    """Every step stands in the log once, with the same loss."""
    (steps, ours), (_, theirs) = zip(*losses_of(workdir), strict=True), zip(*losses_of(expected), strict=True)
    assert steps == tuple(range(1, STEPS + 1))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def params_of(workdir: Path) -> list[np.ndarray]:
    task = CausalLM(TransNormerLLM(read_config(workdir).model))
    step, params = restore_params(workdir, jax.eval_shape(task.init, jax.random.key(0)))
    assert step == STEPS
    return [np.asarray(x) for x in jax.tree.leaves(params)]


def rows_read(workdir: Path) -> int:
    return json.loads((workdir / "checkpoints" / str(STEPS) / "metadata" / "metadata").read_text())["rows"]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_tiny_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def one_process(config) -> Path:
    """The run of one process with four devices."""
    workdir = config.parent / "one_process"
    finish_well(launch(config, workdir, count=1, devices=4))
    return workdir


@pytest.fixture(scope="module")
def two_processes(config) -> Path:
    """The same run by two processes with two devices each, which nothing disturbed."""
    workdir = config.parent / "two_processes"
    results = finish_well(launch(config, workdir, count=2, devices=2))
    assert "4 x cpu, 2 of them local, 2 processes on 1 host; mesh" in results[0][1]
    assert results[1][1] == ""  # only process 0 speaks
    return workdir


@pytest.fixture(scope="module")
def stopped(config) -> Path:
    """A run on eight devices of two processes, of which the second has been sent SIGTERM."""
    workdir = config.parent / "stopped"
    run = launch(config, workdir, count=2, devices=4)
    wait_for_step(run[0], 5)
    run[1].send_signal(signal.SIGTERM)
    (_, out, _), _ = finish_well(run, expected=STOPPED)
    assert "| stopped by SIGTERM on " in out
    return workdir


def last_evaluation(workdir: Path) -> dict:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "eval/loss" in line][-1]


@pytest.mark.slow
def test_two_processes_train_as_one(one_process, two_processes):
    assert_same_losses(two_processes, one_process)
    lines = [last_evaluation(workdir) for workdir in (two_processes, one_process)]
    assert lines[0]["eval/tokens"] == lines[1]["eval/tokens"]
    np.testing.assert_allclose(lines[0]["eval/loss"], lines[1]["eval/loss"], rtol=1e-6)


@pytest.mark.slow
def test_two_processes_evaluate_as_the_run_did(two_processes):
    results = finish_well(start_all(["eval.py", f"--workdir={two_processes}"], count=2, devices=2))
    said = json.loads(results[0][1].splitlines()[-1])
    last = last_evaluation(two_processes)
    assert said == json.loads((two_processes / "eval.json").read_text())
    assert said["step"] == STEPS
    assert said["loss"] == last["eval/loss"]
    assert results[1][1] == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "mesh"),
    [(1, 1, "fsdp=1"), (2, 2, "tensor=2")],
    ids=["1", "2x2"],
)
def test_a_stopped_run_resumes_on_another_number_of_devices(
    config, stopped, one_process, tmp_path, count, devices, mesh
):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    results = finish_well(launch(config, workdir, count=count, devices=devices, mesh=mesh))
    assert "resumed from checkpoint" in results[0][1]
    assert_same_losses(workdir, one_process)
    assert rows_read(workdir) == STEPS * 16


def lose(config: Path, workdir: Path, lost: int) -> None:
    """Kills one of two processes in the middle of a run, and checks how the other ends."""
    run = launch(config, workdir, count=2, devices=2)
    wait_for_step(run[0], 6)
    run[lost].kill()
    results = finish(run)
    status, _, err = results[1 - lost]
    assert results[lost][0] == -signal.SIGKILL
    assert status == LOST, err
    (sentence,) = err.splitlines()[-1:]
    assert f"process {lost} on {socket.gethostname().partition('.')[0]} was lost" in sentence
    assert "start all of them again" in sentence
    assert sum("error: " in line for line in err.splitlines()) == 1
    for word in ("Traceback", "coordination", "stack trace", "    @ "):
        assert word not in err, err


@pytest.mark.slow
def test_the_loss_of_a_process_ends_the_other(config, tmp_path):
    lose(config, tmp_path / "run", lost=1)


@pytest.mark.slow
def test_a_run_that_lost_its_first_process_resumes(config, two_processes, tmp_path):
    workdir = tmp_path / "run"
    lose(config, workdir, lost=0)
    results = finish_well(launch(config, workdir, count=2, devices=2))
    assert "resumed from checkpoint" in results[0][1]
    for a, b in zip(params_of(workdir), params_of(two_processes), strict=True):
        np.testing.assert_array_equal(a, b)


# Two processes that have met; `program` is where the second, or each, ends. Process 0 waits for the other.
MEETING = """
import os, signal, sys, time
from transnormer_jax import start
start.begin()
from transnormer_jax.distributed import multihost, processes
from transnormer_jax.distributed.processes import Membership
process = int(sys.argv[2])
with processes.joined(Membership(sys.argv[1], 2, process)):
    multihost.barrier("starting")
    {program}
    if process == 0:
        multihost.barrier("waiting")
    time.sleep(60)
"""
OOM = "RESOURCE_EXHAUSTED: out of memory while NCCL, gloo and the heartbeat of the coordination service were well"


def end_meeting(directory: Path, program: str) -> list[tuple[int, str, str]]:
    file, address = directory / "program.py", f"127.0.0.1:{free_port()}"
    file.write_text(MEETING.format(program=program))
    return finish([start(file, address, process) for process in range(2)])


@pytest.mark.slow
def test_an_error_of_its_own_is_no_loss(tmp_path):
    (status, _, waiting), (own, _, err) = end_meeting(tmp_path, f"if process == 1: raise RuntimeError({OOM!r})")
    assert own == 1, err
    assert f"RuntimeError: {OOM}" in err
    assert "Traceback" in err
    assert "lost" not in err
    assert status == LOST, waiting
    assert f"ended with an error of its own (RuntimeError: {OOM})" in waiting


@pytest.mark.slow
def test_the_same_error_everywhere_is_no_loss(tmp_path):
    for status, _, err in end_meeting(tmp_path, f"raise RuntimeError({OOM!r})"):
        assert status == 1, err
        assert f"RuntimeError: {OOM}" in err


@pytest.mark.slow
def test_a_signal_before_the_first_step_ends_all(tmp_path):
    program = "if process == 1: os.kill(os.getpid(), signal.SIGTERM)"
    (waiting, _, said), (stopped, _, err) = end_meeting(tmp_path, program)
    assert (waiting, stopped) == (STOPPED, STOPPED), (said, err)
    assert "stopped by SIGTERM before the first step; run the same command to resume" in err
    assert "was stopped by SIGTERM before the first step" in said


@pytest.mark.parametrize(
    ("membership", "words"),
    [
        (Membership(num_processes=2), ["--coordinator and --process_id missing", "all three"]),
        (Membership("host:1", 2), ["--process_id missing"]),
        (Membership("host", 2, 0), ["'host' is no address", "HOST:PORT"]),
        (Membership("host:1", 2, 2), ["--process_id=2 is not below --num_processes=2"]),
        (Membership("host:1", 2, -1), ["--process_id=-1"]),
    ],
)
def test_wrong_membership_is_refused(membership, words):
    with pytest.raises(UserError) as caught, processes.joined(membership):
        pass
    for word in words:
        assert word in str(caught.value)


def test_the_environment_fills_in_what_flags_leave_out(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match=r"\$JAX_NUM_PROCESSES is 'two'"), processes.joined():
        pass
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="--coordinator missing"), processes.joined(Membership(process_id=1)):
        pass


@pytest.mark.slow
def test_a_silent_address_is_one_sentence():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"process 0 does not answer at {address} within 1 s"):  # noqa: SIM117
        with processes.joined(Membership(address, 2, 1), timeout_seconds=1):
            pass


def test_a_port_in_use_is_one_sentence():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UserError, match="cannot listen"), processes.joined(Membership(address, 2, 0)):
            pass


def test_one_process_starts_nothing():
    with processes.joined(Membership(f"127.0.0.1:{free_port()}", 1, 0)):
        assert not jax.distributed.is_initialized()


def test_without_flags_or_a_cluster_nothing_starts(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import jax\n"
        "from transnormer_jax.distributed import processes\n"
        "with processes.joined():\n"
        "    print(jax.distributed.is_initialized(), jax.process_count())\n"
    )
    [(status, out, err)] = finish([start(program)])
    assert (status, out) == (0, "False 1\n"), err
