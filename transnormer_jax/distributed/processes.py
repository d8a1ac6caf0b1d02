"""The processes of one run: how they meet, speak with one voice, and part.

A TPU pod or a Slurm step says by itself who takes part. Elsewhere, every process is told where process 0 is, how many
there are, and which it is, by flags or by the environment:

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
from typing import Any, NamedTuple, TextIO, cast

import jax
from absl import flags

from transnormer_jax.distributed.abort_handling import LOST, AbortHandler, is_loss, leave
from transnormer_jax.errors import UserError, first_line

# A dead machine is noticed after this time; a dead process, whose connections close, at once.
_HEARTBEAT_SECONDS = 30

flags.disclaim_key_flags()

_abort_handler = AbortHandler()


class Membership(NamedTuple):
    """What a process is told of its run; None where it is told nothing.

    Attributes:
      coordinator: "host:port" of process 0, where that process listens.
      num_processes: of the run.
      process_id: of this one, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def define_flags() -> Callable[[], Membership]:
    """Defines --coordinator, --num_processes and --process_id; returns what reads them."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0. Default: $JAX_COORDINATOR_ADDRESS.")
    flags.DEFINE_integer("num_processes", None, "Number of processes of this run. Default: $JAX_NUM_PROCESSES.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0. Default: $JAX_PROCESS_ID.")
    return lambda: Membership(flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id)


@contextmanager
def joined(told: Membership = Membership(), *, timeout_seconds: int = 300) -> Iterator[None]:  # noqa: B008
    """Joins the processes of the run before the first use of a device, and parts from them at the end.

    Inside, only process 0 writes to stdout, and what others write to stderr bears their number. An exception inside a
    run of several processes ends this one: nobody waits for it.

    Args:
      told: what flags say; the environment fills in what they leave out.
      timeout_seconds: how long the processes wait for each other at the start.

    Raises:
      UserError: only a part of the three is given, or they do not fit, or the processes do not meet in time.
    """
    told = _with_environment(told)
    if not (_join_cluster(timeout_seconds) if told == Membership() else _join_at(told, timeout_seconds)):
        yield
        return
    _abort_handler.expect_abort(
        "another process of this run has died or cannot be reached: "
        "start all of them again with the same command, and the run resumes from its newest checkpoint",
        LOST,
    )
    first = jax.process_index() == 0
    # Gloo greets on the C library's stdout, and late: behind what must be the last line. It may do so on stderr.
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w") if first else open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    os.dup2(2, 1)
    if not first:
        sys.stderr = cast(TextIO, _Numbered(sys.stderr, f"process {jax.process_index()}: "))
    try:
        yield
    except UserError as error:
        # Mostly all processes have made the same mistake, and part in peace; one that has not is told by the runtime.
        print(f"error: {error}", file=sys.stderr, flush=True)
        _abort_handler.expect_abort("", 2)
        with suppress(jax.errors.JaxRuntimeError):
            jax.distributed.shutdown()
        leave("", 2)
    except Exception as error:
        if is_loss(error):
            leave(f"{_abort_handler.sentence} ({first_line(error)})", LOST)
        traceback.print_exc()
        leave("", 1)
    jax.distributed.shutdown()


def _with_environment(told: Membership) -> Membership:
    return Membership(
        told.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        _number("JAX_NUM_PROCESSES") if told.num_processes is None else told.num_processes,
        _number("JAX_PROCESS_ID") if told.process_id is None else told.process_id,
    )


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    try:
        return int(text) if text else None
    except ValueError as error:
        raise UserError(f"${variable} is {text!r}: give a whole number.") from error


def _join_cluster(timeout_seconds: int) -> bool:
    """By JAX's own detection of TPU pods, Slurm and Open MPI; False where there is none of them."""
    if os.environ.get("SLURM_NTASKS") == "1":
        return False  # JAX would leave such a task the first of its GPUs alone
    _abort_handler.expect_abort(
        f"the processes of this run did not meet within {timeout_seconds} s: start all of them", 2
    )
    try:
        _initialize(initialization_timeout=timeout_seconds)
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        return True
    _abort_handler.stop_expecting()
    return False


def _join_at(told: Membership, timeout_seconds: int) -> bool:
    names = zip(("--coordinator", "--num_processes", "--process_id"), told, strict=True)
    missing = [name for name, value in names if value is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} missing: a run of several processes needs all three, or none.")
    address, count, own = told.coordinator or "", told.num_processes or 0, told.process_id or 0
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
    _abort_handler.expect_abort(
        f"the {count} processes of this run did not meet at {address} within {timeout_seconds} s: start all of them, "
        "each with a --process_id of its own",
        2,
    )
    _initialize(
        coordinator_address=address,
        num_processes=count,
        process_id=own,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout_seconds,
    )
    return True


def _initialize(**arguments: Any) -> None:
    # Its handler of SIGTERM would take the place of ours, and Orbax would confuse its count of steps.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS, shutdown_timeout_seconds=_HEARTBEAT_SECONDS, **arguments
    )


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
