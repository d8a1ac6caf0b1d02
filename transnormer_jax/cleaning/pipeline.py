"""The stages of the engine, one after the other on this machine, and the report of every decision."""

import collections
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transnormer_jax.cleaning import duplicates
from transnormer_jax.cleaning.documents import ReadText, read_shard, shards_of, writer
from transnormer_jax.cleaning.rules import rules
from transnormer_jax.data.corpus import TextFiles
from transnormer_jax.data.engine import run_stage
from transnormer_jax.data.find_files import file_identity, find_files
from transnormer_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is read, and what the rules ask for.

    Attributes:
      files: see `find_files.find_files`.
      documents: see `text_files.read_documents`.
      field: of JSON lines and Parquet, what holds the text.
      languages: ISO 639-1 names of those that stay; empty for all.
      min_words: of a document.
    """

    files: str
    documents: str = "file"
    field: str = "text"
    languages: tuple[str, ...] = ("en",)
    min_words: int = 50


def stages(settings: Settings, out: Path) -> list[duplicates.Stage]:
    """The stages in turn. Each needs all tasks of the one before it, on this machine or another.

    Raises:
      UserError: no file matches, or there is no such way to divide one into documents.
    """
    texts = TextFiles(settings.files, settings.documents, field=settings.field)
    passed, removed = out / "scratch" / "passed", out / "removed"
    judged = [ReadText(texts), *rules(settings.languages, settings.min_words, removed), writer(passed)]
    return [
        ("rules", judged, len(texts)),
        *duplicates.stages(passed, out / "scratch", out / "kept", removed / "duplicates", len(texts)),
    ]


def clean(settings: Settings, out: Path, workers: int) -> dict[str, Any]:
    """Writes `kept`, `removed/STAGE` and `report.json` below `out`; what a killed run has finished is not done again.

    Returns:
      The report: documents and characters that were read, kept, and removed by stage and reason.

    Raises:
      UserError: no file matches, a file cannot be read, or `out` holds the work of other settings.
    """
    todo = stages(settings, out)
    # A file more or less, or a changed one, would part the tasks in another way.
    found = [file_identity(file) for file in find_files(settings.files).files]
    claim(out / "settings.json", dataclasses.asdict(settings) | {"found": found})
    for name, steps, tasks in todo:
        if name == "signatures" and not shards_of(out / "scratch" / "passed"):
            break  # The rules let nothing pass, and the report will say so.
        run_stage(name, steps, tasks, workers, out / "logs" / name)
    report = _report(out)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def claim(file: Path, settings: Mapping[str, Any]) -> None:
    """Writes down with which settings a directory was begun, so that a later run goes on with the same.

    Raises:
      UserError: the directory cannot be written, or was begun with others.
    """
    out, content = file.parent, json.dumps(settings, indent=1)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(content)
    except OSError as error:
        raise UserError(f"cannot write to {str(out)!r} ({error.strerror}): choose another --out.") from error
    if file.read_text() != content:
        raise UserError(f"{str(out)!r} was begun with other settings or files: give the same, or choose another --out.")


def _report(out: Path) -> dict[str, Any]:
    """Counts what is on disk, and compares it with what the reader says it has read."""
    kept = _count(out / "kept")
    removed = {path.name: _reasons(path) for path in sorted((out / "removed").glob("*"))}
    read = _documents_read(out / "logs" / "rules" / "stats")
    total = kept["documents"] + sum(count for reasons in removed.values() for count in reasons.values())
    if read != total:
        raise UserError(f"{read} documents were read and {total} written: delete {str(out)!r} and run again.")
    return {"read": read, "kept": kept, "removed": removed}


def _count(directory: Path) -> dict[str, int]:
    sizes = [len(record["text"]) for shard in shards_of(directory) for record in read_shard(shard)]
    return {"documents": len(sizes), "characters": sum(sizes)}


def _reasons(directory: Path) -> dict[str, int]:
    metadata = (record["metadata"] for shard in shards_of(directory) for record in read_shard(shard))
    return dict(collections.Counter(one.get("filter_reason", "duplicate") for one in metadata).most_common())


def _documents_read(directory: Path) -> int:
    # The first step of the stage is the reader; it has no lengths where its part holds no document.
    lengths = (json.loads(path.read_text())[0]["stats"].get("doc_len") for path in directory.glob("*.json"))
    # Where every document has one character, the engine writes their number alone.
    return sum(of_part.get("n", 1) if isinstance(of_part, dict) else int(of_part) for of_part in lengths if of_part)
