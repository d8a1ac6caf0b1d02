"""What every record of a benchmark has."""

import json
from pathlib import Path


def record_of(output: Path) -> dict:
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(output.read_text())
    assert record["command"] == "the command"
    assert {"device_kind", "jax", "date_utc"} <= record["environment"].keys()
    return record
