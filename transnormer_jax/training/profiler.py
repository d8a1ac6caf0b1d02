"""A profile of some steps of a run, for TensorBoard."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax


class Profiler:
    """A context around the steps of a run, which profiles those of a window."""

    def __init__(self, directory: Path, first_step: int, num_steps: int):
        """Writes into `directory`; `first_step` 0 profiles nothing, nor does a run that begins inside the window."""
        self._directory, self._first_step, self._last_step = directory, first_step, first_step + num_steps - 1
        self._running = False

    def begin_step(self, step: int) -> None:
        """Begins the profile before its first step."""
        if step == self._first_step:
            jax.profiler.start_trace(str(self._directory))
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
