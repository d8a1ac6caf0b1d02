"""Profiles some steps of a run for TensorBoard."""

import functools
import socket
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from transnormer_jax import storage
from transnormer_jax.errors import UserError, first_line


@functools.cache  # once in a process
def serve_profiles(port: int) -> None:
    """Answers requests for a profile, such as those of TensorBoard; process i listens at `port` + i, 0 at none.

    Raises:
      UserError: the port is in use.
    """
    if not port:
        return
    port += jax.process_index()
    try:  # the profiler itself says nothing when it cannot listen
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"the profiler cannot listen at port {port} ({error.strerror}): set config.profiler_port to another."
        ) from error
    jax.profiler.start_server(port)


class Profiler:
    """A context around the steps of a run, which profiles those of a window."""

    def __init__(self, directory: storage.AnyPath, first_step: int, num_steps: int):
        """Writes into `directory`; `first_step` 0 profiles nothing, nor does a run that begins inside the window."""
        self._directory, self._first_step, self._last_step = directory, first_step, first_step + num_steps - 1
        self._scratch: tempfile.TemporaryDirectory[str] | None = None  # JAX writes to local disks alone
        self._running = False

    def begin_step(self, step: int) -> None:
        """Begins the profile before its first step."""
        if step == self._first_step:
            if storage.is_remote(self._directory):
                self._scratch = tempfile.TemporaryDirectory(prefix="transnormer.profile.")
            jax.profiler.start_trace(self._scratch.name if self._scratch else str(self._directory))
            self._running = True

    def end_step(self, step: int, result: Any) -> None:
        """Ends the profile after its last step, once `result` is there."""
        if self._running and step >= self._last_step:
            jax.block_until_ready(result)
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._running:
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        if self._scratch is not None:
            try:
                storage.upload(Path(self._scratch.name), self._directory)
            except Exception as error:  # of any store; the run is worth more than its profile
                print(f"warning: the profile was not written ({first_line(error)}).", file=sys.stderr)
            self._scratch.cleanup()
