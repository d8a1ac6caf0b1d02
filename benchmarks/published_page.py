"""`python -m benchmarks.published_page` writes docs/results/published.md: the papers' numbers, and ours beside them.

A number of ours is read from its record in benchmarks/results/; where there is none, the page says what it would take.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks import markdown
from benchmarks.published_tables import TABLES, Table, Where

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "results" / "cpu"
PAGE = ROOT / "docs" / "results" / "published.md"

# Where a record keeps the published number, by the last key of ours.
_PUBLISHED = {
    "final": "published",
    "parameters": "published",
    "over_softmax": "published_over_softmax",
    "images_per_second": "published_images_per_second",
    "speed": "published_speed",
}

_HEAD = """# Published numbers beside ours

Every table of the papers whose numbers are known here, with ours where a command has made one. **Ours are of reduced
sizes, budgets and data** and do not reproduce the published values; [the figures](figures.md) say under the same name
what was reduced. A dash means that there is no number of ours yet; the line below the table says what it would take.
This page is made by `python -m benchmarks.published_page` from the records in `benchmarks/results/`.
"""


def page() -> str:
    """The whole page."""
    return "\n\n".join([_HEAD.rstrip(), *(_section(table) for table in TABLES)]) + "\n"


def _section(table: Table) -> str:
    record = json.loads((RECORDS / f"{table.record}.json").read_text()) if table.record else {}
    rows = []
    for row in (*table.ours, *(row for row in table.published if row not in table.ours)):
        ours, published = _pair(record, table.ours[row]) if row in table.ours else (None, None)
        rows.append([row, _format(table.published.get(row, published)), _format(ours)])
    parts = [f"## {table.title}", f"{table.metric[0].upper()}{table.metric[1:]}; {table.source}."]
    parts.append(markdown.table(["", "published", "ours"], rows))
    words = [table.words] if table.words else []
    if record:
        words.append(f"Ours: {markdown.origin(f'cpu/{table.record}', record)}")
    return "\n\n".join([*parts, " ".join(words)])


def _pair(record: Any, where: Where) -> tuple[Any, Any]:
    """Our number, and the published one that the record keeps beside it."""
    return _find(record, where), _find(record, (*where[:-1], _PUBLISHED[where[-1]]))


def _find(record: Any, where: Where) -> Any:
    """What lies under keys in turn, None where nothing does; several keys give several numbers."""
    if not where or record is None:
        return record
    key, *rest = where
    if isinstance(key, tuple):
        return tuple(_find(record, (choice, *rest)) for choice in key)
    if isinstance(key, dict):  # the row of a list that has these values
        return _find(next((row for row in record if key.items() <= row.items()), None), tuple(rest))
    return _find(record.get(key), tuple(rest))


def _format(value: Any) -> str:
    if isinstance(value, tuple):
        return " / ".join(map(_format, value))
    return "–" if value is None else value if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    PAGE.write_text(page())
