"""Faults at random steps: runs that are killed or told to stop, and started again until they end.

Each run trains the same small model on text made here, in one process or two. At a random moment of a random step, or
before the first one, a signal, SIGKILL or SIGTERM, goes to one of its processes, drawn too; a run that ended before
the signal came is repeated. Whoever is left must end by himself, and the same command is given again. At the end the
parameters must be those of a run that nothing disturbed, bit by bit.

    python -m benchmarks.faults --runs=30 --seed=0

Writes a JSON file. The last line on stdout is a summary in JSON.
"""

import dataclasses
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.record import main, prepare, write
from transnormer_jax.distributed.abort_handling import LOST
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerLLM
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.parameters import restore_params
from transnormer_jax.training.workdir import read_config

_ROOT = Path(__file__).resolve().parents[1]

_CONFIG = """
from transnormer_jax.training.config import default_config

def get_config():
    config = default_config(vocab_size=259, num_layers=2, model_dim=32, num_heads=2, glu_dim=48, dtype="float32")
    config.data.dataset = "plain_text"
    config.data.files = {files!r}
    config.data.documents = "line"
    config.data.held_out = 0.1
    config.data.data_dir = {data_dir!r}
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 3
    config.num_steps = {num_steps}
    config.batch_size = 32
    config.sequence_length = 256
    config.log_every = 1
    config.checkpoint_every = 10
    config.evaluation.batch_size = 4
    config.evaluation.window = 32
    return config
"""

# A process that does not end within this time after a fault hangs: more than the 300 s for which one that has just
# started waits for the others.
_PATIENCE_SECONDS = 400
# Start-up, from the first import to the first step, is the target of one fault in so many.
_STARTUP = 6
_STARTUP_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to do to how many runs.

    Attributes:
      runs: faults in all, every other one to a run of two processes.
      seed: of the steps, the moments, the signals and the victims.
      num_steps: length of a run.
    """

    runs: int = 30
    seed: int = 0
    num_steps: int = 60

    def __post_init__(self):
        if self.runs < 1 or self.num_steps < 5:
            raise UserError(f"runs is {self.runs} and num_steps {self.num_steps}: give 1 and 5 at least.")


class Process(NamedTuple):
    """One of the processes of a run, and the file that it writes to, which never blocks it."""

    process: subprocess.Popen
    log: Path


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Disturbs the runs, prints a line and writes `output` after each, and returns the summary."""
    prepare(output)
    draw = random.Random(settings.seed)
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults.") as scratch:
        config = _write_config(Path(scratch), settings.num_steps)
        expected = {}
        for count in (1, 2):
            workdir = Path(scratch) / f"undisturbed_{count}"
            _finish(_start(config, workdir, count))
            expected[count] = _parameters(workdir, settings.num_steps)
        for number in range(settings.runs):
            count = 1 + number % 2
            workdir = Path(scratch) / f"run_{number}"
            fault = None
            while fault is None:
                shutil.rmtree(workdir, ignore_errors=True)
                fault = _disturb(config, workdir, count, draw, settings.num_steps)
            row = {"run": number, "processes": count, **fault}
            found = _parameters(workdir, settings.num_steps)
            row["same_parameters"] = len(found) == len(expected[count]) and all(
                a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, expected[count], strict=True)
            )
            print(_line(row), flush=True)
            rows.append(row)
            write(output, command_line, settings, {"rows": rows, "summary": _summary(rows)})
            shutil.rmtree(workdir)
    return {"output": str(output), **_summary(rows)}


def _summary(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "runs": len(rows),
        "sigkill": sum(row["signal"] == "SIGKILL" for row in rows),
        "sigterm": sum(row["signal"] == "SIGTERM" for row in rows),
        "of_two_processes": sum(row["processes"] == 2 for row in rows),
        "before_the_first_step": sum(row["after_step"] == 0 for row in rows),
        "resumed_from_a_checkpoint": sum(row["resumed_from"] is not None for row in rows),
        "hung": sum(row["hung"] for row in rows),
        "same_parameters": sum(row["same_parameters"] for row in rows),
    }


def _disturb(config: Path, workdir: Path, count: int, draw: random.Random, num_steps: int) -> dict[str, Any] | None:
    """One run: a fault, the end of all its processes, and the same command again; None if it ended before the fault."""
    in_startup = draw.randrange(_STARTUP) == 0
    target = 0 if in_startup else draw.randrange(1, num_steps)
    delay = draw.uniform(0, _STARTUP_SECONDS if in_startup else 0.1)
    victim, kind = draw.randrange(count), draw.choice([signal.SIGKILL, signal.SIGTERM])
    run = _start(config, workdir, count)
    while _last_step(run[0].log) < target and run[0].process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    hit = all(one.process.poll() is None for one in run)
    if hit:
        run[victim].process.send_signal(kind)
    after = _last_step(run[0].log)
    results = [_end(one) for one in run]
    if not hit:
        return None
    again = _finish(_start(config, workdir, count))
    words = [line.split() for line in again.splitlines() if line.startswith("resumed from checkpoint ")]
    return {
        "signal": kind.name,
        "victim": victim,
        "after_step": after,
        "exit_statuses": [status for status, _ in results],
        "hung": any(status is None for status, _ in results),
        "told_of_the_loss": sum(status == LOST and "error: " in text for status, text in results),
        "resumed_from": int(words[0][-1]) if words else None,
    }


def _last_step(log: Path) -> int:
    """The last step that process 0 has written of; 0 before the first."""
    steps = [line for line in log.read_text().splitlines() if line.startswith("step ") and "/" in line]
    return int(steps[-1].split()[1].split("/")[0]) if steps else 0


def _line(row: dict[str, Any]) -> str:
    fault = f"{row['signal']} to process {row['victim']} of {row['processes']} after step {row['after_step']:2d}"
    end = f"exit statuses {row['exit_statuses']}, resumed from {row['resumed_from']}"
    verdict = "same parameters" if row["same_parameters"] else "OTHER PARAMETERS"
    return f"{row['run']:4d} {fault}: {end}: {verdict}"


def _write_config(directory: Path, num_steps: int) -> Path:
    corpus = directory / "corpus.txt"
    corpus.write_text("".join(f"line {i} says {i} times {i % 7} is {i * (i % 7)}\n" for i in range(400)))
    config = directory / "faults.py"
    config.write_text(_CONFIG.format(files=str(corpus), data_dir=str(directory / "datasets"), num_steps=num_steps))
    return config


def _start(config: Path, workdir: Path, count: int) -> list[Process]:
    """Starts the processes of a run, with four CPU devices in all."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(4 // count), "XLA_FLAGS": ""}
    environment["PYTHONPATH"] = str(_ROOT)
    command = [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}", "--config.mesh.fsdp=2"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    run = []
    for i in range(count):
        told = (f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}")
        arguments = [*command, *(told if count > 1 else ())]
        path = workdir.with_name(f"{workdir.name}.process_{i}.log")
        with path.open("w") as log:
            process = subprocess.Popen(arguments, cwd=_ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        run.append(Process(process, path))
    return run


def _end(one: Process) -> tuple[int | None, str]:
    """Exit status, None if the process hung and was killed, and all that it wrote."""
    status: int | None
    try:
        status = one.process.wait(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        one.process.kill()
        one.process.wait()
        status = None
    return status, one.log.read_text()


def _finish(run: list[Process]) -> str:
    """Waits for a run that must end well; returns what process 0 wrote."""
    results = [_end(one) for one in run]
    for i, (status, text) in enumerate(results):
        if status != 0:
            raise RuntimeError(f"process {i} ended with status {status}, having written:\n{text}")
    return results[0][1]


def _parameters(workdir: Path, num_steps: int) -> list[np.ndarray]:
    task = CausalLM(TransNormerLLM(read_config(workdir).model))
    step, params = restore_params(workdir, jax.eval_shape(task.init, jax.random.key(0)))
    if step != num_steps:
        raise RuntimeError(f"{workdir.name} ended at step {step} of {num_steps}")
    return [np.asarray(x) for x in jax.tree.leaves(params)]


if __name__ == "__main__":
    main("faults", Settings(), run)
