"""Handles signals before the training loop does: one line and exit status `STOPPED`, even during an import.

This module is imported first, so it imports nothing large. The training loop's handler takes over at its first step.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

STOPPED = 75
"""Exit status of a run that a signal stopped: the same command resumes it. EX_TEMPFAIL of sysexits.h."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, 128 + SIGINT: of any other command, and of a run that a second Ctrl-C aborts."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_stopping = threading.Lock()
_loop_has_begun = threading.Event()
_farewells = list[Callable[[str], None]]()


def begin() -> None:
    """From now on, SIGTERM and Ctrl-C end this process at once, until another handler takes their place."""
    if _listens_to(signal.SIGTERM):
        return
    for number in _SIGNALS:
        signal.signal(number, _stop)
    # The last exit function to run: Python then restores the handlers of the system, and SIGTERM would end a run that
    # is over with the status of one that was killed.
    atexit.register(_ignore)
    # Python runs handlers in the main thread between two of its own instructions: not while XLA compiles, or while the
    # runtime waits for other processes. The thread hears of a signal at once.
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(ear,), daemon=True).start()
    os.register_at_fork(after_in_child=_forget)


def loop_begins() -> None:
    """Says that a signal from now on does not come before the first step."""
    _loop_has_begun.set()


def on_stop(farewell: Callable[[str], None]) -> None:
    """Adds a function that is called with the reason before the process ends, for at most five seconds."""
    _farewells.append(farewell)


def _listen(ear: int) -> None:
    while data := os.read(ear, 1):
        if _listens_to(data[0]):
            _stop(data[0])


def _listens_to(number: int) -> bool:
    return signal.getsignal(number) is _stop


def _stop(number: int, frame: FrameType | None = None) -> None:
    if not _stopping.acquire(blocking=False):
        time.sleep(10)  # the other thread is about to end the process
        return
    when = "after the last step" if _loop_has_begun.is_set() else "before the first step"
    reason = f"stopped by {signal.Signals(number).name} {when}"
    # In a thread, since this one may hold the lock of what it interrupted.
    speaker = threading.Thread(target=lambda: [farewell(reason) for farewell in _farewells], daemon=True)
    with contextlib.suppress(RuntimeError):  # no thread can be started while the interpreter shuts down
        speaker.start()
        speaker.join(timeout=5.0)
    os.write(2, f"{reason}; run the same command to resume\n".encode())
    os._exit(STOPPED)


def _ignore() -> None:
    for number in _SIGNALS:
        if _listens_to(number):
            signal.signal(number, signal.SIG_IGN)


def _forget() -> None:
    """In a child process, which may be ended by SIGTERM for reasons of its own."""
    if _listens_to(signal.SIGTERM):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_interruptible(main: Callable[[], object]) -> None:
    """Runs `main`; Ctrl-C ends the process at once and without a traceback, with status `INTERRUPTED`."""
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # threads and other processes of a run are not waited for
