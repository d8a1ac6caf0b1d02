"""Averages the metrics of a window of steps, and writes throughput and the progress line."""

import math
import resource
import sys
from collections.abc import Sequence

import jax

from transnormer_jax.training.config import Config
from transnormer_jax.training.flops import peak_flops
from transnormer_jax.training.goodput import Stopwatch
from transnormer_jax.training.step import StepMetrics


def window_means(window: Sequence[StepMetrics]) -> dict[str, float]:
    """The metrics of consecutive steps as one line.

    Loss and accuracy are means over all predictions of the steps that were finite, tokens a sum; all else is that of
    the last step.
    """
    finite = [one for one in window if math.isfinite(one.loss_sum)]
    predictions = sum(float(one.predictions) for one in finite)
    loss, correct = (sum(float(getattr(one, name)) for one in finite) for name in ("loss_sum", "correct"))
    scalars = {
        name: float(value) for name, value in window[-1]._asdict().items() if name not in ("loss_sum", "correct")
    }
    means = {"loss": loss, "accuracy": correct}
    scalars |= {name: total / predictions if predictions else math.nan for name, total in means.items()}
    for name in ("tokens", "predictions", "empty_steps"):
        scalars[name] = sum(float(getattr(one, name)) for one in window)
    return scalars


class Progress:
    """Throughput of steps, and how long the run will take; saving, evaluating and compiling count in neither rate."""

    def __init__(self, config: Config, flops_per_token: float, stopwatch: Stopwatch):
        """Takes what is constant in a run, and the clock."""
        self._config, self._flops_per_token, self._stopwatch = config, flops_per_token, stopwatch
        self._peak = peak_flops(jax.devices()[0].device_kind)
        self._seconds = self._busy()
        self._evaluation_seconds = 0.0

    def evaluated(self, seconds: float) -> None:
        """Notes how long an evaluation takes."""
        self._evaluation_seconds = seconds

    def rates(self, tokens: float, steps: int) -> dict[str, float]:
        """Rates since the last call, and memory; MFU only on a device whose peak is known."""
        seconds = max(self._busy() - self._seconds, 1e-9)
        self._seconds += seconds
        per_device = tokens / seconds * self._flops_per_token / jax.device_count()
        rates = {
            "tokens_per_second": tokens / seconds,
            "seconds_per_step": seconds / steps,
            "tflops_per_second_per_device": per_device / 1e12,
            "peak_memory_gb": peak_memory_bytes() / 1e9,
        }
        if self._peak is not None:
            rates["mfu"] = per_device / self._peak
        return rates

    def line(self, step: int, scalars: dict[str, float]) -> str:
        """One line for the terminal."""
        last = self._config.num_steps
        tflops = f"{scalars['tflops_per_second_per_device']:.3g} TFLOP/s"
        speed = f"{scalars['mfu']:.1%} MFU" if "mfu" in scalars else tflops
        parts = [
            f"step {step:>{len(str(last))}}/{last}",
            f"loss {scalars['loss']:.4f}",
            f"grad norm {scalars['grad_norm']:.2f}",
            f"lr {scalars['learning_rate']:.2e}",
            f"{scalars['tokens_per_second']:,.0f} tokens/s",
            speed,
            f"goodput {scalars['goodput']:.0%}",
        ]
        if scalars["skipped_steps"]:
            parts.append(f"{scalars['skipped_steps']:.0f} steps not finite")
        if scalars["empty_steps"]:
            parts.append(f"{scalars['empty_steps']:.0f} batches without predictions")
        return " | ".join([*parts, f"{duration(self._left(step, scalars['seconds_per_step']))} left"])

    def summary(self) -> str:
        """Where the time went, over all starts of the run."""
        spent = self._stopwatch.metrics()
        words = {
            "start": "starting",
            "compile": "compiling",
            "data": "waiting for data",
            "save": "saving",
            "evaluate": "evaluating",
            "down": "down",
        }
        rest = ", ".join(f"{duration(spent[f'seconds/{name}'])} {text}" for name, text in words.items())
        return f"goodput {spent['goodput']:.1%}: {duration(spent['seconds/step'])} in steps, {rest}"

    def _left(self, step: int, seconds_per_step: float) -> float:
        last, every = self._config.num_steps, self._config.evaluation.every
        evaluations = 1 + ((last - 1) // every - step // every if every else 0)
        return (last - step) * seconds_per_step + evaluations * self._evaluation_seconds

    def _busy(self) -> float:
        self._stopwatch.metrics()  # up to now
        return self._stopwatch.seconds["step"] + self._stopwatch.seconds["data"]


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
