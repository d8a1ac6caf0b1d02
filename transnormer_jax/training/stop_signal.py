"""SIGTERM and Ctrl-C: the loop finishes its step, saves, and leaves."""

import signal
from types import FrameType, TracebackType
from typing import Self

from transnormer_jax import start


class StopSignal:
    """A context in which the first SIGTERM or SIGINT is only noted; a second SIGINT ends the program as usual."""

    def __init__(self) -> None:
        self.name = ""

    def __enter__(self) -> Self:
        start.loop_begins()
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return bool(self.name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
