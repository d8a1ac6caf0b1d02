"""Faults at random moments: runs that are disturbed again and again, and started again until they end.

Each run trains the same small model on text made here, in one process or several, with its workdir on a disk of its own
or in a bucket. At a random moment of a random step, of the start-up or of the last evaluation, something fails:

    sigkill        one process is killed
    sigterm        one process is told to stop
    preemption     one process is told to stop, and killed a few seconds later if it has not ended
    cut_network    the cable of one host is taken out
    full_disk      the disk of the workdir has no byte left
    slow_store     the store answers slowly, for some seconds
    failing_store  the store answers nothing, breaks connections or is unavailable (503), for some seconds

Whoever is left must end by himself, or go on; then the cause is removed and the same command is given again. In the end
the parameters must be those of a run that nothing disturbed, bit by bit, and no fault may have cost more than the steps
between two checkpoints and one more.

    python -m benchmarks.faults --faults=100 --seed=0

Kinds that need root or a package that is missing are left out, and the record says so. Writes a JSON file. The last
line on stdout is a summary in JSON.
"""

import concurrent.futures
import dataclasses
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import fault_lab
from benchmarks.fault_lab import Store
from benchmarks.fault_run import IN_BUCKET, KINDS, ON_DISK, Lab, Plan, Run, Settings
from benchmarks.record import main, prepare, write

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
    config.batch_size = 16
    config.sequence_length = 256
    config.log_every = 1
    config.checkpoint_every = {checkpoint_every}
    config.evaluation.every = {evaluate_every}
    config.evaluation.batch_size = 4
    config.evaluation.window = 32
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
"""

_FAILURES = 5  # of runs, after which no other begins


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Disturbs the runs, prints a line for each fault, writes `output` after each run, and returns the summary."""
    prepare(output)
    left_out = left_out_kinds(settings)
    scratch = Path(tempfile.mkdtemp(prefix="faults."))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _abort)
    _share_compiled_programs(scratch)
    store = Store(scratch / "store.log") if "slow_store" not in left_out else None
    try:
        if store:
            os.environ.update(fault_lab.store_environment(store.port))
        lab = Lab(scratch, _write_config(scratch, settings), store, networks="cut_network" not in left_out)
        for count in dict.fromkeys(settings.processes):
            _measure_undisturbed(lab, settings, count)
        content = _disturb_all(lab, settings, left_out, output, command_line)
    finally:
        if store:
            store.close()
    if content["failures"] or content["summary"]["with_problems"]:
        print(f"what the processes wrote is in {scratch}", file=sys.stderr)
    else:
        shutil.rmtree(scratch)
    return {"output": str(output), **content["summary"]}


def left_out_kinds(settings: Settings) -> dict[str, str]:
    """Kinds that this machine cannot make, or that are not wanted -> why."""
    needs = {
        "cut_network": fault_lab.missing_for_networks(),
        "full_disk": fault_lab.missing_for_disks(),
        "slow_store": fault_lab.missing_for_store(),
        "failing_store": fault_lab.missing_for_store(),
    }
    unwanted = {kind: "not among --kinds" for kind in KINDS if kind not in settings.kinds}
    return {kind: missing for kind, missing in needs.items() if missing} | unwanted


def plans(settings: Settings, possible: Sequence[str]) -> Iterator[Plan]:
    """Runs without end: every other round over the numbers of processes is in the bucket, where there is one."""
    draw = random.Random(settings.seed)
    on_disk = [kind for kind in ON_DISK if kind in possible]
    in_bucket = [kind for kind in IN_BUCKET if kind in possible]
    has_bucket, needs_disk = set(in_bucket) - set(on_disk), set(on_disk) - set(in_bucket)
    for number in itertools.count():
        turn, i = divmod(number, len(settings.processes))
        count = settings.processes[i]
        bucket = bool(has_bucket) and (turn % 2 == 1 or not (on_disk and (needs_disk or not has_bucket)))
        kinds = [kind for kind in (in_bucket if bucket else on_disk) if kind != "cut_network" or count > 1]
        rounds = -(-settings.faults_per_run // max(len(kinds), 1))
        deck = [kind for _ in range(rounds) for kind in draw.sample(kinds, len(kinds))]
        if deck:
            yield Plan(number, count, bucket, tuple(deck[: settings.faults_per_run]))


def summary(rows: Sequence[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """Counts over all faults."""
    bound = settings.checkpoint_every + 1
    return {
        "faults": len(rows),
        "runs": len({row["run"] for row in rows}),
        "by_kind": dict(sorted(Counter(row["kind"] for row in rows).items())),
        "by_processes": {str(n): count for n, count in sorted(Counter(row["processes"] for row in rows).items())},
        "in_bucket": sum(row["in_bucket"] for row in rows),
        "during_startup": sum(row["during_startup"] for row in rows),
        "survived_without_restart": sum(row["survived"] for row in rows),
        "hung": sum(row["hung"] for row in rows),
        "same_parameters": sum(row["same_parameters"] for row in rows),  # of the runs of so many faults
        "steps_lost_at_most": max((row["steps_lost"] or 0 for row in rows), default=0),
        "steps_lost_bound": bound,
        "over_the_bound": sum((row["steps_lost"] or 0) > bound for row in rows),
        "with_problems": sum(bool(row["problems"]) for row in rows),
    }


def _disturb_all(
    lab: Lab, settings: Settings, left_out: dict[str, str], output: Path, command_line: str
) -> dict[str, Any]:
    possible = [kind for kind in KINDS if kind not in left_out]
    waiting = plans(settings, possible)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    lock, begun = threading.Lock(), 0
    start = time.monotonic()

    def content() -> dict[str, Any]:
        ordered = sorted(rows, key=lambda row: (row["run"], row["attempt"]))
        seconds = round(time.monotonic() - start)
        counts = summary(ordered, settings)
        return {"left_out": left_out, "rows": ordered, "failures": failures, "seconds": seconds, "summary": counts}

    def take() -> Plan | None:
        """The next run, with as many faults as are left; faults that did not come in time are left again."""
        nonlocal begun
        with lock:
            wanted = min(settings.faults_per_run, settings.faults - begun)
            if wanted <= 0 or len(failures) > _FAILURES:
                return None
            begun += wanted
            plan = next(waiting)
            return dataclasses.replace(plan, kinds=plan.kinds[:wanted])

    def work() -> None:
        nonlocal begun
        while (plan := take()) is not None:
            one = Run(lab, settings, plan)
            found = one.disturb()
            with lock:
                begun -= len(plan.kinds) - len(found)
                rows.extend(found)
                if one.failure:
                    failures.append(f"run {plan.number}, {plan.processes} processes: {one.failure}")
                for line in [*map(_line, found), *failures[len(failures) - bool(one.failure) :]]:
                    print(line, flush=True)
                write(output, command_line, settings, content())

    with concurrent.futures.ThreadPoolExecutor(settings.lanes) as pool:
        for one in [pool.submit(work) for _ in range(settings.lanes)]:
            one.result()
    return content()


def _line(row: dict[str, Any]) -> str:
    place = "bucket" if row["in_bucket"] else "disk"
    when = "in start-up" if row["during_startup"] else f"after step {row['after_step']}"
    lost = "?" if row["steps_lost"] is None else row["steps_lost"]
    end = "went on" if row["survived"] else f"exit statuses {row['exit_statuses']}"
    verdict = "; ".join([*row["problems"], "same parameters" if row["same_parameters"] else "OTHER OR NO PARAMETERS"])
    return (
        f"run {row['run']:2d} ({row['processes']} processes, {place}) {row['detail']} {when}: {end} within "
        f"{row['seconds_to_end']:.1f} s, {lost} steps lost: {verdict}"
    )


def _measure_undisturbed(lab: Lab, settings: Settings, count: int) -> None:
    """Trains twice: the first run compiles what all others find, the second is timed."""
    plan = Plan(0, count, in_bucket=False, kinds=())
    for name in ("compiles", "undisturbed"):
        found = Run(lab, settings, plan, f"{name}_{count}").undisturbed()
        lab.startup_seconds[count], lab.step_seconds[count], lab.expected[count] = found
    print(f"{count} processes: first step after {found[0]:.1f} s, then {found[1]:.3f} s a step", flush=True)


def _write_config(directory: Path, settings: Settings) -> Path:
    corpus = directory / "corpus.txt"
    corpus.write_text("".join(f"line {i} says {i} times {i % 7} is {i * (i % 7)}\n" for i in range(400)))
    config = directory / "faults_config.py"
    values = {"num_steps": settings.num_steps, "checkpoint_every": settings.checkpoint_every}
    values |= {"files": str(corpus), "data_dir": str(directory / "datasets")}
    values["evaluate_every"] = max(settings.num_steps // 3, 1)
    config.write_text(_CONFIG.format(**values))
    return config


def _abort(number: int, _: object) -> None:
    """Leaves no namespace, disk or server behind; the processes end with this one."""
    fault_lab.close_all()
    os._exit(128 + number)


def _share_compiled_programs(scratch: Path) -> None:
    """Restarts find what the first start has compiled; read by JAX at its import in the server of forks."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(scratch / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # programs are lowered quicker


if __name__ == "__main__":
    main("faults", Settings(), run)
