"""Time and memory of one compiled function."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

_MIN_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one function took; `skipped` says why the times are missing.

    Attributes:
      compiler_temp_bytes: temporary memory that the compiler plans, beside arguments and results; no measured peak.
      median_ms: median wall time of a call, milliseconds, dispatch included.
      min_ms: the shortest call, milliseconds.
      repeats: number of timed calls.
      skipped: the reason why it was not run, or failed.
    """

    compiler_temp_bytes: int | None = None
    median_ms: float | None = None
    min_ms: float | None = None
    repeats: int = 0
    skipped: str | None = None


def measure(
    function: Callable[..., Any], operands: tuple[jax.Array, ...], *, max_gigabytes: float, seconds: float
) -> Measurement:
    """Compiles `function`, reads its memory, and times it unless it would not fit.

    Args:
      function: a function of `operands` that can be compiled.
      operands: arrays on the device.
      max_gigabytes: a function that needs more for arguments, results and temporaries is not run; 10^9 bytes.
      seconds: how long to repeat the call after one call to warm up. It is repeated at least three times.
    """
    temp_bytes = None
    try:
        compiled = jax.jit(function).lower(*operands).compile()
        memory = compiled.memory_analysis()
        temp_bytes = memory.temp_size_in_bytes
        gigabytes = (temp_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes) / 1e9
        if gigabytes > max_gigabytes:
            reason = f"the compiler plans {gigabytes:.2f} GB, the limit is {max_gigabytes:g} GB"
            return Measurement(temp_bytes, skipped=reason)
        times = _time_calls(compiled, jax.block_until_ready(operands), seconds)
    except Exception as error:  # A kernel fails in many ways where it does not fit; the others must still be measured.
        return Measurement(temp_bytes, skipped=one_line(error))
    milliseconds = [1e3 * t for t in times]
    return Measurement(temp_bytes, statistics.median(milliseconds), min(milliseconds), len(times))


def one_line(error: Exception) -> str:
    """Returns the type and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition('\n')[0]}"


def _time_calls(compiled: Callable[..., Any], operands: tuple[jax.Array, ...], seconds: float) -> list[float]:
    jax.block_until_ready(compiled(*operands))
    times = list[float]()
    while len(times) < _MIN_REPEATS or sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*operands))
        times.append(time.perf_counter() - start)
    return times
