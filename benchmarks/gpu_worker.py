"""What the processes that `benchmarks.gpu` starts have in common: a task comes in, rows go out as they are measured.

The task is one JSON object, the first argument; its "rows" are [contender, shape, computation]. In their order each is
answered by a JSON object on a line of stdout, with the times or with the reason why there are none. A kernel that fails
may leave the device unusable for its process, so the process ends there with status 1, and `benchmarks.gpu` starts
another one for the rows that are left.
"""

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu_shapes import SHAPES, Shape
from benchmarks.measure import one_line
from benchmarks.truth import attend, relative_rms, truth

# Four times what the L2 cache of an NVIDIA H200 holds: it has forgotten each operand by its next use.
_CACHE_BYTES = 256_000_000
_WORK_SECONDS = 2e-3

Task = dict[str, Any]
Row = dict[str, Any]


class Skip(Exception):
    """There is no time for this row; the message is half a sentence that says why."""


def serve(measure_row: Callable[[Task, str, Shape, str], Row]) -> None:
    """Measures the rows of the task, up to the first that fails for no known reason."""
    task = json.loads(sys.argv[1])
    for contender, name, computation in task["rows"]:
        failed = False
        try:
            row = measure_row(task, contender, SHAPES[name], computation)
        except Skip as skip:
            row = {"skipped": str(skip)}
        except Exception as error:
            row, failed = {"skipped": one_line(error)}, True
        print(json.dumps(row), flush=True)
        if failed:
            sys.exit(1)


def plan(task: Task, shape: Shape, computation: str, *, max_calls: int) -> tuple[int, int]:
    """Returns how many calls to time at once, and on how many sets of operands.

    The calls are about two milliseconds of work at half the speed of the memory floor.
    """
    floor_seconds = shape.least_bytes(computation) / task["copy_bytes_per_second"]
    num_calls = min(max(math.ceil(_WORK_SECONDS / (2 * floor_seconds)), 1), max_calls)
    # q, k, v and d_out are as many numbers as the forward pass moves; it reads three quarters of them at K = V.
    operand_bytes = shape.least_bytes("forward") * (0.75 if computation == "forward" else 1)
    return num_calls, min(num_calls, math.ceil(_CACHE_BYTES / operand_bytes))


def verify(
    task: Task,
    shape: Shape,
    operands: list[Any],
    results: dict[str, Any],
    *,
    one_head: Callable[[Any, int, int], np.ndarray],
    finite: Callable[[Any], bool],
) -> dict[str, float]:
    """Returns the relative RMS error of each result, over the first and the last head; the others are checked for NaN.

    Args:
      task: has the tolerance.
      shape: the problem.
      operands: q, k, v, and d_out where the results have gradients.
      results: "out", and perhaps "dq", "dk" and "dv".
      one_head: (array, row, head) -> [N, K] float32.
      finite: whether all of an array is.

    Raises:
      Skip: the results are wrong.
    """
    errors = {name: list[float]() for name in results}
    for row, head in ((0, 0), (shape.batch - 1, shape.heads - 1)):
        sample = [one_head(x, row, head) for x in operands]
        decay, lengths = float(shape.log_decay[head]), shape.lengths
        q, k, v = sample[:3]
        if len(sample) == 3:
            expected = {"out": attend(q, k, v, decay, lengths)}
        else:
            expected = truth(q, k, v, sample[3], decay, lengths)
        for name, value in results.items():
            errors[name].append(relative_rms(one_head(value, row, head), expected[name]))
    worst = {name: float(np.max(both)) for name, both in errors.items()}
    bad = [name for name, error in worst.items() if not error <= task["tolerance"][shape.dtype]]  # NaN is bad, too.
    if bad:
        raise Skip("wrong, by relative RMS errors of " + ", ".join(f"{worst[name]:.1e} in {name}" for name in bad))
    not_finite = [name for name, value in results.items() if not finite(value)]
    if not_finite:
        raise Skip(f"wrong, {', '.join(not_finite)} is not finite everywhere")
    return worst
