"""What the pages of results are made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import hardware


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The lines of a table."""
    first, *others = ("".join(f"| {cell} " if cell != "" else "| " for cell in line) + "|" for line in (header, *rows))
    return "\n".join([first, "|" + "---|" * len(header), *others])


def origin(name: str, record: Mapping[str, Any]) -> str:
    """Command, hardware, versions and date of the record benchmarks/results/NAME.json, for a page in docs/results/."""
    made = record.get("environment") or next(iter(record["programs"].values()))["environment"]
    command = record.get("command", f"python -m benchmarks.{Path(name).name}")
    versions = f"jax {made['jax']}, Python {made['python']}, {made['date_utc'][:10]}"
    return f"`{command}` on {hardware(made)}, {versions}: [record](../../benchmarks/results/{name}.json)."
