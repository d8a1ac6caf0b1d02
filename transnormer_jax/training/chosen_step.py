"""Selects the checkpoint that a command reads: the newest, a given step, or the best on held-out data."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from transnormer_jax import storage
from transnormer_jax.distributed import multihost
from transnormer_jax.errors import UserError
from transnormer_jax.training.metrics import read_metrics
from transnormer_jax.training.parameters import saved_steps


def chosen_step(workdir: storage.AnyPath, wanted: str) -> int | None:
    """The step of the checkpoint that `wanted` means.

    Args:
      wanted: "" (the newest that can be read), a number, or "best": of the checkpoints that are kept, the one with the
        lowest held-out loss in `metrics.jsonl`.

    Returns:
      The step, or None for the newest.

    Raises:
      UserError: there is no such checkpoint, or none of those kept was evaluated.
    """
    if not wanted:
        return None
    steps = multihost.broadcast_from_process0(saved_steps(workdir))
    if not steps:
        raise UserError(f"{str(workdir)!r} holds no checkpoint yet: train first.")
    kept = ", ".join(map(str, steps))
    if wanted == "best":
        losses = held_out_losses(read_metrics(workdir))
        evaluated = [step for step in steps if step in losses]
        if not evaluated:
            raise UserError(
                f"no checkpoint in {str(workdir)!r} was evaluated during training: give --step=N, one of {kept}."
            )
        return min(evaluated, key=lambda step: losses[step])
    if not wanted.isdecimal():
        raise UserError(f"--step={wanted} is neither a number nor 'best': give one of {kept}, or 'best'.")
    if int(wanted) not in steps:
        raise UserError(f"{str(workdir)!r} holds no checkpoint of step {wanted}: give one of {kept}.")
    return int(wanted)


def held_out_losses(lines: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Step -> held-out loss, from lines of metrics; of a mixture, the mean over its sources.

    >>> held_out_losses([{"step": 5, "eval/loss": 2.0}, {"step": 9, "eval/a/loss": 1.0, "eval/b/loss": 2.0}])
    {5: 2.0, 9: 1.5}
    """
    losses = {}
    for line in lines:
        found = [value for name, value in line.items() if name.startswith("eval/") and name.endswith("/loss")]
        if found and all(value is not None and math.isfinite(value) for value in found):
            losses[line["step"]] = statistics.fmean(found)
    return losses
