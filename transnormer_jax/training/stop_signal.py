"""SIGTERM and Ctrl-C: the loop finishes its step, saves, and leaves; a second Ctrl-C aborts."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from transnormer_jax import start

# After the second Ctrl-C, the main thread has this long to react; it cannot while a device or a file system hangs.
_ABORT_SECONDS = 20


class StopSignal:
    """A context in which the first SIGTERM or SIGINT only calls `on_stop`; a second SIGINT raises KeyboardInterrupt.

    Python runs signal handlers in the main thread, between two instructions: not while that thread waits for a device
    or a file system, perhaps for ever. So a thread of its own hears of each signal by `signal.set_wakeup_fd`, and ends
    the process if the main thread does not answer the second Ctrl-C.
    """

    def __init__(self, on_stop: Callable[[str], None]):
        """Takes the function that is called with the name of the first signal, such as "SIGTERM", in another thread."""
        self._on_stop = on_stop
        self._interrupts = 0
        self._left = threading.Event()

    def __enter__(self) -> Self:
        start.loop_begins()
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._left.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._write.close()  # which ends the thread
        self._thread.join()
        self._read.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt

    def _listen(self) -> None:
        stopped, interrupts = False, 0
        while numbers := self._read.recv(64):
            for number in numbers:
                if number not in (signal.SIGTERM, signal.SIGINT):
                    continue
                name = signal.Signals(number).name
                interrupts += number == signal.SIGINT
                if not stopped:
                    stopped = True
                    _say(f"{name}: stopping after this step, with a checkpoint. Ctrl-C aborts at once.")
                    self._on_stop(name)
                elif interrupts == 2:
                    _say("aborting")
                    threading.Thread(target=self._abort, daemon=True).start()

    def _abort(self) -> None:
        if not self._left.wait(_ABORT_SECONDS):
            _say(f"the main thread has not answered for {_ABORT_SECONDS} s: leaving without it")
            os._exit(start.INTERRUPTED)


def _say(text: str) -> None:
    # Not print: the main thread may hold the stream's lock.
    os.write(2, f"{text}\n".encode())
