"""What every benchmark does: flags from settings, times, a JSON record that says how it was made, and a plot.

`python -m benchmarks.NAME` calls `main`, which turns the fields of a settings dataclass into flags and hands a `Record`
to the benchmark's `run(settings, record)`.
"""

import dataclasses
import datetime
import functools
import importlib.metadata
import inspect
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from transnormer_jax import __version__, command
from transnormer_jax.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parents[1]

_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "jax-triton", "jax-cuda12-plugin", "jax-cuda13-plugin")
_MIN_CALLS = 3


# A command.


def main(name: str, settings: Any, run: Callable[..., dict[str, Any]], *, output: str = "") -> None:
    """The command `python -m benchmarks.NAME`: a flag for each field of the settings, and --output.

    Args:
      name: of the module.
      settings: a dataclass whose docstring explains its fields; texts, numbers and tuples of them with their defaults.
      run: (settings, record) -> summary, which becomes the last line on stdout.
      output: the JSON file if no flag names one; "" is benchmarks/results/DEVICE/NAME.json.
    """
    _define_flags(name, settings, output)
    command.run(lambda: _run(name, settings, run, output))


def check_positive(settings: Any) -> None:
    """Raises a `UserError` if a number among the settings is not positive, or a tuple is empty that need not be."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers and field.default != ():
            raise UserError(f"{field.name} is empty: give one at least.")
        if any(isinstance(x, int | float) and not x > 0 for x in numbers):
            raise UserError(f"{field.name} is {value}: give positive numbers only.")


def check_known(field: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises a `UserError` if a name is not known."""
    for name in names:
        if name not in known:
            raise UserError(f"unknown name {name!r} in {field}: {did_you_mean(name, known)}")


def last_error_line(errors: str, status: int | None) -> str:
    """The last line that a failed process wrote to stderr, or its status if it wrote nothing."""
    return ([line.strip() for line in errors.splitlines() if line.strip()] or [f"status {status}"])[-1]


def explain_fields(settings: Any) -> dict[str, str]:
    """The sentence about each field in the docstring of a dataclass."""
    # An attribute begins two columns in, and what is left of its sentence stands further in.
    matches = re.finditer(r"(?m)^  (\w+): (.*(?:\n    .*)*)", inspect.cleandoc(type(settings).__doc__ or ""))
    return {found[1]: " ".join(found[2].split()) for found in matches}


def _define_flags(name: str, settings: Any, output: str) -> None:
    explained = explain_fields(settings)
    for field in dataclasses.fields(settings):
        default, words = getattr(settings, field.name), explained[field.name]
        if isinstance(default, tuple):
            flags.DEFINE_list(field.name, [str(x) for x in default], words)
        elif isinstance(default, str):
            flags.DEFINE_string(field.name, default, words)
        elif isinstance(default, int):
            flags.DEFINE_integer(field.name, default, words)
        else:
            flags.DEFINE_float(field.name, default, words)
    place = output or f"benchmarks/results/<device>/{name}.json"
    flags.DEFINE_string("output", None, f"JSON file to write. Default: {place}.")


def _run(name: str, settings: Any, run: Callable[..., dict[str, Any]], output: str) -> None:
    values = {field.name: getattr(flags.FLAGS, field.name) for field in dataclasses.fields(settings)}
    for field, value in values.items():
        default = getattr(settings, field)
        if isinstance(default, tuple):
            kind = type(default[0]) if default else str
            try:
                values[field] = tuple(kind(x) for x in value)
            except ValueError as error:
                raise UserError(f"{field} is {value}: give numbers, separated by commas.") from error
    chosen = type(settings)(**values)
    command_line = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    record = Record(flags.FLAGS.output or output, command_line, chosen, name)
    summary = run(chosen, record)
    print(json.dumps({"output": str(record.path), **summary}))


# A record.


class Record:
    """The JSON file of a benchmark, and the plot beside it."""

    def __init__(self, output: str | Path, command_line: str, settings: Any, name: str = ""):
        """Makes the directory, now rather than after minutes of measuring.

        Args:
          output: the JSON file; "" is benchmarks/results/DEVICE/NAME.json.
          command_line: what was run.
          settings: its settings.
          name: for the default of `output`.

        Raises:
          UserError: the directory cannot be made, or `output` does not end in `.json`.
        """
        self.name, self._command_line, self._settings = name, command_line, settings
        if output:
            self.path = _with_directory(Path(output))

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """Hardware, versions and date of the first look at it. A benchmark that leaves the device to others sets it."""
        return describe_environment()

    @functools.cached_property
    def path(self) -> Path:
        """The JSON file."""
        return _with_directory(results_directory(self.environment) / f"{self.name}.json")

    def write(self, **content: Any) -> None:
        """Writes the file whole. Called after everything that was measured, so that an interruption loses nothing."""
        made = {"command": self._command_line, "environment": self.environment}
        text = json.dumps(made | {"settings": dataclasses.asdict(self._settings)} | content, indent=1)
        unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        unfinished.write_text(text + "\n")
        unfinished.replace(self.path)

    def plot(self, panels: "Sequence[Panel]", *, title: str, xlabel: str) -> None:
        """Draws panels side by side over one legend."""
        # A bare Figure draws by Agg: it needs neither a display nor the global state of pyplot.
        figure = Figure(figsize=(5 * len(panels), 5), layout="constrained")
        figure.suptitle(f"{title}; {hardware(self.environment)}")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, panel in zip(axes, panels, strict=True):
            for name, points in panel.lines.items():
                ax.plot(*zip(*points, strict=True) if points else ([], []), panel.style, markersize=4, label=name)
            ticks = sorted({x for points in panel.lines.values() for x, _ in points})
            if panel.log and ticks:  # An empty log axis is an error to matplotlib.
                ax.set(xscale="log", yscale="log")
                ax.set_xticks(ticks, [f"{x:g}" if isinstance(x, float) else str(x) for x in ticks], rotation=45)
                ax.minorticks_off()
            ax.grid(alpha=0.3)
            ax.set(title=panel.title, xlabel=xlabel, ylabel=panel.ylabel)
        columns = min(6, 2 * len(panels))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
        figure.savefig(self.path.with_suffix(".png"), dpi=120)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One part of a plot.

    Attributes:
      title: what is shown.
      ylabel: quantity and unit.
      lines: name in the legend -> points (x, y), perhaps none; the same names in every panel.
      log: whether both axes are logarithmic.
      style: matplotlib's.
    """

    title: str
    ylabel: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log: bool = True
    style: str = "o-"


def _with_directory(path: Path) -> Path:
    if path.suffix != ".json":
        raise UserError(f"output is {str(path)!r}: give a name that ends in .json.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory of {str(path)!r} ({error}): choose another output.") from error
    return path


def describe_environment() -> dict[str, Any]:
    """Hardware, versions and date (UTC)."""
    return _hardware() | describe_versions()


def describe_versions() -> dict[str, str]:
    """Versions and date, for which JAX need not be started."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    own = {"python": platform.python_version(), "transnormer_jax": __version__, "commit": _commit()}
    return own | versions(_PACKAGES) | {"date_utc": now}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    installed = {}
    for name in packages:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def hardware(environment: Mapping[str, Any]) -> str:
    """The hardware in a few words."""
    if environment["platform"] == "cpu":
        return f"{environment['cpu_cores']} CPU cores ({environment['machine']})"
    return str(environment["device_kind"])


def results_directory(environment: Mapping[str, Any]) -> Path:
    """Where the records of a device are: benchmarks/results/cpu, or h200, or tpu-v5-lite."""
    device = str(environment["device_kind"]).removeprefix("NVIDIA ").replace(" ", "-").lower()
    return Path("benchmarks/results", device)


@functools.cache
def _hardware() -> dict[str, Any]:
    return {
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cpu_cores": os.cpu_count() or 0,
    }


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


@functools.cache
def _commit() -> str:
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return found.stdout.strip()


# A measurement.


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one function took; `skipped` says why the times are missing.

    Attributes:
      compiler_temp_bytes: temporary memory that the compiler plans, beside arguments and results; no measured peak.
      median_ms: median wall time of a call, milliseconds, dispatch included.
      min_ms: the shortest call, milliseconds.
      repeats: number of timed calls.
      skipped: why it was not run, or how it failed.
    """

    compiler_temp_bytes: int | None = None
    median_ms: float | None = None
    min_ms: float | None = None
    repeats: int = 0
    skipped: str | None = None

    def known(self) -> dict[str, Any]:
        """The fields that are known, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def __str__(self) -> str:
        if self.skipped is not None:
            return f"skipped: {self.skipped}"
        return f"{self.median_ms:.2f} ms (of {self.repeats}), {(self.compiler_temp_bytes or 0) / 1e6:.1f} MB planned"


def measure(
    function: Callable[..., Any], operands: tuple[Any, ...], *, max_gigabytes: float, seconds: float
) -> Measurement:
    """Compiles `function`, reads its memory, and times it unless it would not fit.

    Args:
      function: a function of `operands` that can be compiled.
      operands: trees of arrays on the device.
      max_gigabytes: a function that needs more for arguments, results and temporaries is not run; 10^9 bytes.
      seconds: how long to repeat the call, three times at least, after one call to warm up.
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


def time_calls(function: Callable[[], Any], *, seconds: float, at_least: int = _MIN_CALLS) -> list[float]:
    """Wall times of calls that wait for what they return, seconds, after one call to warm up."""
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

    They take turns, each for `seconds` on average, so that what else the machine does affects all alike.
    """
    for key, step in steps.items():
        states[key] = jax.block_until_ready(step(states[key]))
    times: dict[Key, list[float]] = {key: [] for key in steps}
    total = 0.0
    while total < seconds * len(steps) or any(len(found) < _MIN_CALLS for found in times.values()):
        for key, step in steps.items():
            start = time.perf_counter()
            states[key] = jax.block_until_ready(step(states[key]))
            times[key].append(time.perf_counter() - start)
            total += times[key][-1]
    return times


def one_line(error: Exception) -> str:
    """The type and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition('\n')[0]}"


def tree_size(tree: Any) -> int:
    """How many numbers a tree of arrays, or of their shapes, holds."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def tree_bytes(tree: Any) -> int:
    """How many bytes a tree of arrays, or of their shapes, takes."""
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
