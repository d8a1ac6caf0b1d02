"""Which checkpoint of several is read: the newest that every process can read."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from transnormer_jax.distributed import multihost
from transnormer_jax.errors import UserError, first_line

# Another model's checkpoint, or one that is too large for this machine, is whole; so is the one before.
_NOT_ITS_FAULT = (UserError, MemoryError, jax.errors.JaxRuntimeError)


class Found[T](NamedTuple):
    """A checkpoint that was read.

    Attributes:
      step: of the checkpoint.
      content: what was read.
      broken: why newer ones could not be read, by step.
    """

    step: int
    content: T
    broken: dict[int, str]


def newest_readable[T](directory: epath.Path, steps: Iterable[int], read: Callable[[int], T]) -> Found[T] | None:
    """Reads checkpoints from the newest down to the first that can be read; called by all processes alike.

    Args:
      directory: of the checkpoints.
      steps: of those in it.
      read: a step to its content; what it raises for a torn file means that the one before is tried.

    Returns:
      What was found, or None if there are no checkpoints.

    Raises:
      UserError: none can be read, or `read` raises it.
    """
    # File systems differ in when they show a new directory: process 0 says which steps there are.
    left = sorted(steps)
    broken: dict[int, str] = {}
    while (step := multihost.broadcast_from_process0(left.pop() if left else -1)) >= 0:
        content, reason = None, "another process cannot read it"
        try:
            content = read(step)
        except _NOT_ITS_FAULT:
            raise
        except Exception as error:
            # Whatever a torn file made Orbax raise: an older checkpoint is better than none.
            reason = first_line(error)
        if multihost.all_agree(content is not None) and content is not None:
            return Found(step, content, broken)
        broken[step] = reason
    if not broken:
        return None
    [newest, *_] = broken
    raise UserError(
        f"none of the {len(broken)} checkpoints in {str(directory)!r} can be read "
        f"(checkpoint {newest}: {broken[newest]}): train in a new --workdir."
    )


def each_for_itself() -> ocp.options.MultiprocessingOptions:
    """Reading without barriers, at which the others would stand if one process fails."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
