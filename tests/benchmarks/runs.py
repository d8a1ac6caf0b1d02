"""Runs a benchmark as its command does, and looks at what it leaves."""

import json
from pathlib import Path
from typing import Any

from benchmarks.common import Record


def run_benchmark(module: Any, settings: Any, output: Path, *, plot: bool = True) -> tuple[dict, dict]:
    """The summary and the record of `module.run`."""
    summary = module.run(settings, Record(output, "the command", settings))
    record = json.loads(output.read_text())
    assert record["command"] == "the command"
    assert {"platform", "device_kind", "cpu_cores", "jax", "date_utc"} <= record["environment"].keys()
    assert output.with_suffix(".png").exists() == plot
    return summary, record
