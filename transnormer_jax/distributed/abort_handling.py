"""How a process ends that cannot go on without another: one sentence and an exit status."""

import ctypes
import os
import signal
import sys
import threading
from typing import Any, NoReturn

# Exit status of a process that lost another.
LOST = 3

# What errors of collectives and of JAX's coordination service say when another process is gone, whatever their type.
_SIGNS_OF_LOSS = ("gloo", "nccl", "coordinationservice", "coordination service", "heartbeat")


class AbortHandler:
    """The last words of a process that JAX's runtime ends.

    The runtime calls abort() from a thread of its own when it loses the coordinator, or hears no heartbeat. That would
    leave a C++ stack trace and no advice, so SIGABRT is caught. Python's own handlers run in the main thread, to which
    abort() does not return: hence ctypes, whose callback runs in the thread that aborts.
    """

    def __init__(self) -> None:
        self.sentence, self._status = "", LOST
        self._handler: Any = None

    def expect_abort(self, sentence: str, status: int) -> None:
        """From now on, an abort prints the sentence and ends with the exit status."""
        self.sentence, self._status = sentence, status
        if self._handler is None:
            self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: leave(self.sentence, self._status))
            self._signal(self._handler)

    def stop_expecting(self) -> None:
        """An abort is one again."""
        if self._handler is not None:
            self._signal(None)
            self._handler = None

    @staticmethod
    def _signal(handler: Any) -> None:
        function = ctypes.CDLL(None).signal
        function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        function(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p) if handler else None)


_leaving = threading.Lock()


def leave(sentence: str, status: int) -> NoReturn:
    """Ends the process without waiting for any other; where two threads come to that, the first one speaks."""
    _leaving.acquire()
    if sentence:
        print(f"error: {sentence}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_loss(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, says that another process is gone."""
    while error is not None:
        text = str(error).lower()
        if any(sign in text for sign in _SIGNS_OF_LOSS):
            return True
        error = error.__cause__ or error.__context__
    return False
