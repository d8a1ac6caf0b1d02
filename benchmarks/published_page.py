"""`python -m benchmarks.published` writes docs/results/published.md: the papers' numbers, and ours where there is one.

A number of ours is read from its record in benchmarks/results/; where there is none, the page says what it would take.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.published_tables import TABLES, Table

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "results" / "cpu"
PAGE = ROOT / "docs" / "results" / "published.md"

_HEAD = """# Published numbers beside ours

Each table of the papers whose numbers are known here, with ours where a command has made one. **Ours are of reduced
sizes, budgets and data on two CPU cores** and are no reproduction of the published value; what was reduced stands in
[the figures](figures.md) under the same name. A dash: there is none yet, and the line below says what it takes. Made by
`python -m benchmarks.published` from the records in `benchmarks/results/`.
"""


def page() -> str:
    """The whole page."""
    return "\n\n".join([_HEAD.rstrip(), *(_section(table) for table in TABLES)]) + "\n"


def _section(table: Table) -> str:
    record = json.loads((RECORDS / f"{table.record}.json").read_text()) if table.record else {}
    lines = ["| | published | ours |", "|---|---|---|"]
    for row, value in table.published.items():
        ours = _format(_find(record, table.ours[row])) if row in table.ours else "–"
        lines.append(f"| {row} | {_format(value)} | {ours} |")
    parts = [f"## {table.title}", f"{table.metric[0].upper()}{table.metric[1:]}; {table.source}.", "\n".join(lines)]
    words = [table.words] if table.words else []
    if record:
        made = record["environment"]
        words.append(
            f"Ours: `{record['command']}`, two CPU cores, jax {made['jax']}, {made['date_utc'][:10]}, "
            f"[record](../../benchmarks/results/cpu/{table.record}.json)."
        )
    return "\n\n".join([*parts, " ".join(words)])


def _find(record: Any, where: str | tuple[Any, ...]) -> Any:
    """The number of a study's variant, or what lies under keys in turn; several keys give several numbers."""
    if isinstance(where, str):
        [row] = [row for row in record["rows"] if row["variant"] == where]
        return row["final"]
    if not where:
        return record
    key, *rest = where
    if isinstance(key, tuple):
        return tuple(_find(record, (choice, *rest)) for choice in key)
    if isinstance(key, dict):  # the row of a list that has these values
        [record] = [row for row in record if key.items() <= row.items()]
        return _find(record, tuple(rest))
    return _find(record[key], tuple(rest))


def _format(value: Any) -> str:
    if isinstance(value, tuple):
        return " / ".join(map(_format, value))
    return value if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    PAGE.write_text(page())
