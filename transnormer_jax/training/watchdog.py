"""A watchdog for training steps: if one takes too long, it prints all stacks and keeps waiting."""

import faulthandler
import sys
from types import TracebackType
from typing import Self


class Watchdog:
    """A context in which `step` is called at each step.

    The stacks of all threads go to stderr once in every silence. A thread of C prints them, which needs no lock of
    Python: it speaks even where a collective or a file system holds all others. A hung process is otherwise left as it
    is, since its neighbours notice only a dead one.
    """

    def __init__(self, seconds: int):
        """Waits `seconds` for each step; 0 is off."""
        self._seconds = seconds

    def step(self) -> None:
        """Says that the run is alive."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, file=sys.__stderr__ or sys.stderr)

    def pause(self) -> None:
        """Allows what is no step (an evaluation) to take any time, until the next `step`."""
        faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> Self:
        self.step()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.pause()
