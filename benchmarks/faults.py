"""Faults at random moments: runs that are disturbed again and again, and started again until they end.

Each run trains the same small model on text made here, in one process or several, with its workdir on a disk of its own
or in a bucket. At a random moment of a random step, of the start-up or of the last evaluation, something fails:

    sigkill        one process is killed
    sigterm        one process is asked to stop
    preemption     one process is asked to stop, and killed a few seconds later if it has not ended
    cut_network    the cable of one host is taken out
    full_disk      the disk of the workdir has no byte left
    slow_store     the store answers slowly, for some seconds
    failing_store  the store answers nothing, breaks connections or is unavailable (503), for some seconds

The processes that are left must end by themselves, or go on; then the cause is removed and the same command is given
again. In the end the parameters must be those of a run that nothing disturbed, bit by bit, and no fault may have cost
more than the steps between two checkpoints and one more.

    python -m benchmarks.faults --faults=100 --seed=0

Kinds that need root or a package that is missing (`fault_lab.py`) are left out, and the record says so.
"""

import dataclasses
import itertools
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import fault_lab
from benchmarks.common import Record, check_known, check_positive, main
from benchmarks.fault_lab import Disk, Network, Process, Proxy, Store
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerLLM
from transnormer_jax.storage import as_path
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.parameters import restore_params
from transnormer_jax.training.workdir import read_config

_DEVICES = 4  # of a run, divided among its processes
ON_DISK = ("sigkill", "sigterm", "preemption", "cut_network", "full_disk")
IN_BUCKET = ("sigkill", "sigterm", "preemption", "slow_store", "failing_store")
KINDS = tuple(dict.fromkeys(ON_DISK + IN_BUCKET))

# One fault in so many is at any time of a run, start-up included; the others come up to so many seconds after a step.
_STARTUP = 6
_AFTER_STEP_SECONDS = 0.5
# A process that does not end within this time after a fault hangs: a lost host is noticed after 30 s.
_PATIENCE_SECONDS = 120.0
# Processes that have not met wait for each other for minutes; here a scheduler tells them to end, as Slurm does.
_SCHEDULER_SECONDS = 15.0
_ATTEMPT_SECONDS = 300.0  # of an undisturbed attempt
_DISK_MEGABYTES = 64
_FAILURES = 5  # of runs, after which no other begins

# Exit statuses of train.py.
_DONE, _USER_ERROR, _LOST, _STOPPED = 0, 2, 3, 75

Row = dict[str, Any]

_CONFIG = """
from transnormer_jax.training.config import default_config

def get_config():
    config = default_config(vocab_size=259, num_layers=2, model_dim=32, num_heads=2, glu_dim=48, dtype="float32")
    config.data.dataset, config.data.documents, config.data.held_out = "plain_text", "line", 0.1
    config.data.files, config.data.data_dir = {files!r}, {data_dir!r}
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-2, 3
    config.num_steps, config.checkpoint_every, config.log_every = {num_steps}, {checkpoint_every}, 1
    config.batch_size, config.sequence_length = 16, 256
    config.evaluation.every, config.evaluation.batch_size, config.evaluation.window = {evaluate_every}, 4, 32
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to do to how many runs.

    Attributes:
      faults: in all.
      faults_per_run: one after another.
      processes: of a run, taken in turn.
      kinds: of faults, of those that this machine can make.
      num_steps: length of a run.
      checkpoint_every: steps between two checkpoints.
      seed: of the kinds, the steps, the moments and the victims.
    """

    faults: int = 100
    faults_per_run: int = 5
    processes: tuple[int, ...] = (1, 2, 4)
    kinds: tuple[str, ...] = KINDS
    num_steps: int = 60
    checkpoint_every: int = 5
    seed: int = 0

    def __post_init__(self):
        check_positive(dataclasses.replace(self, seed=1) if self.seed == 0 else self)
        check_known("kinds", self.kinds, KINDS)
        if any(_DEVICES % count for count in self.processes):
            raise UserError(f"processes is {self.processes}: each must divide {_DEVICES} devices.")


@dataclasses.dataclass(frozen=True)
class Plan:
    """One run: its number, its processes, whether its workdir is in the bucket, and the kinds of its faults."""

    number: int
    processes: int
    in_bucket: bool
    kinds: tuple[str, ...]


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Disturbs the runs, prints a line for each fault, records after each run, and returns the summary."""
    left_out = {kind: "not among --kinds" for kind in KINDS if kind not in settings.kinds} | fault_lab.missing()
    scratch = Path(tempfile.mkdtemp(prefix="faults."))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _abort)
    rows, failures, undisturbed = list[Row](), list[str](), dict[int, tuple[float, list[np.ndarray]]]()
    try:
        store = None if "slow_store" in left_out else Store(scratch / "store.log")
        if store:
            os.environ.update(fault_lab.store_environment(store.port))
        write_config(scratch, settings)
        for count in dict.fromkeys(settings.processes):
            for name in ("compiles", "undisturbed"):  # what the first compiles all others find; the second is timed
                with Run(Plan(0, count, False, ()), settings, scratch, None, name=f"{name}_{count}") as one:
                    begin = time.monotonic()
                    one.disturb()
                    undisturbed[count] = time.monotonic() - begin, one.parameters()
            print(f"{count} processes: {undisturbed[count][0]:.1f} s undisturbed", flush=True)
        for plan in plans(settings, [kind for kind in KINDS if kind not in left_out]):
            if len(rows) >= settings.faults or len(failures) > _FAILURES:
                break
            plan = dataclasses.replace(plan, kinds=plan.kinds[: settings.faults - len(rows)])
            seconds, expected = undisturbed[plan.processes]
            failure = ""
            with Run(plan, settings, scratch, store, seconds) as one:
                try:
                    one.disturb()
                    if not all(map(np.array_equal, one.parameters(), expected)):
                        failure = "OTHER PARAMETERS"
                except Exception as error:
                    failure = f"{type(error).__name__}: {error}"
            for row in one.rows:
                row["same_parameters"] = not failure
                print(row, flush=True)
            rows += one.rows
            if failure:
                failures.append(f"run {plan.number}, {plan.processes} processes: {failure}")
                print(failures[-1], flush=True)
            record.write(left_out=left_out, rows=rows, failures=failures, summary=summarize(rows, settings))
    finally:
        fault_lab.close_all()
    counts = summarize(rows, settings)
    if failures or counts["with_problems"]:
        print(f"what the processes wrote is in {scratch}", file=sys.stderr)
    else:
        shutil.rmtree(scratch)
    return counts


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


def summarize(rows: Sequence[Row], settings: Settings) -> dict[str, Any]:
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


class Run:
    """A run in its own directory: it is started, a fault is made, it ends or goes on, and is started again until done.

    Attributes:
      rows: what became of each fault.
    """

    def __init__(
        self, plan: Plan, settings: Settings, scratch: Path, store: Store | None, seconds: float = 0.0, name: str = ""
    ):
        """Makes its disk, or a proxy before the store, and its network.

        Args:
          plan: of the run.
          settings: of the benchmark.
          scratch: the directory of all runs, with the file of `write_config`.
          store: for a plan in the bucket.
          seconds: that an undisturbed run takes.
          name: of its directory; "" takes the plan's number.
        """
        self.rows, self._reached = list[Row](), 0
        self._plan, self._settings, self._scratch, self._seconds = plan, settings, scratch, seconds
        self._draw = random.Random(f"{settings.seed} {plan.number}")
        self._directory = scratch / (name or f"run_{plan.number}")
        self._directory.mkdir()
        self._network = self._disk = self._proxy = None
        missing = fault_lab.missing()
        if plan.in_bucket and store:
            self._proxy = Proxy(store.port)  # on this machine, which hosts of a network do not see
        else:
            if plan.processes > 1 and "cut_network" not in missing:
                self._network = Network(plan.processes)
            if "full_disk" not in missing:
                self._disk = Disk(self._directory / "disk", _DISK_MEGABYTES)
        self.workdir = f"gs://faults/{self._directory.name}" if plan.in_bucket else f"{self._directory}/disk/workdir"

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        for one in (self._proxy, self._network, self._disk):
            if one:
                one.close()

    def disturb(self) -> None:
        """Makes all faults of the plan that come before the run has ended, and lets it end.

        Raises:
          RuntimeError: an attempt ends badly without a fault, or resumes from too early a checkpoint.
        """
        kinds = list(self._plan.kinds)
        complete = 0
        for attempt in itertools.count(1):
            processes = self._start(attempt)
            try:
                own = self._attempt(attempt, processes, kinds)
            finally:
                for one in processes:
                    one.close()
            # What the faults of earlier attempts cost is known now that this one has resumed.
            text, last = processes[0].text, processes[0].last_step()
            found = re.findall(r"resumed from checkpoint (\d+)", text)
            resumed = int(found[-1]) if found else 0 if last else None
            if resumed is not None:
                for row in self.rows:
                    if row["steps_lost"] is None:
                        row["steps_lost"] = max(0, self._reached - resumed)
                        row["problems"] += cost_problems(row, self._settings)
                if resumed < complete:
                    raise RuntimeError(f"resumed from checkpoint {resumed}, though {complete} was complete")
                self._reached = max(last, resumed)
            complete = max([complete, *map(int, re.findall(r"checkpoint (\d+) is complete", text))])
            done = all(one.status == _DONE for one in processes) and "stopped by " not in text
            for row in own:
                # An attempt that did not begin has nothing to lose.
                row["steps_lost"] = 0 if row["survived"] or done or resumed is None else None
                if done:
                    row["problems"] = [problem for problem in row["problems"] if "exit statuses" not in problem]
            self.rows += own
            if done:
                return

    def parameters(self) -> list[np.ndarray]:
        """Those of the last checkpoint.

        Raises:
          RuntimeError: it is not of the last step.
        """
        path = as_path(self.workdir)
        task = CausalLM(TransNormerLLM(read_config(path).model))
        step, params = restore_params(path, jax.eval_shape(task.init, jax.random.key(0)))
        if step != self._settings.num_steps:
            raise RuntimeError(f"ended at step {step} of {self._settings.num_steps}")
        return [np.asarray(x) for x in jax.tree.leaves(params)]

    def _attempt(self, attempt: int, processes: list[Process], kinds: list[str]) -> list[Row]:
        """Takes faults from `kinds` until one ends the processes, or they end by themselves; a row for each fault."""
        rows = list[Row]()
        while kinds:
            self._await_moment(processes)
            if any(one.status is not None for one in processes):
                break
            rows.append({"run": self._plan.number, "attempt": attempt, **self._fault(kinds.pop(0), processes)})
            if not rows[-1]["survived"]:
                return rows
        fault_lab.wait(processes, _ATTEMPT_SECONDS, at_first=False)
        statuses = [one.status for one in processes]
        if any(status != _DONE for status in statuses):
            if not rows:
                said = "; ".join(_last_sentence(one.text) for one in processes)
                raise RuntimeError(f"attempt {attempt} was left alone and ended with statuses {statuses}: {said}")
            self._settle(rows[-1], processes, survived=False)  # of the fault that it seemed to survive
        return rows

    def _await_moment(self, processes: list[Process]) -> None:
        """Waits for the moment of the next fault, or until a process ends."""
        if self._draw.randrange(_STARTUP) == 0:
            fault_lab.wait(processes, self._draw.uniform(0, self._seconds))
            return
        gap = 2 * self._settings.num_steps // (self._settings.faults_per_run + 1)
        reached = max(self._reached, processes[0].last_step())
        target = min(reached + self._draw.randint(1, max(gap, 1)), self._settings.num_steps)
        while processes[0].last_step() < target and all(one.status is None for one in processes):
            time.sleep(0.01)
        fault_lab.wait(processes, self._draw.uniform(0, _AFTER_STEP_SECONDS))

    def _fault(self, kind: str, processes: list[Process]) -> Row:
        """Makes a fault, waits for what becomes of it, and removes its cause."""
        victim, after = self._draw.randrange(len(processes)), processes[0].last_step()
        startup = after == 0 and not any("compiled the training step" in one.text for one in processes)
        begin = time.monotonic()
        detail, heals = self._make(kind, victim, processes)
        if not heals:
            if startup:  # Those that have not met wait for each other for minutes.
                fault_lab.wait(processes, _SCHEDULER_SECONDS, at_first=False)
                for one in processes:
                    one.send_signal(signal.SIGTERM)
            fault_lab.wait(processes, _PATIENCE_SECONDS, at_first=False)
        elif any(one.status not in (None, _DONE) for one in processes):
            fault_lab.wait(processes, _PATIENCE_SECONDS, at_first=False)
        row = {
            "processes": len(processes),
            "in_bucket": self._plan.in_bucket,
            "kind": kind,
            "detail": detail,
            "victim": victim,
            "during_startup": startup,
            "after_step": after,
            "at_the_end": after == self._settings.num_steps,
            "seconds_to_end": round(time.monotonic() - begin, 1),
        }
        self._settle(row, processes, heals and all(one.status in (None, _DONE) for one in processes))
        if self._network:
            self._network.mend()
        if self._disk:
            self._disk.free()
        return row

    def _settle(self, row: Row, processes: list[Process], survived: bool) -> None:
        """Writes down what became of a fault."""
        statuses = [one.status for one in processes]
        row |= {"exit_statuses": statuses, "survived": survived, "hung": not survived and None in statuses}
        row["steps_lost"] = None
        row["sentences"] = [_last_sentence(one.text) for one in processes]
        row["problems"] = problems_of(row, [one.text for one in processes])

    def _make(self, kind: str, victim: int, processes: list[Process]) -> tuple[str, bool]:
        """The fault in words, and whether its cause goes away by itself, as it has when this returns."""
        whose = f"of process {victim}"
        if kind == "sigkill":
            processes[victim].send_signal(signal.SIGKILL)
            return f"SIGKILL {whose}", False
        if kind == "sigterm":
            processes[victim].send_signal(signal.SIGTERM)
            return f"SIGTERM {whose}", False
        if kind == "preemption":
            grace = round(self._draw.uniform(0.2, 5), 1)
            processes[victim].send_signal(signal.SIGTERM)
            fault_lab.wait([processes[victim]], grace)
            processes[victim].send_signal(signal.SIGKILL)
            return f"SIGTERM, {grace} s, SIGKILL {whose}", False
        if kind == "cut_network":
            assert self._network
            self._network.cut(victim)
            return f"network of host{victim} cut", False
        if kind == "full_disk":
            assert self._disk
            self._disk.fill()
            return "disk full", False
        assert self._proxy
        seconds = round(self._draw.uniform(1, 20), 1)
        if kind == "slow_store":
            delay = round(self._draw.uniform(0.05, 1), 2)
            mode, words = fault_lab.SLOW, f"store slower by {delay} s for {seconds} s"
        else:
            mode, delay = self._draw.choice([fault_lab.SILENT, fault_lab.RESET, fault_lab.UNAVAILABLE]), 0.0
            words = f"store {mode} for {seconds} s"
        self._proxy.set_mode(mode, delay)
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(one.status is None for one in processes):
            time.sleep(0.05)
        self._proxy.set_mode(fault_lab.PASS)
        return words, True

    def _start(self, attempt: int) -> list[Process]:
        count = self._plan.processes
        environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(_DEVICES // count),
            "XLA_FLAGS": "",
            # Restarts find what the first start has compiled.
            "JAX_COMPILATION_CACHE_DIR": str(self._scratch / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        if self._proxy:
            environment |= fault_lab.store_environment(self._proxy.port)
        command = ["train.py", f"--config={self._scratch / 'config.py'}", f"--workdir={self.workdir}"]
        where = "host0:8476" if self._network else f"127.0.0.1:{fault_lab.free_port()}"
        processes = []
        for i in range(count):
            hosts = (f"--coordinator={where}", f"--num_processes={count}", f"--process_id={i}") if count > 1 else ()
            log = self._directory / f"attempt_{attempt}.process_{i}.log"
            host = self._network.hosts[i] if self._network else ""
            processes.append(Process([*command, *hosts], environment, log, host))
        return processes


def problems_of(row: Row, texts: Sequence[str]) -> list[str]:
    """What is not as the documentation says of a fault: hangs, exit statuses, tracebacks."""
    found = ["hung"] if row["hung"] else []
    found += [f"traceback of process {i}" for i, text in enumerate(texts) if "Traceback (most recent call" in text]
    found += [f"C++ stack of process {i}" for i, text in enumerate(texts) if "*** Check failure" in text]
    if not (row["hung"] or row["survived"] or _as_documented(row)):
        found.append(f"exit statuses {row['exit_statuses']}")
    if row["kind"] == "cut_network" and row["seconds_to_end"] > 60:
        found.append("took more than a minute")
    return found


def _as_documented(row: Row) -> bool:
    """Whether the exit statuses are those that the documentation names for such a fault."""
    victim, statuses = row["exit_statuses"][row["victim"]], set(row["exit_statuses"])
    others = {status for i, status in enumerate(row["exit_statuses"]) if i != row["victim"]}
    if row["at_the_end"]:
        others.discard(_DONE)
    if row["during_startup"]:
        # Before the processes have met, nobody can tell another of a loss, and a scheduler ends those that wait.
        return statuses <= {-signal.SIGKILL, _USER_ERROR, _LOST, _STOPPED}
    if row["kind"] == "sigkill":
        return victim == -signal.SIGKILL and others <= {_LOST}
    if row["kind"] == "sigterm":
        return statuses == {_STOPPED}
    if row["kind"] == "preemption":  # the victim may be killed before or after all have saved
        return victim in (-signal.SIGKILL, _STOPPED) and others <= {_LOST, _STOPPED}
    if row["kind"] == "cut_network":
        return statuses == {_LOST}
    return _USER_ERROR in statuses and statuses <= {_USER_ERROR, _LOST}


def cost_problems(row: Row, settings: Settings) -> list[str]:
    """What is wrong with the number of steps that a fault cost."""
    stopped = set(row["exit_statuses"]) == {_STOPPED} and not row["during_startup"]
    if stopped and row["steps_lost"]:
        return [f"{row['steps_lost']} steps lost though all were stopped"]
    return [f"{row['steps_lost']} steps lost"] if row["steps_lost"] > settings.checkpoint_every + 1 else []


def _last_sentence(text: str) -> str:
    """The line that says why a process ended."""
    lines = [line for line in text.splitlines() if "error: " in line or "stopped by " in line]
    sentence = re.sub(r"^.*?(?=error: |stopped by )", "", lines[-1]) if lines else ""
    return re.sub(r"'/\S*/(run_\d+/)", r"'\1", sentence)  # without the scratch directory


def write_config(directory: Path, settings: Settings) -> None:
    """Writes config.py, and the text that it trains on."""
    corpus = directory / "corpus.txt"
    corpus.write_text("".join(f"line {i} says {i} times {i % 7} is {i * (i % 7)}\n" for i in range(400)))
    values = {"num_steps": settings.num_steps, "checkpoint_every": settings.checkpoint_every}
    values |= {"files": str(corpus), "data_dir": str(directory / "datasets")}
    (directory / "config.py").write_text(_CONFIG.format(**values, evaluate_every=max(settings.num_steps // 3, 1)))


def _abort(number: int, _: object) -> None:
    """Leaves no namespace, disk, server or process behind."""
    fault_lab.close_all()
    os._exit(128 + number)


if __name__ == "__main__":
    main("faults", Settings(), run)
