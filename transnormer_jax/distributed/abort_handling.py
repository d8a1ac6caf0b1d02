"""Ends a process that cannot continue without another one: one sentence and an exit status."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from transnormer_jax.distributed.stderr_filter import StderrFilter, lost_tasks

# Exit status of a process that lost another.
LOST = 3


class AbortHandler:
    """The last words of a process that JAX's runtime ends.

    The runtime calls abort() from a thread of its own when it loses the coordinator, or hears no heartbeat. That would
    leave a C++ stack trace and no advice, so SIGABRT is caught. Python's own handlers run in the main thread, to which
    abort() does not return: hence ctypes, whose callback runs in the thread that aborts.
    """

    def __init__(self) -> None:
        self._handlers = list[Any]()  # kept: C may be about to call one

    def expect_abort(self, output: StderrFilter, on_loss: Callable[[list[int]], None]) -> None:
        """From now on, an abort for the loss of a process calls `on_loss`; any other stays one.

        Args:
          output: what the runtime writes to.
          on_loss: takes the numbers of the lost processes, none where nothing names them, and does not return.
        """

        def handle(_: int) -> None:
            lost = lost_tasks(output.held())
            if lost is not None:
                on_loss(lost)
            print("error: the runtime aborted, and no process was lost: see above why.", file=sys.stderr, flush=True)
            self._signal(None)  # abort() raises the signal again once this returns

        self._handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(handle))
        self._signal(self._handlers[-1])

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
