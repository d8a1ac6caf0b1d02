"""Keeps the runtime's output about a lost process off stderr: about 20 lines of C++ and a stack trace.

The C library's stderr becomes a pipe to a process of its own, which passes on every line except those. A thread could
not do this: it would die with the process, and the last words of a crash with it. Python's stderr does not go this way.
"""

import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

# Sources in XLA whose records are about processes that are gone, and the lines that may follow such a record.
_SOURCES = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ (coordination_\w+\.cc|preemption_sync_manager\.cc|client\.h):\d+\] ")
_RECORD = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ \S+:\d+\] ")
_CONTINUATION = re.compile(
    r"\s*$|[\d, ]+$|/job:|The tasks have crashed|=== Source Location Trace|external/|RPC: |Additional GRPC error|"
    r":?[A-Z_]+:|\. This is only expected|\*\*\* Check failure stack|\s+@ |This is usually caused by|Original error: |"
    r"Tasks? |First |Barrier | for task: "
)
# The stack of the abort for a loss: another thread's record may stand between it and that of the abort.
_STACK = re.compile(r"\*\*\* Check failure stack|\s+@ ")
_FATAL = "JAX distributed service detected fatal errors"
_MARK = "\x00mark "


class StderrFilter:
    """The pipe, from the side of the process that is filtered."""

    def __init__(self, prefix: str):
        """Starts it.

        Args:
          prefix: of every line that is passed on.
        """
        reader, writer = os.pipe()
        self._answers, answer = os.pipe()
        os.set_blocking(answer, False)
        direct = os.dup(2)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(answer), prefix],
            stdin=reader,
            stdout=direct,
            stderr=direct,
            pass_fds=[answer],
            start_new_session=True,
        )
        os.close(reader)
        os.close(answer)
        sys.stderr.flush()
        sys.stderr = sys.__stderr__ = os.fdopen(direct, "w", buffering=1, errors="backslashreplace")  # type: ignore[misc]
        os.dup2(writer, 2)
        os.close(writer)
        self._direct = direct
        self._marks = 0
        self._held = ""

    def held(self) -> str:
        """Returns all lines that were kept back, once those before this call have passed the filter."""
        self._marks += 1
        mark = f"{_MARK}{os.getpid()} {self._marks}\n"
        os.write(2, f"\n{mark}".encode())
        end = time.monotonic() + 2.0
        while mark not in self._held and time.monotonic() < end:
            if select.select([self._answers], [], [], 0.1)[0]:
                data = os.read(self._answers, 65536)
                self._held += data.decode(errors="replace")
                if not data:
                    break
        return self._held

    def close(self) -> None:
        """Gives back stderr, and waits for what is still in the pipe."""
        os.dup2(self._direct, 2)
        os.dup2(self._direct, 1)
        with suppress(subprocess.TimeoutExpired):  # a child process still writes to it
            self._process.wait(timeout=2.0)


def lost_tasks(held: str) -> list[int] | None:
    r"""Returns which processes the runtime says are lost, by what was kept back; None if it did not end for a loss.

    >>> lost_tasks("JAX distributed service detected fatal errors: (stopped sending heartbeats):\n1\n2\nThe tasks")
    [1, 2]
    >>> lost_tasks("... JAX distributed service detected fatal errors. ... Failed to send RPC to coordination service.")
    [0]
    """
    if _FATAL not in held:
        return None
    if named := re.findall(r"stopped sending heartbeats\):\s*((?:\S*\d+[\s,]+)+)", held):
        return sorted({int(one) for one in re.findall(r"(\d+)[\s,]", named[-1])})
    return [0] if "Failed to send RPC to coordination service" in held else []


def _filter(answer: int, prefix: str) -> None:
    """The other process: from stdin to stdout."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keeping, blank, aborting = False, False, False
    with os.fdopen(0, "rb", buffering=0) as stdin:
        rest = b""
        while data := stdin.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace")
                if text.startswith(_MARK):
                    _answer(answer, text)
                    blank = False
                    continue
                if blank:  # not the line break before a mark
                    os.write(1, f"{prefix}\n".encode())
                blank = not text and not keeping
                if blank:
                    continue
                keeping = bool(_SOURCES.match(text)) or (
                    keeping and not _RECORD.match(text) and bool(_CONTINUATION.match(text))
                )
                if text.startswith("F") and _RECORD.match(text):
                    aborting = keeping and _FATAL in text
                keeping |= aborting and bool(_STACK.match(text))
                if keeping:
                    _answer(answer, text)
                else:
                    os.write(1, prefix.encode() + line + b"\n")
        if blank:
            os.write(1, f"{prefix}\n".encode())
        if rest:
            os.write(1, prefix.encode() + rest + b"\n")


def _answer(answer: int, text: str) -> None:
    with suppress(OSError):  # nobody reads: the process is gone, or has not asked for long
        os.write(answer, f"{text}\n".encode())


if __name__ == "__main__":
    _filter(int(sys.argv[1]), sys.argv[2])
