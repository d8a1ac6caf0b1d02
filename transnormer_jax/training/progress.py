"""Throughput and the line that a person watches."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from transnormer_jax.training.flops import peak_flops


class Progress:
    """Counts tokens against the clock; what `pause` covers (evaluation, saving) does not count."""

    def __init__(self, flops_per_token: float, num_steps: int, first_step: int):
        """Starts the clock."""
        self._flops_per_token = flops_per_token
        self._peak = peak_flops(jax.devices()[0].device_kind)
        self._num_steps, self._step = num_steps, first_step
        self._tokens = 0.0
        self._start = time.perf_counter()

    def count(self, tokens: float) -> None:
        """Adds the tokens of one step."""
        self._tokens += tokens

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Takes the time spent inside off the clock."""
        begin = time.perf_counter()
        yield
        self._start += time.perf_counter() - begin

    def rates(self, step: int) -> dict[str, float]:
        """Rates since the last call, and memory; MFU only on a device whose peak is known."""
        seconds = time.perf_counter() - self._start
        tokens_per_second = self._tokens / seconds
        per_device = tokens_per_second * self._flops_per_token / jax.device_count()
        rates = {
            "tokens_per_second": tokens_per_second,
            "seconds_per_step": seconds / max(step - self._step, 1),
            "tflops_per_second_per_device": per_device / 1e12,
            "peak_memory_gb": peak_memory_bytes() / 1e9,
        }
        if self._peak is not None:
            rates["mfu"] = per_device / self._peak
        self._tokens, self._step, self._start = 0.0, step, time.perf_counter()
        return rates

    def line(self, step: int, scalars: dict[str, float]) -> str:
        """One line for the terminal."""
        left = (self._num_steps - step) * scalars["seconds_per_step"]
        speed = (
            f"{scalars['mfu']:.1%} MFU"
            if "mfu" in scalars
            else (f"{scalars['tflops_per_second_per_device']:.3g} TFLOP/s")
        )
        skipped = f" | skipped {scalars['skipped_steps']:.0f}" if scalars["skipped_steps"] else ""
        return (
            f"step {step:>{len(str(self._num_steps))}}/{self._num_steps} | loss {scalars['loss']:.4f} | "
            f"grad norm {scalars['grad_norm']:.2f} | lr {scalars['learning_rate']:.2e} | "
            f"{scalars['tokens_per_second']:,.0f} tokens/s | {speed}{skipped} | {duration(left)} left"
        )


def peak_memory_bytes() -> int:
    """The most memory that was in use so far: of this process's first device; on a CPU, of the process itself."""
    statistics = jax.local_devices()[0].memory_stats()  # None on a CPU
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as a person says them.

    >>> duration(3725)
    '1h02m'
    >>> duration(65)
    '1m05s'
    """
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
