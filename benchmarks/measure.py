"""Time and memory of compiled functions."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
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
    function: Callable[..., Any], operands: tuple[Any, ...], *, max_gigabytes: float, seconds: float
) -> Measurement:
    """Compiles `function`, reads its memory, and times it unless it would not fit.

    Args:
      function: a function of `operands` that can be compiled.
      operands: trees of arrays on the device.
      max_gigabytes: a function that needs more for arguments, results and temporaries is not run; 10^9 bytes.
      seconds: how long to repeat the call after one call to warm up. It is repeated at least three times.
    """
    temp_bytes = None
    try:
        compiled = jax.jit(function).lower(*operands).compile()
        temp_bytes = compiled.memory_analysis().temp_size_in_bytes
        reason = too_large(compiled, max_gigabytes)
        if reason is not None:
            return Measurement(temp_bytes, skipped=reason)
        jax.block_until_ready(operands)
        times = time_calls(lambda: compiled(*operands), seconds=seconds)
    except Exception as error:  # A kernel fails in many ways where it does not fit; the others must still be measured.
        return Measurement(temp_bytes, skipped=one_line(error))
    milliseconds = [1e3 * t for t in times]
    return Measurement(temp_bytes, statistics.median(milliseconds), min(milliseconds), len(times))


def too_large(compiled: Any, max_gigabytes: float) -> str | None:
    """Why a compiled function is not run: arguments, results and temporaries of more than this, 10^9 bytes."""
    memory = compiled.memory_analysis()
    gigabytes = (memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes) / 1e9
    if gigabytes > max_gigabytes:
        return f"the compiler plans {gigabytes:.2f} GB, the limit is {max_gigabytes:g} GB"
    return None


def time_calls(function: Callable[[], Any], *, seconds: float, at_least: int = _MIN_REPEATS) -> list[float]:
    """Returns wall times of calls that wait for what they return, seconds, after one call to warm up."""
    jax.block_until_ready(function())
    times = list[float]()
    while len(times) < at_least or sum(times) < seconds:
        start = time.perf_counter()
        results = jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
        del results  # Its memory is free before the next call asks for as much.
    return times


def time_in_turn[Key](
    steps: Mapping[Key, Callable[[Any], Any]], states: dict[Key, Any], *, seconds: float
) -> dict[Key, list[float]]:
    """Wall times of steps from one state to the next, seconds, after one step to warm up; the states are used up.

    All take their turns, each for `seconds` on average, so that what else the machine does strikes all alike.
    """
    for key, step in steps.items():
        states[key] = jax.block_until_ready(step(states[key]))
    times: dict[Key, list[float]] = {key: [] for key in steps}
    total = 0.0
    while total < seconds * len(steps) or any(len(found) < _MIN_REPEATS for found in times.values()):
        for key, step in steps.items():
            start = time.perf_counter()
            states[key] = jax.block_until_ready(step(states[key]))
            times[key].append(time.perf_counter() - start)
            total += times[key][-1]
    return times


def one_line(error: Exception) -> str:
    """Returns the type and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition('\n')[0]}"
