"""Selects the checkpoint to read: the newest that every process can read."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from transnormer_jax.distributed import multihost
from transnormer_jax.errors import UserError, first_line
from transnormer_jax.log import log

# Another model's checkpoint, or one that is too large for this machine, is whole; so is the one before.
_NOT_ITS_FAULT = (UserError, MemoryError, jax.errors.JaxRuntimeError)
# A store or a network disk may fail for a while and work again: seconds before each further try, of all checkpoints
# together, so that several broken ones are passed over without waiting for each.
_RETRY_SECONDS = (1.0, 5.0)


class Found[T](NamedTuple):
    """A checkpoint that was read.

    Attributes:
      step: of the checkpoint.
      broken: why newer ones could not be read, by step.
    """

    step: int
    content: T
    broken: dict[int, str]


def newest_readable[T](
    directory: epath.PathLike,
    steps: Iterable[int],
    read: Callable[[int], T],
    check: Callable[[T], None] = lambda content: None,
) -> Found[T] | None:
    """Reads checkpoints from the newest down to the first that can be read; called by all processes alike.

    What cannot be read is read again after some seconds, at most twice in all.

    Args:
      read: a step to its content; what it raises for a torn file means that the one before is tried.
      check: raises likewise for content that is not as it was saved. It may use collectives: it is called once all
        processes have read the step.

    Returns:
      What was found, or None if there are no checkpoints.

    Raises:
      UserError: none can be read, or `read` raises it.
    """
    # File systems differ in when they show a new directory: process 0 says which steps there are.
    left = multihost.broadcast_from_process0(sorted(steps))
    broken: dict[int, str] = {}
    waits = iter(_RETRY_SECONDS)
    while left:
        step = left.pop()
        result, reason = _read_patiently(read, check, step, waits)
        if not reason:
            [content] = result
            return Found(step, content, broken)
        broken[step] = reason
    if not broken:
        return None
    [newest, *_] = broken
    raise UserError(
        f"none of the {len(broken)} checkpoints in {str(directory)!r} can be read "
        f"(checkpoint {newest}: {broken[newest]}): mend what keeps them from being read, or train in a new --workdir."
    )


def _read_patiently[T](
    read: Callable[[int], T], check: Callable[[T], None], step: int, waits: Iterator[float]
) -> tuple[list[T], str]:
    """The content in a list, or the reason why some process cannot read it in the end."""
    while True:
        content, reason = _attempt(read, step)
        reasons = list(filter(None, multihost.all_gather(reason, "reading a checkpoint")))
        if not reasons:
            _, reason = _attempt(check, *content)
            reasons = list(filter(None, multihost.all_gather(reason, "checking a checkpoint")))
        if not reasons:
            return content, ""
        seconds = next(waits, None)
        if seconds is None:
            return [], reason or f"another process: {reasons[0]}"
        log(f"checkpoint {step} cannot be read ({reasons[0]}): trying again in {seconds:.0f} s")
        time.sleep(seconds)


def _attempt[**P, T](call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> tuple[list[T], str]:
    """The result in a list, or the reason why there is none."""
    try:
        return [call(*arguments, **named)], ""
    except _NOT_ITS_FAULT:
        raise
    except Exception as error:
        # Whatever a torn file made Orbax raise: an older checkpoint is better than none.
        return [], first_line(error)


def each_for_itself() -> ocp.options.MultiprocessingOptions:
    """Reading without barriers, at which the others would stand if one process fails."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
