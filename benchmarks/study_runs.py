"""Trains the variants of a study with `train.py`, each in a process of its own on its share of the cores."""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import queue
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_versions
from benchmarks.processes import last_words
from transnormer_jax.errors import UserError

_ROOT = Path(__file__).resolve().parents[1]
_ENVIRONMENT = "environment.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
      label: of the variant.
      config: its file.
      overrides: keys of the config -> values.
      workdir: of the run.
    """

    label: str
    config: Path
    overrides: Mapping[str, Any]
    workdir: Path

    @property
    def command(self) -> list[str]:
        """What is run, without the interpreter."""
        overrides = [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return ["train.py", f"--config={self.config}", f"--workdir={self.workdir}", *overrides]

    def __str__(self) -> str:
        # As one would type it: a record says nothing of where the repository lies.
        return shlex.join(["python", *self.command]).replace(f"{Path.cwd()}/", "")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run left in its workdir.

    Attributes:
      training: lines of the training step, in order: `step`, `loss` and more.
      evaluations: lines of evaluations, in order: `step`, and figures without "eval/".
      seconds: spent in training steps, resumed or not; compilation and evaluation are not counted.
      failed: why it did not end, or None.
      made: versions and date of its end: a study that is resumed finds runs of long ago.
    """

    training: Sequence[Mapping[str, float]]
    evaluations: Sequence[Mapping[str, float]]
    seconds: float
    failed: str | None = None
    made: Mapping[str, str] = dataclasses.field(default_factory=dict)


def make_job(label: str, config: str, overrides: Mapping[str, Any], runs: Path) -> Job:
    """The workdir's name holds a hash of all that the run depends on: another budget is another run."""
    path = _ROOT / config
    values = runpy.run_path(str(path))["get_config"]().to_dict()
    identity = json.dumps([values, dict(overrides)], sort_keys=True, default=str)
    name = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
    workdir = runs.absolute() / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    return Job(label, path, overrides, workdir)


def run_jobs(jobs: Sequence[Job], at_once: int) -> dict[str, Result]:
    """Runs what has not ended yet, `at_once` side by side, and returns the results by label, in the order of `jobs`.

    Raises:
      UserError: there are fewer cores than `at_once`.
    """
    shares: queue.Queue[list[int]] = queue.Queue()
    for share in core_shares(at_once):
        shares.put(share)

    def run(job: Job) -> Result:
        share = shares.get()
        try:
            return _run(job, share)
        finally:
            shares.put(share)

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        futures = {job.label: pool.submit(run, job) for job in jobs}
        try:
            return {label: future.result() for label, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def core_shares(count: int) -> list[list[int]]:
    """The cores that this process may use, dealt to `count` runs; empty lists where they cannot be assigned.

    Raises:
      UserError: there are too few.
    """
    if count < 1 or count > (os.cpu_count() or 1):
        raise UserError(f"jobs is {count}: give 1 to {os.cpu_count()}, the number of cores.")
    if not hasattr(os, "sched_getaffinity"):  # not on macOS
        return [[] for _ in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise UserError(f"jobs is {count}: give 1 to {len(cores)}, the number of cores that this process may use.")
    return [cores[i::count] for i in range(count)]


def read_result(workdir: Path) -> Result:
    """Reads `metrics.jsonl`; a run without an evaluation after its last step has failed."""
    path, config = workdir / "metrics.jsonl", workdir / "config.json"
    if not (path.is_file() and config.is_file()):
        return Result([], [], 0.0, "nothing was written")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    evaluations = [
        {name.removeprefix("eval/"): value for name, value in line.items()} for line in lines if "eval/loss" in line
    ]
    previous, seconds = 0, 0.0
    for line in training:
        seconds += line["seconds_per_step"] * (line["step"] - previous)
        previous = line["step"]
    num_steps = json.loads(config.read_text())["num_steps"]
    ended = bool(evaluations) and evaluations[-1]["step"] == num_steps
    failed = None if ended else f"it stopped before step {num_steps}"
    environment = workdir / _ENVIRONMENT
    made = json.loads(environment.read_text()) if environment.is_file() else {}
    return Result(training, evaluations, seconds, failed, made)


def _run(job: Job, cores: list[int]) -> Result:
    if (result := read_result(job.workdir)).failed is None:
        print(f"{job.label}: already run, in {job.workdir}", flush=True)
        return result
    job.workdir.mkdir(parents=True, exist_ok=True)
    log = job.workdir / "train.log"
    print(f"{job.label}: training; see {log}", flush=True)
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, *job.command], cwd=_ROOT, env=_environment(cores), stdout=output, stderr=subprocess.STDOUT
        )
        if cores:
            os.sched_setaffinity(process.pid, cores)
        status = process.wait()
    (job.workdir / _ENVIRONMENT).write_text(json.dumps(describe_versions()))
    result = read_result(job.workdir)
    if status:
        return dataclasses.replace(result, failed=_message(log.read_text(), status))
    return result


def _environment(cores: list[int]) -> dict[str, str]:
    if len(cores) != 1:
        return dict(os.environ)
    # On one core, a pool of threads would only get in its own way.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    return os.environ | {"XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"}


def _message(log: str, status: int) -> str:
    """The sentence of a UserError, or the last line of a traceback."""
    said = [line for line in log.splitlines() if line.startswith("error: ")]
    return last_words("\n".join(said) or log, status).removeprefix("error: ")
