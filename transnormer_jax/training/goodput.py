"""Accounts for the wall time of a run over all of its starts: steps, start-up, compilation, saving and so on.

Goodput is the share of the wall time, since the run was first started, that went into steps that count. Steps that were
lost, because the run was killed before their checkpoint, count as time in which the run was down.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ACTIVITIES = ("start", "compile", "step", "data", "save", "evaluate", "down")


class Stopwatch:
    """Divides the time since this process began among `ACTIVITIES`; there is always exactly one."""

    def __init__(self, former: Mapping[str, Any] | None = None, began: float | None = None):
        """Starts in "start".

        Args:
          former: the last line of metrics that still counts, if the run was started before; has `time` and `seconds/*`.
          began: unix time in seconds at which this process began; None asks the system.
        """
        began = process_start_time() if began is None else began
        self.seconds = {name: float((former or {}).get(f"seconds/{name}", 0.0)) for name in ACTIVITIES}
        if former is not None and "time" in former:
            self.seconds["down"] += max(0.0, began - former["time"])
        self.seconds["start"] += time.time() - began
        self._activity, self._since = "start", time.perf_counter()

    def begin(self, activity: str) -> str:
        """Ends the present activity and begins another; returns the former one's name."""
        former, now = self._activity, time.perf_counter()
        self.seconds[former] += now - self._since
        self._activity, self._since = activity, now
        return former

    @contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """An activity inside another."""
        former = self.begin(activity)
        try:
            yield
        finally:
            self.begin(former)

    def metrics(self) -> dict[str, float]:
        """Seconds so far by activity, and `goodput`."""
        self.begin(self._activity)
        seconds = {f"seconds/{name}": spent for name, spent in self.seconds.items()}
        return {"goodput": self.seconds["step"] / max(sum(self.seconds.values()), 1e-9)} | seconds


def process_start_time() -> float:
    """Unix time at which this process began; where the system does not say, now."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    return time.time()
