"""Communication between the processes of a run: barrier, broadcast, gather and requests.

All of this goes through JAX's coordination service, a key-value store in process 0. Device collectives would be the
wrong tool: they give up after 30 s on a CPU and 10 min on a GPU, cannot be interrupted by a signal, and cost a round
trip through every device. Every function is called by all processes alike, in the same order.
"""

import itertools
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
from jax._src import distributed  # jax.distributed has no public name for the client

from transnormer_jax.log import log

# A wait ends when process 0 dies, not after a time: the runtime then ends this process.
_FOREVER_MS = 30 * 24 * 3600 * 1000
# A wait that is longer says every so often what it waits for.
_REMINDER_SECONDS = 30.0
_POLL_SECONDS = 0.5
# What a process publishes instead of a number of polls when it will not poll again.
_CLOSED, _NEVER = "closed", -1

_calls = itertools.count()


def barrier(doing: str) -> None:
    """Waits until all processes are here, for as long as that takes.

    Args:
      doing: what a process that comes late is busy with; printed while others wait for it.
    """
    if jax.process_count() > 1:
        _meet(f"transnormer/{next(_calls)}", doing)


def broadcast_from_process0(value: Any) -> Any:
    """Returns the value of process 0 on all processes. It must be JSON; other processes may pass anything."""
    if jax.process_count() == 1:
        return value
    client, key = _client(), f"transnormer/{next(_calls)}/value"
    if jax.process_index() == 0:
        client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(_interruptible(lambda: client.blocking_key_value_get(key, _FOREVER_MS), lambda: "process 0"))


def all_gather(value: Any, doing: str = "comparing", name: str = "") -> list[Any]:
    """Returns the values of all processes, by process. They must be JSON; `doing` is as in `barrier`.

    With a `name`, which can be used once, the order of the calls does not matter.
    """
    if jax.process_count() == 1:
        return [value]
    key = f"transnormer/{name or next(_calls)}"
    _meet(key, doing, json.dumps(value))
    values = {int(name.rpartition("/")[2]): text for name, text in _client().key_value_dir_get(f"{key}/")}
    return [json.loads(values[process]) for process in range(jax.process_count())]


def all_agree(flag: bool, name: str = "") -> bool:
    """Returns whether every process passes True; `name` is as in `all_gather`."""
    return all(all_gather(flag, name=name))


def _meet(key: str, doing: str, text: str = "") -> None:
    """Publishes `text`, and returns once every process has published its own."""
    client = _client()
    client.key_value_set(f"{key}/{jax.process_index()}", text)

    def absent() -> str:
        present = {int(name.rpartition("/")[2]) for name, _ in client.key_value_dir_get(f"{key}/")}
        missing = [str(one) for one in range(jax.process_count()) if one not in present]
        return f"process {', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}: {doing}"

    _interruptible(lambda: client.wait_at_barrier(key, _FOREVER_MS), absent)


def _interruptible[T](wait: Callable[[], T], reminder: Callable[[], str]) -> T:
    """Runs a blocking call in a thread, so that Python's signal handlers run meanwhile in the main thread."""
    result = list[T]()
    failure = list[BaseException]()

    def run() -> None:
        try:
            result.append(wait())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    began = time.monotonic()
    while thread.is_alive():
        thread.join(_REMINDER_SECONDS)
        if thread.is_alive():
            log(f"waiting for {reminder()} ({time.monotonic() - began:.0f} s)", everywhere=True)
    if failure:
        raise failure[0]
    return result[0]


def _client() -> Any:
    client = distributed.global_state.client
    assert client is not None, "several processes without jax.distributed.initialize"
    return client


class Requests:
    """Requests, such as "stop" and "save", that any process may make and all fulfil at the same step.

    `poll` is called once a step by every process, and as a rule costs nothing: a thread asks the coordination service
    twice a second. Once a request is seen, each process publishes the number of its last poll and does not pass the
    next one before it knows the numbers of all others. The request falls due at the largest number plus one. One that
    comes when a process has made its last poll is not fulfilled: the work is done.
    """

    def __init__(self) -> None:
        self._polls = 0
        self._lock = threading.Lock()
        self._round = 0
        self._published: int | None = None
        self._due: int | None = None
        self._agreed: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> "Requests":
        if jax.process_count() > 1:
            self._prefix = f"transnormer/requests/{next(_calls)}"
            self._thread = threading.Thread(target=self._listen, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)  # it may wait for a process that is gone
            with self._lock, suppress(Exception):  # published already, or the service is gone
                _client().key_value_set(f"{self._prefix}/{self._round}/polls/{jax.process_index()}", _CLOSED)

    def make(self, kind: str, reason: str) -> None:
        """Asks for `kind`; may be called from a signal handler, and more than once."""
        self._reasons.setdefault(kind, reason)

    def poll(self) -> dict[str, str]:
        """Returns the requests that fall due here, kind -> reason; the same on all processes."""
        if self._thread is None:
            due, self._reasons = self._reasons, {}
            return due
        while True:
            with self._lock:
                if self._failure is not None:
                    raise self._failure
                if self._published is None or self._due is not None:
                    self._polls += 1
                    if self._polls != self._due:
                        return {}
                    due, self._due, self._published = self._agreed, None, None
                    self._round += 1
                    return due
            time.sleep(0.01)  # another process is about to say where it is

    def _listen(self) -> None:
        """The thread: passes on this process's requests, notices those of others, and agrees on when."""
        client = _client()
        try:
            while not self._closed.wait(_POLL_SECONDS):
                with self._lock:
                    key, waiting = f"{self._prefix}/{self._round}", self._published is not None
                if waiting:
                    continue
                for kind, reason in list(self._reasons.items()):
                    client.key_value_set(f"{key}/kinds/{kind}", reason, allow_overwrite=True)
                if client.key_value_dir_get(f"{key}/kinds/"):
                    self._agree(client, key)
        except BaseException as error:
            if not self._closed.is_set():
                with self._lock:
                    self._failure = error

    def _agree(self, client: Any, key: str) -> None:
        with self._lock:
            self._published = self._polls
        client.key_value_set(f"{key}/polls/{jax.process_index()}", str(self._published))
        polls = [client.blocking_key_value_get(f"{key}/polls/{one}", _FOREVER_MS) for one in range(jax.process_count())]
        if _CLOSED in polls:  # a process has made its last poll: what is asked for now comes too late for all
            with self._lock:
                self._due = _NEVER
            return
        # Process 0 reads the kinds once all have seen that there are some, so that all act on the same ones.
        if jax.process_index() == 0:
            kinds = {name.rpartition("/")[2]: reason for name, reason in client.key_value_dir_get(f"{key}/kinds/")}
            client.key_value_set(f"{key}/agreed", json.dumps(kinds))
        agreed = json.loads(client.blocking_key_value_get(f"{key}/agreed", _FOREVER_MS))
        with self._lock:
            self._agreed = agreed
            self._reasons = {kind: reason for kind, reason in self._reasons.items() if kind not in agreed}
            self._due = max(map(int, polls)) + 1
