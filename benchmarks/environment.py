"""What a measurement was taken on."""

import datetime
import importlib.metadata
import os
import platform

import jax


def describe_environment() -> dict[str, str | int]:
    """Returns the hardware, the versions and the date (UTC), for the JSON file of a benchmark."""
    return {
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "cpu_cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
        "date_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def hardware(environment: dict[str, str | int]) -> str:
    """Returns the hardware in a few words, for the title of a plot."""
    if environment["platform"] == "cpu":
        return f"{environment['cpu_cores']} CPU cores ({environment['machine']})"
    return str(environment["device_kind"])
