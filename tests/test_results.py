"""The tables of results say what their records say, and every record is shown somewhere."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = {name: (ROOT / "docs" / "results" / f"{name}.md").read_text() for name in ("figures", "published")}
SECTIONS = {
    f"{name}: {section.partition('\n')[0]}": section
    for name, page in PAGES.items()
    for section in page.split("\n## ")[1:]
    # That of the faults counts rows.
    if "[record](" in section and not section.startswith("Faults\n")
}


def numbers(record: Any) -> Iterator[float]:
    """Every number in a record."""
    if isinstance(record, dict | list):
        for value in record.values() if isinstance(record, dict) else record:
            yield from numbers(value)
    elif isinstance(record, int | float):
        yield record


def ours(section: str) -> Iterator[str]:
    """The cells of the tables that come from the record: without the names of rows and what is published."""
    columns: list[int] = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            columns = []
        elif not columns:
            columns = [i for i, name in enumerate(cells) if i and name != "published"]
        else:
            yield from (cells[i] for i in columns)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_table_shows_its_record(section):
    text = SECTIONS[section]
    [link] = set(re.findall(r"\[record\]\(\.\./\.\./(\S+?)\)", text))
    found = list(numbers(json.loads((ROOT / link).read_text())))
    shown = re.findall(r"\d[\d,.]*(?:e[+-]\d+)?", " ".join(ours(text)))
    assert shown
    for number in shown:
        value, digits = float(number.replace(",", "")), len(re.sub(r"e.*|\D", "", number).lstrip("0"))
        decimals = len(number.partition(".")[2])
        assert any(float(f"{x:.{max(digits, 1)}g}") == value or round(x, decimals) == value for x in found), number


def test_every_record_is_shown():
    pages = [path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]]
    for path in sorted((ROOT / "benchmarks" / "results").rglob("*.*")):
        assert any(f"{path.parent.name}/{path.name}" in page for page in pages), path.name
