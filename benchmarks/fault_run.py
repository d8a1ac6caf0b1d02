"""One disturbed run: it is started, a fault is made, it ends or goes on, and it is started again until it is done."""

import dataclasses
import random
import re
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import fault_lab
from benchmarks.fault_lab import Disk, Network, Process, Proxy, Store
from benchmarks.record import check_positive
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerLLM
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.parameters import restore_params
from transnormer_jax.training.workdir import read_config

_DEVICES = 4  # of a run, divided among its processes
ON_DISK = ("sigkill", "sigterm", "preemption", "cut_network", "full_disk")
IN_BUCKET = ("sigkill", "sigterm", "preemption", "slow_store", "failing_store")
KINDS = tuple(dict.fromkeys(ON_DISK + IN_BUCKET))

# Start-up, from the first import to the first step, is the moment of one fault in so many.
_STARTUP = 6
# A process that does not end within this time after a fault hangs: a lost host is noticed after 30 s.
_PATIENCE_SECONDS = 120.0
# Processes that have not met wait for each other for minutes; here a scheduler tells them to end, as Slurm does.
_SCHEDULER_SECONDS = 15.0
# An undisturbed attempt: with the other runs beside it.
_ATTEMPT_SECONDS = 300.0
_DISK_MEGABYTES = 64

# Exit statuses of train.py.
_DONE, _USER_ERROR, _LOST, _STOPPED = 0, 2, 3, 75


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
      lanes: runs at the same time.
      seed: of the kinds, the steps, the moments and the victims.
    """

    faults: int = 100
    faults_per_run: int = 5
    processes: tuple[int, ...] = (1, 2, 4)
    kinds: tuple[str, ...] = KINDS
    num_steps: int = 60
    checkpoint_every: int = 5
    lanes: int = 3
    seed: int = 0

    def __post_init__(self):
        check_positive(dataclasses.replace(self, seed=1) if self.seed == 0 else self)
        for kind in self.kinds:
            if kind not in KINDS:
                raise UserError(f"kinds has {kind!r}: choose from {', '.join(KINDS)}.")
        if any(_DEVICES % count for count in self.processes):
            raise UserError(f"processes is {self.processes}: each must divide {_DEVICES} devices.")


@dataclasses.dataclass(frozen=True)
class Plan:
    """One run: its number, its processes, whether its workdir is in the bucket, and the kinds of its faults."""

    number: int
    processes: int
    in_bucket: bool
    kinds: tuple[str, ...]


@dataclasses.dataclass
class Lab:
    """What all runs share.

    Attributes:
      scratch: directory for disks, logs and data.
      config: file that train.py reads.
      store: or None, where there is none.
      networks: whether runs of several processes have a network each.
      step_seconds: of an undisturbed run, by the number of processes.
      startup_seconds: from the start to its first step.
      expected: its parameters.
    """

    scratch: Path
    config: Path
    store: Store | None
    networks: bool
    step_seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    startup_seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    expected: dict[int, list[np.ndarray]] = dataclasses.field(default_factory=dict)


class Run:
    """One run, from its first start to the comparison of its parameters; `failure` says what is wrong with its end."""

    def __init__(self, lab: Lab, settings: Settings, plan: Plan, name: str = ""):
        """Makes its disk, its network and its way to the store."""
        self._lab, self._settings, self._plan = lab, settings, plan
        self._draw = random.Random(f"{settings.seed}/{plan.number}")
        self._directory = lab.scratch / (name or f"run_{plan.number}")
        self._attempts, self._reached, self._complete, self.failure = 0, 0, 0, ""
        self._network = Network(plan.processes) if lab.networks and plan.processes > 1 and not plan.in_bucket else None
        self._disk = self._proxy = None
        if plan.in_bucket:
            assert lab.store is not None
            self._proxy = Proxy(lab.store.port)
            self._directory.mkdir()
            self.workdir = f"gs://faults/{self._directory.name}"
        elif fault_lab.missing_for_disks():
            self.workdir = str(self._directory / "workdir")
            self._directory.mkdir()
        else:
            self._directory.mkdir()
            self._disk = Disk(self._directory / "disk", _DISK_MEGABYTES)
            self.workdir = str(self._directory / "disk" / "workdir")

    def disturb(self) -> list[dict[str, Any]]:
        """All faults of the plan that come before the run has ended, then the end; a row for each."""
        rows: list[dict[str, Any]] = []
        try:
            kinds = list(self._plan.kinds)
            while not self._attempt(kinds, rows):
                pass
            self.failure = self._compare()
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
        finally:
            self.close()
        for row in rows:
            row["same_parameters"] = not self.failure
        return rows

    def undisturbed(self) -> tuple[float, float, list[np.ndarray]]:
        """Seconds to the first step, seconds per step, and the parameters."""
        try:
            start = time.monotonic()
            processes = self._start()
            self._wait_until(processes, 1)
            first = time.monotonic()
            self._wait_until(processes, self._settings.num_steps)
            steps = time.monotonic()
            self._finish(processes, [])
            return first - start, (steps - first) / self._settings.num_steps, self._parameters()
        finally:
            self.close()

    def close(self) -> None:
        """Removes disk, network and proxy."""
        for one in (self._proxy, self._network, self._disk):
            if one:
                one.close()

    def _attempt(self, kinds: list[str], rows: list[dict[str, Any]]) -> bool:
        """Starts the processes, and takes faults from `kinds` until one ends them; returns whether the run is done."""
        processes = self._start()
        startup = self._draw.randrange(_STARTUP) == 0 and bool(kinds)
        own: list[dict[str, Any]] = []
        try:
            while kinds and self._await_moment(processes, startup):
                own.append(self._fault(kinds.pop(0), processes))
                rows.append(own[-1])
                startup = False
                if not own[-1]["survived"]:
                    break
            else:
                self._finish(processes, own)
            return self._account(processes, rows, own)
        finally:
            for one in processes:
                one.send_signal(signal.SIGKILL)
                one.wait(10)

    def _await_moment(self, processes: list[Process], startup: bool) -> bool:
        """Waits for the moment of the next fault; False if a process has ended before."""
        count = self._plan.processes
        if startup:
            time.sleep(self._draw.uniform(0, self._lab.startup_seconds[count]))
        else:
            reached = max(self._reached, processes[0].last_step())
            gap = 2 * self._settings.num_steps // (self._settings.faults_per_run + 1)
            target = min(reached + self._draw.randint(1, max(gap, 1)), self._settings.num_steps)
            if not self._wait_until(processes, target):
                return False
            time.sleep(self._draw.uniform(0, 3 * self._lab.step_seconds[count]))
        return all(one.status is None for one in processes)

    def _wait_until(self, processes: list[Process], step: int) -> bool:
        """Waits for a step of process 0; False if a process ends before."""
        end = time.monotonic() + _ATTEMPT_SECONDS
        while processes[0].last_step() < step:
            if any(one.status is not None for one in processes) or time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def _fault(self, kind: str, processes: list[Process]) -> dict[str, Any]:
        """Makes a fault, waits for what becomes of it, and removes its cause."""
        victim = self._draw.randrange(len(processes))
        after = processes[0].last_step()
        startup = after == 0 and not any("compiled the training step" in one.text for one in processes)
        row = {
            "run": self._plan.number,
            "attempt": self._attempts,
            "processes": len(processes),
            "in_bucket": self._plan.in_bucket,
            "kind": kind,
            "detail": "",
            "victim": victim,
            "during_startup": startup,
            "after_step": after,
            "steps_lost": None,
            "problems": [],
        }
        began = time.monotonic()
        row["detail"], heals = self._make(kind, victim, processes)
        told = False
        while not (heals and all(one.status in (None, _DONE) for one in processes)):
            waited = time.monotonic() - began
            if all(one.status is not None for one in processes) or waited > _PATIENCE_SECONDS:
                break
            if startup and not told and waited > _SCHEDULER_SECONDS:
                told = True
                for one in processes:
                    one.send_signal(signal.SIGTERM)
            time.sleep(0.02)
        row["told_to_end_by_the_scheduler"] = told
        self._settle(row, processes, began, heals)
        self._heal()
        return row

    def _settle(self, row: dict[str, Any], processes: list[Process], began: float, heals: bool) -> None:
        """Writes down what became of a fault, and kills those that hang."""
        row["seconds_to_end"] = round(time.monotonic() - began, 1)
        row["exit_statuses"] = [one.status for one in processes]
        row["survived"] = heals and all(status in (None, _DONE) for status in row["exit_statuses"])
        row["steps_lost"] = 0 if row["survived"] else None
        row["hung"] = not row["survived"] and None in row["exit_statuses"]
        if not row["survived"]:
            for one in processes:
                one.send_signal(signal.SIGKILL)
                one.wait(10)
        texts = [one.text for one in processes]
        row["done"] = self._is_done(processes)
        row["sentences"] = [_last_sentence(text) for text in texts]
        row["problems"] = problems_of(row, texts)

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
            processes[victim].wait(grace)
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

    def _heal(self) -> None:
        if self._network:
            self._network.mend()
        if self._disk:
            self._disk.free()

    def _account(self, processes: list[Process], rows: list[dict[str, Any]], own: list[dict[str, Any]]) -> bool:
        """Says what faults of earlier attempts cost, now that this one has resumed; returns whether the run is done."""
        text, last = processes[0].text, processes[0].last_step()
        found = re.findall(r"resumed from checkpoint (\d+)", text)
        resumed = int(found[-1]) if found else 0 if last else None
        if resumed is not None:
            for row in rows:
                if row["steps_lost"] is None and row not in own:
                    row["resumed_from"] = resumed
                    row["steps_lost"] = max(0, self._reached - resumed)
                    row["problems"] += cost_problems(row, self._settings)
            if resumed < self._complete:
                raise RuntimeError(f"resumed from checkpoint {resumed}, though {self._complete} was complete")
            self._reached = max(last, resumed)
        complete = [int(step) for step in re.findall(r"checkpoint (\d+) is complete", text)]
        self._complete = max([self._complete, *complete])
        done = self._is_done(processes)
        for row in own:
            if done or resumed is None:  # an attempt that did not begin has nothing to lose
                row["steps_lost"] = 0
        return done

    def _is_done(self, processes: list[Process]) -> bool:
        return all(one.status == _DONE for one in processes) and "stopped by " not in processes[0].text

    def _start(self) -> list[Process]:
        self._attempts += 1
        count = self._plan.processes
        environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(_DEVICES // count), "XLA_FLAGS": ""}
        if self._proxy:
            environment |= fault_lab.store_environment(self._proxy.port)
        command = ["train.py", f"--config={self._lab.config}", f"--workdir={self.workdir}"]
        where = f"host0:{8476}" if self._network else f"127.0.0.1:{fault_lab.free_port()}"
        processes = []
        for i in range(count):
            told = (f"--coordinator={where}", f"--num_processes={count}", f"--process_id={i}") if count > 1 else ()
            log = self._directory / f"attempt_{self._attempts}.process_{i}.log"
            host = self._network.hosts[i] if self._network else ""
            processes.append(Process([*command, *told], environment, log, host))
        return processes

    def _finish(self, processes: list[Process], own: list[dict[str, Any]]) -> None:
        """Waits for an attempt to end: well, unless a fault that it seemed to survive ends it after all.

        Raises:
          RuntimeError: it ends badly without a fault.
        """
        began = time.monotonic()
        for one in processes:
            one.wait(began + _ATTEMPT_SECONDS - time.monotonic())
        statuses = [one.status for one in processes]
        if all(status == _DONE for status in statuses):
            return
        if own:
            self._settle(own[-1], processes, began, heals=False)
            return
        said = next((words for one in processes if (words := _last_sentence(one.text))), "")
        raise RuntimeError(f"attempt {self._attempts} was left alone and ended with statuses {statuses}: {said}")

    def _parameters(self) -> list[np.ndarray]:
        with _restoring:
            return _restored(self.workdir, self._settings.num_steps)

    def _compare(self) -> str:
        """What is wrong with the parameters; "" if they are those of the undisturbed run."""
        found, expected = self._parameters(), self._lab.expected[self._plan.processes]
        same = len(found) == len(expected) and all(
            a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, expected, strict=True)
        )
        return "" if same else "OTHER PARAMETERS"


# JAX in this process serves one run at a time.
_restoring = threading.Lock()


def problems_of(row: dict[str, Any], texts: Sequence[str]) -> list[str]:
    """What is not as the documentation says of a fault: hangs, exit statuses, tracebacks."""
    found = ["hung"] if row["hung"] else []
    found += [f"traceback of process {i}" for i, text in enumerate(texts) if "Traceback (most recent call" in text]
    found += [f"C++ stack of process {i}" for i, text in enumerate(texts) if "*** Check failure" in text]
    if not (row["hung"] or row["survived"] or row["done"] or _as_documented(row)):
        found.append(f"exit statuses {row['exit_statuses']}")
    if row["kind"] == "cut_network" and row["seconds_to_end"] > 60:
        found.append("took more than a minute")
    return found


def _as_documented(row: dict[str, Any]) -> bool:
    """Whether the exit statuses are those that the documentation names for such a fault."""
    victim, statuses = row["exit_statuses"][row["victim"]], set(row["exit_statuses"])
    others = {status for i, status in enumerate(row["exit_statuses"]) if i != row["victim"]}
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


def cost_problems(row: dict[str, Any], settings: Settings) -> list[str]:
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


def _restored(workdir: str, num_steps: int) -> list[np.ndarray]:
    path = _as_path(workdir)
    task = CausalLM(TransNormerLLM(read_config(path).model))
    step, params = restore_params(path, jax.eval_shape(task.init, jax.random.key(0)))
    if step != num_steps:
        raise RuntimeError(f"ended at step {step} of {num_steps}")
    return [np.asarray(x) for x in jax.tree.leaves(params)]


def _as_path(workdir: str) -> Any:
    try:
        from transnormer_jax.storage import as_path
    except ImportError:
        return Path(workdir)
    return as_path(workdir)
