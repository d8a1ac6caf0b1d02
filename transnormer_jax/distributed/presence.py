"""Tracks which processes of a run are alive, on which hosts, and why the others ended.

Every process counts up a number of its own in the coordination service once a second, and reads those of all others. So
after an error it can tell a loss from an error of its own by facts: errors of collectives look different on every
platform, and come before the runtime itself misses a heartbeat.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

_BEAT_SECONDS = 1.0
# Who has not counted up within this time after an error is lost. A thread may have to wait for a long import.
_SILENCE_SECONDS = 8.0
_RPC_SECONDS = 5.0
# Before a process obeys the last words of another: an error of its own, a moment later, would say more.
_REGARD_SECONDS = 1.0

_HOSTS, _BEATS, _ENDS = (f"transnormer/presence/{kind}/" for kind in ("hosts", "beats", "ends"))


class End(NamedTuple):
    """The last words of a process.

    Attributes:
      process: its number.
      words: what ended it, such as "was stopped by SIGTERM before the first step".
      status: exit status of those that cannot go on without it.
    """

    process: int
    words: str
    status: int


class Presence:
    """This process among the others; `start` begins to count.

    Attributes:
      client: of the coordination service.
    """

    def __init__(self, client: Any, process: int, num_processes: int, on_end: Callable[[End], None]):
        """Says which host this is.

        Args:
          client: of the coordination service.
          process: number of this one.
          on_end: called in a thread when another process has left last words.
        """
        self.client, self._process, self._count, self._on_end = client, process, num_processes, on_end
        self._host_names = dict[int, str]()
        self._closed, self._ignores_ends = threading.Event(), threading.Event()
        client.key_value_set(f"{_HOSTS}{process}", socket.gethostname().partition(".")[0])

    def start(self) -> None:
        """Begins to count, in a thread."""
        threading.Thread(target=self._beat, daemon=True).start()

    def ignore_ends(self) -> None:
        """From now on, `on_end` is not called: this process ends for reasons of its own."""
        self._ignores_ends.set()

    def close(self) -> None:
        """Ends counting as well."""
        self._ignores_ends.set()
        self._closed.set()

    def name(self, process: int) -> str:
        """Returns "process 1 on host1"."""
        host = self._host_names.get(process)
        return f"process {process} on {host}" if host else f"process {process}"

    def say_end(self, words: str, status: int) -> None:
        """Leaves last words for the others."""
        self.ignore_ends()
        end = json.dumps([words, status])
        _within(_RPC_SECONDS, lambda: self.client.key_value_set(f"{_ENDS}{self._process}", end))
        self.wait_for_readers()

    def wait_for_readers(self) -> None:
        """In process 0, without which nobody can read: gives the others time for that."""
        if self._process == 0:
            time.sleep(_BEAT_SECONDS + _REGARD_SECONDS + 1.0)

    def first_end(self) -> End | None:
        """Returns the last words of another process, if there are any."""
        found = _within(_RPC_SECONDS, lambda: self._read(_ENDS)) or {}
        ends = [End(process, *json.loads(text)) for process, text in found.items() if process != self._process]
        return ends[0] if ends else None

    def unreachable(self) -> list[int]:
        """Returns process 0 if it does not answer."""
        return [0] if _within(_RPC_SECONDS, lambda: self._read(_HOSTS)) is None else []

    def lost(self) -> list[int]:
        """Returns the processes that neither count up nor have left last words; waits until this is certain."""
        deadline = time.monotonic() + _SILENCE_SECONDS
        before: dict[int, str] | None = None
        while True:
            now = _within(_RPC_SECONDS, lambda: self._read(_BEATS))
            if now is None:
                return [0]
            before = now if before is None else before
            silent = [one for one in range(self._count) if one != self._process and now.get(one) == before.get(one)]
            if not silent or time.monotonic() > deadline:
                return silent
            time.sleep(_BEAT_SECONDS / 4)

    def _read(self, kind: str) -> dict[int, str]:
        return {int(key.rpartition("/")[2]): text for key, text in self.client.key_value_dir_get(kind)}

    def _beat(self) -> None:
        number = 0
        while not self._closed.wait(_BEAT_SECONDS):
            number += 1
            try:
                self.client.key_value_set(f"{_BEATS}{self._process}", str(number), allow_overwrite=True)
                if len(self._host_names) < self._count:
                    self._host_names = self._read(_HOSTS)
                ends = self._read(_ENDS)
            except Exception:
                return  # the service is gone, and the runtime is about to say so
            for process, text in ends.items():
                if process != self._process and not self._ignores_ends.wait(_REGARD_SECONDS):
                    self._on_end(End(process, *json.loads(text)))


def _within[T](seconds: float, call: Callable[[], T]) -> T | None:
    """Returns what `call` returns, or None if it fails or takes longer."""
    results = list[T]()

    def run() -> None:
        try:
            results.append(call())
        except Exception:
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
