"""What a measurement was taken on."""

import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax

from transnormer_jax import __version__

Environment = dict[str, str | int]

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "jax-triton", "jax-cuda12-plugin", "jax-cuda13-plugin")


def describe_environment() -> Environment:
    """Returns the hardware, the versions and the date (UTC), for the JSON file of a benchmark."""
    return _hardware() | describe_versions()


def describe_versions() -> dict[str, str]:
    """Returns the versions and the date alone, which JAX need not be started for."""
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


def hardware(environment: Mapping[str, str | int]) -> str:
    """Returns the hardware in a few words, for the title of a plot."""
    if environment["platform"] == "cpu":
        return f"{environment['cpu_cores']} CPU cores ({environment['machine']})"
    return str(environment["device_kind"])


def results_directory(environment: Mapping[str, str | int]) -> Path:
    """Where the records of a device lie: benchmarks/results/cpu, or h200, or tpu-v5-lite."""
    device = str(environment["device_kind"]).removeprefix("NVIDIA ").replace(" ", "-").lower()
    return Path("benchmarks/results", device)


@functools.cache
def _hardware() -> Environment:
    return {
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cpu_cores": os.cpu_count() or 0,
    }


def _cpu() -> str:
    """The model of the processor, as Linux has it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


@functools.cache
def _commit() -> str:
    """Of the checkout; "" where there is none."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=_ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip()
