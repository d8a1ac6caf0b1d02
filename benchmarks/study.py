"""The papers' comparisons at a budget of minutes: a table of variants, trained alike but for a word of the config.

    python -m benchmarks.study --name=duplication
    python -m benchmarks.study --name=masked_lm --data=DIR --jobs=2

Every variant is a run of `train.py` in a process of its own. Run again, the command resumes: what has ended is not run
again, and what was interrupted goes on. A variant that fails is reported with its message, the others go on.

DIR holds the data of all studies; each one's `files` in `benchmarks/studies.py` says where:
`enwiki2015_first100M.txt.xz` for masked_lm and both ablations, `an4_mfcc/an4/` for an4, the four IDX files for mnist.
duplication makes its own data.

Budgets are for one CPU core and some minutes a variant; on better hardware --overrides=num_steps=30000,batch_size=128
raises them (a value with a comma in it cannot be given so). Writes study_NAME.json and a plot of the curves.
"""

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

import jax

from benchmarks.common import ROOT, Panel, Record, describe_versions, last_error_line, main, tree_size
from benchmarks.studies import STUDIES, Study
from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.training.setup import make_task
from transnormer_jax.training.workdir import read_config

_ENVIRONMENT = "environment.json"

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run, and how.

    Attributes:
      name: of the study.
      data: the directory of all data, for studies with files.
      jobs: variants side by side; each takes its share of the cores.
      runs: where the workdirs are.
      overrides: KEY=VALUE of the config, for all variants, over what the study says.
    """

    name: str = "duplication"
    data: str = ""
    jobs: int = 1
    runs: str = "runs/studies"
    overrides: tuple[str, ...] = ()

    def __post_init__(self):
        if self.name not in STUDIES:
            raise UserError(f"unknown study {self.name!r}: {did_you_mean(self.name, STUDIES)}")
        for override in self.overrides:
            if "=" not in override:
                raise UserError(f"override {override!r} has no value: give KEY=VALUE.")


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run: a config file, with overrides, in a workdir."""

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
        # As one would type it: a record says nothing of where the repository is.
        return shlex.join(["python", *self.command]).replace(f"{Path.cwd()}/", "")


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Trains the variants of the study that the settings name, prints a table, and returns the summary."""
    return run_study(STUDIES[settings.name], settings, record)


def run_study(study: Study, settings: Settings, record: Record) -> dict[str, Any]:
    """Trains all variants, prints the table, records and plots.

    Raises:
      UserError: the data are not there, or there are fewer cores than jobs.
    """
    record.name = f"study_{study.name}"
    more = _data_overrides(study, settings.data) | dict(x.split("=", 1) for x in settings.overrides)
    runs = Path(settings.runs) / study.name
    jobs = [
        make_job(label, variant.config or study.config, study.overrides(variant) | more, runs)
        for label, variant in study.variants.items()
    ]
    rows = run_jobs(jobs, settings.jobs)
    for job, row in zip(jobs, rows, strict=True):
        row["published"] = study.variants[job.label].published
        if "failed" not in row:
            # JAX starts here: before, it would hold memory of an accelerator that the runs need.
            config = read_config(job.workdir)
            shapes = jax.eval_shape(make_task(config).init, jax.random.key(0))
            row |= {"parameters": tree_size(shapes), "seed": config.seed, "batch_size": config.batch_size}
            values = [line[study.metric] for line in row["evaluations"]]
            row |= {"final": values[-1], "best": max(values) if study.higher_is_better else min(values)}
        shown = ("parameters", "steps", "final", "best", "published", "training_seconds", "failed")
        print(job.label, {name: row[name] for name in shown if row.get(name) is not None}, flush=True)
    record.write(
        study=study.name,
        metric=study.metric,
        higher_is_better=study.higher_is_better,
        published=study.published,
        reduced=study.reduced,
        references=dict(study.references),
        rows=rows,
    )
    curves = (("training", "training", "loss", "loss, nats"), ("held out", "evaluations", study.metric, study.metric))
    panels = [
        Panel(
            title,
            ylabel,
            {row["variant"]: [(line["step"], line[name]) for line in row[lines]] for row in rows},
            log=False,
            style="-",
        )
        for title, lines, name, ylabel in curves
    ]
    record.plot(panels, title=study.name, xlabel="step")
    return {
        "metric": study.metric,
        "final": {row["variant"]: round(row["final"], 4) for row in rows if "final" in row},
        "failed": {row["variant"]: row["failed"] for row in rows if "failed" in row},
    }


def make_job(label: str, config: str, overrides: Mapping[str, Any], runs: Path) -> Job:
    """The workdir's name holds a hash of all that the run depends on: another budget is another run."""
    path = ROOT / config
    values = runpy.run_path(str(path))["get_config"]().to_dict()
    identity = json.dumps([values, dict(overrides)], sort_keys=True, default=str)
    name = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
    return Job(label, path, overrides, runs.absolute() / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}")


def run_jobs(jobs: Sequence[Job], at_once: int) -> list[Row]:
    """Runs what has not ended yet, `at_once` side by side, and returns what `read_row` says, in the order of `jobs`.

    Raises:
      UserError: there are fewer cores than `at_once`.
    """
    shares: queue.Queue[list[int]] = queue.Queue()
    for share in core_shares(at_once):
        shares.put(share)

    def run(job: Job) -> Row:
        share = shares.get()
        try:
            return _run(job, share)
        finally:
            shares.put(share)

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def core_shares(count: int) -> list[list[int]]:
    """The cores that this process may use, dealt to `count` runs; empty lists where they cannot be assigned.

    Raises:
      UserError: there are too few.
    """
    assignable = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = sorted(os.sched_getaffinity(0)) if assignable else list(range(os.cpu_count() or 1))
    if not 1 <= count <= len(cores):
        raise UserError(f"jobs is {count}: give 1 to {len(cores)}, the number of cores.")
    return [cores[i::count] if assignable else [] for i in range(count)]


def read_row(job: Job) -> Row:
    """What a run left in its workdir; without an evaluation after its last step it has "failed".

    Seconds are those of training steps, resumed or not, without compilation and evaluation.
    """
    row: Row = {"variant": job.label, "command": str(job), "evaluations": [], "training": []}
    path, config = job.workdir / "metrics.jsonl", job.workdir / "config.json"
    if not (path.is_file() and config.is_file()):
        return row | {"failed": "nothing was written"}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    row["training"] = [{"step": line["step"], "loss": line["loss"]} for line in lines if "loss" in line]
    row["evaluations"] = [
        {name.removeprefix("eval/"): value for name, value in line.items()} for line in lines if "eval/loss" in line
    ]
    previous, seconds = 0, 0.0
    for line in lines:
        if "loss" in line:
            seconds += line["seconds_per_step"] * (line["step"] - previous)
            previous = line["step"]
    read = json.loads(config.read_text())
    environment = job.workdir / _ENVIRONMENT
    made = json.loads(environment.read_text()) if environment.is_file() else {}
    row |= {"steps": read["num_steps"], "training_seconds": round(seconds, 1), "made": made}
    if not row["evaluations"] or row["evaluations"][-1]["step"] != read["num_steps"]:
        return row | {"failed": f"it stopped before step {read['num_steps']}"}
    return row


def _run(job: Job, cores: list[int]) -> Row:
    if "failed" not in (row := read_row(job)):
        print(f"{job.label}: already run, in {job.workdir}", flush=True)
        return row
    job.workdir.mkdir(parents=True, exist_ok=True)
    log = job.workdir / "train.log"
    print(f"{job.label}: training; see {log}", flush=True)
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, *job.command], cwd=ROOT, env=_environment(cores), stdout=output, stderr=subprocess.STDOUT
        )
        if cores:
            os.sched_setaffinity(process.pid, cores)
        status = process.wait()
    if status:
        return read_row(job) | {"failed": _message(log.read_text(), status)}
    (job.workdir / _ENVIRONMENT).write_text(json.dumps(describe_versions()))
    return read_row(job)


def _environment(cores: list[int]) -> dict[str, str]:
    if len(cores) != 1:
        return dict(os.environ)
    # On one core, a pool of threads would only get in its own way.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    return os.environ | {"XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"}


def _message(log: str, status: int) -> str:
    """The sentence of a UserError, or the last line of a traceback."""
    said = [line for line in log.splitlines() if line.startswith("error: ")]
    return last_error_line("\n".join(said) or log, status).removeprefix("error: ")


def _data_overrides(study: Study, data: str) -> dict[str, str]:
    if not study.files:
        return {}
    if not data:
        raise UserError(f"study {study.name!r} needs data: give the directory as --data; --help says what it holds.")
    files = Path(data) / study.files
    if not files.exists():
        raise UserError(f"study {study.name!r} needs {str(files)!r}: put it there, or give another --data.")
    return {"data.files": str(files.absolute())}


if __name__ == "__main__":
    main("study", Settings(), run)
