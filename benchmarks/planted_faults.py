"""Do the tests notice? Plants one fault at a time in a copy of the repository and runs the tests that should fail.

    python -m benchmarks.planted_faults

Each fault of planted_faults.json replaces one piece of text in one file by another. It is caught if the named tests
pass without it and fail with it. Some of these tests compare with reference outputs in ../shared, and skip without.
"""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Record, main

_FAULTS = Path(__file__).with_suffix(".json")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which faults are planted.

    Attributes:
      only: those of files with this in their path; empty for all.
    """

    only: str = ""


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Plants the faults, prints and records what becomes of each, and returns how many of each file are caught."""
    faults = [fault for fault in json.loads(_FAULTS.read_text()) if settings.only in fault["path"]]
    rows = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name:
        directory = _copy_repository(Path(name))
        for fault in faults:
            if (count := (directory / fault["path"]).read_text().count(fault["before"])) != 1:
                raise RuntimeError(f"{fault['path']} has {count} times, not once: {fault['before']}")
        for tests in sorted({fault["tests"] for fault in faults}):
            if not _passes(directory, tests):
                raise RuntimeError(f"{tests} fails without any fault")
        for fault in faults:
            file = directory / fault["path"]
            text = file.read_text()
            file.write_text(text.replace(fault["before"], fault["after"]))
            rows.append(fault | {"caught": not _passes(directory, fault["tests"])})
            file.write_text(text)
            print("caught" if rows[-1]["caught"] else "NOT CAUGHT", fault["path"], repr(fault["after"]), flush=True)
            record.write(rows=rows, summary=summarize(rows))
    return summarize(rows)


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by subpackage."""
    areas = Counter("/".join(row["path"].split("/")[1:2]) for row in rows)
    return {
        "faults": len(rows),
        "caught": sum(row["caught"] for row in rows),
        "by_subpackage": dict(sorted(areas.items())),
    }


def _copy_repository(directory: Path) -> Path:
    """Copies what git tracks, and links the reference data beside it."""
    if (ROOT.parent / "shared").is_dir():
        (directory / "shared").symlink_to(ROOT.parent / "shared")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        (directory / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, directory / "copy" / name)
    return directory / "copy"


def _passes(directory: Path, tests: str) -> bool:
    """Whether the tests pass in the copy; pytest's status 1 is a test that failed, any other is a mistake here."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    # The same second may see a file with and without its fault: no compiled code is kept.
    environment = os.environ | {"PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode > 1:
        raise RuntimeError(f"pytest {tests} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


if __name__ == "__main__":
    main("planted_faults", Settings(), run)
