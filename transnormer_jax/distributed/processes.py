"""Starts and ends the processes of a run.

A TPU pod, Slurm and Open MPI say by themselves who takes part (see `cluster.py`). Elsewhere, every process is given
where process 0 is, how many there are, and which it is, by flags or by the environment:

    JAX_COORDINATOR_ADDRESS=host0:8476 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 python train.py ...

A run of one process starts nothing. A run of several cannot go on without one of them: the others end with one sentence
and exit status `LOST`, and all are started again.
"""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO, cast

import jax
from absl import flags
from jax._src import distributed  # jax.distributed has no public name for the client

from transnormer_jax import start
from transnormer_jax.distributed import cluster
from transnormer_jax.distributed.abort_handling import LOST, AbortHandler, leave
from transnormer_jax.distributed.cluster import Membership
from transnormer_jax.distributed.presence import End, Presence
from transnormer_jax.distributed.stderr_filter import StderrFilter
from transnormer_jax.errors import UserError, first_line
from transnormer_jax.log import log

__all__ = ["Membership", "define_flags", "joined"]

# A dead machine is noticed after this time; a dead process, whose connections close, at once.
_HEARTBEAT_SECONDS = 30
# Processes that make the same mistake end within this time of each other.
_PARTING_MS = 3000

flags.disclaim_key_flags()

_abort_handler = AbortHandler()  # C holds its callback until the process ends


def define_flags() -> Callable[[], Membership]:
    """Defines --coordinator, --num_processes and --process_id; returns what reads them."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0. Default: $JAX_COORDINATOR_ADDRESS.")
    flags.DEFINE_integer("num_processes", None, "Number of processes of this run. Default: $JAX_NUM_PROCESSES.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0. Default: $JAX_PROCESS_ID.")
    return lambda: Membership(flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id)


@contextmanager
def joined(membership: Membership = Membership(), *, timeout_seconds: int = 300) -> Iterator[None]:  # noqa: B008
    """Joins the processes of the run before the first use of a device, and parts from them at the end.

    Inside, only process 0 writes to stdout, and what others write to stderr bears their number. An exception inside a
    run of several processes ends this one: nobody waits for it.

    Args:
      membership: what flags say; the environment fills in what they leave out.
      timeout_seconds: how long the processes wait for each other at the start.

    Raises:
      UserError: only a part of the three is given, or they do not fit, or the processes do not meet in time.
    """
    membership = cluster.membership(membership)
    if not _is_one_of_several(membership, timeout_seconds):
        yield
        return
    output = StderrFilter(f"process {membership.process_id}: " if membership.process_id else "")
    # Gloo greets on the C library's stdout, and late: behind what must be the last line. It may do so on stderr.
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w") if membership.process_id == 0 else open(os.devnull, "w")  # noqa: SIM115 (until the end)
    os.dup2(2, 1)
    if membership.process_id:
        sys.stderr = cast(TextIO, _Numbered(sys.stderr, f"process {membership.process_id}: "))
    presence = _join(membership, output, timeout_seconds)
    log(
        f"{jax.process_count()} processes, each with {jax.local_device_count()} of {jax.device_count()} devices "
        f"({jax.devices()[0].device_kind})"
    )
    try:
        yield
    except UserError as error:
        presence.ignore_ends()
        print(f"error: {error}", file=sys.stderr, flush=True)
        # Mostly all processes have made the same mistake, and part in peace.
        with suppress(jax.errors.JaxRuntimeError):
            presence.client.wait_at_barrier("transnormer/mistake", _PARTING_MS)
            leave("", 2)
        presence.say_end(f"ended: {error}", 2)
        leave("", 2)
    except KeyboardInterrupt:
        presence.say_end("was stopped by Ctrl-C", start.INTERRUPTED)
        leave("", start.INTERRUPTED)
    except Exception as error:
        _leave_after(error, presence)
    presence.close()
    jax.distributed.shutdown()
    output.close()


def _join(membership: Membership, output: StderrFilter, timeout_seconds: int) -> Presence:
    _abort_handler.expect_abort(
        output,
        lambda _: leave(
            f"the {membership.num_processes} processes of this run did not meet at {membership.coordinator} within "
            f"{timeout_seconds} s: start all of them, each with a --process_id of its own",
            2,
        ),
    )
    # Its handler of SIGTERM would take the place of ours, and Orbax would confuse its count of steps.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator_address=membership.coordinator,
        num_processes=membership.num_processes,
        process_id=membership.process_id,
        local_device_ids=membership.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout_seconds,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
    )

    def on_loss(lost: list[int]) -> None:
        leave(_lost(presence, lost or presence.unreachable()), LOST)

    def on_end(end: End) -> None:
        presence.wait_for_readers()
        leave(_ended(presence, end), end.status)

    presence = Presence(
        distributed.global_state.client, membership.process_id or 0, membership.num_processes or 1, on_end
    )
    presence.start()
    _abort_handler.expect_abort(output, on_loss)
    start.on_stop(lambda reason: presence.say_end(f"was {reason}", start.STOPPED))
    return presence


def _leave_after(error: Exception, presence: Presence) -> NoReturn:
    """Ends this process after an error that is its own, or that of the loss of another process."""
    presence.ignore_ends()
    if (end := presence.first_end()) is not None:
        presence.wait_for_readers()
        leave(f"{_ended(presence, end)} ({first_line(error)})", end.status)
    if lost := presence.lost():
        if jax.process_index() == 0 and jax.process_count() > 2:
            presence.say_end(f"lost {_names(presence, lost)}", LOST)
        leave(f"{_lost(presence, lost)} ({first_line(error)})", LOST)
    traceback.print_exception(error)
    presence.say_end(f"ended with an error of its own ({first_line(error)})", LOST)
    leave("", 1)


def _lost(presence: Presence, lost: list[int]) -> str:
    was = "were lost: they died or cannot" if len(lost) > 1 else "was lost: it died or cannot"
    return f"{_names(presence, lost)} {was} be reached; {_AGAIN}"


def _names(presence: Presence, processes: list[int]) -> str:
    return " and ".join(presence.name(one) for one in processes) or "another process of this run"


def _ended(presence: Presence, end: End) -> str:
    words = f"{presence.name(end.process)} {end.words}"
    return words if end.status == 2 else f"{words}; {_AGAIN}"


_AGAIN = "start all of them again with the same command, and the run resumes from its newest checkpoint"


def _is_one_of_several(membership: Membership, timeout_seconds: int) -> bool:
    """Checks the flags, and that process 0 can listen or answers."""
    if membership[:3] == (None, None, None):
        return False
    names = zip(("--coordinator", "--num_processes", "--process_id"), membership[:3], strict=True)
    missing = [name for name, value in names if value is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} missing: a run of several processes needs all three, or none.")
    address, count, own = membership.coordinator or "", membership.num_processes or 0, membership.process_id or 0
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={address!r} is no address: give HOST:PORT of process 0.")
    if not 0 <= own < count:
        raise UserError(f"--process_id={own} is not below --num_processes={count}: number the processes from 0.")
    if count == 1:
        return False
    if own == 0:
        _check_free(address, int(port))
    else:
        _await_answer(address, (host.strip("[]"), int(port)), timeout_seconds)
    return True


def _check_free(address: str, port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise UserError(f"process 0 cannot listen at {address} ({error.strerror}): give another port.") from error


def _await_answer(name: str, address: tuple[str, int], timeout_seconds: int) -> None:
    """Waits for process 0, whose absence would make the runtime abort."""
    end = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection(address, timeout=min(timeout_seconds, 5)).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"process 0 does not answer at {name} within {timeout_seconds} s "
                    f"({error.strerror or 'no answer'}): start it too, or correct --coordinator."
                ) from error
        time.sleep(0.2)


class _Numbered:
    """A text stream whose lines begin with the number of the process."""

    def __init__(self, stream: TextIO, prefix: str):
        self._stream, self._prefix, self._at_start = stream, prefix, True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self._stream.write((self._prefix if self._at_start else "") + line)
            self._at_start = line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
