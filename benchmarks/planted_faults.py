"""Do the tests notice? Plants one fault at a time in a copy of the repository and runs the tests that should fail.

    python -m benchmarks.planted_faults --output=benchmarks/results/cpu/planted_faults.json

Each fault of planted_faults.json replaces one piece of text in one file by another. It is caught if the named tests pass
without it and fail with it.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

_ROOT = Path(__file__).resolve().parents[1]
_FAULTS = Path(__file__).with_suffix(".json")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file of the record; empty: none is written")
_ONLY = flags.DEFINE_string("only", "", "plant the faults of files with this in their path alone")


class Fault(NamedTuple):
    """One fault: in `path`, `before` becomes `after`; pytest's arguments `tests` should then fail."""

    path: str
    before: str
    after: str
    tests: str


def copy_repository(directory: Path) -> None:
    """Copies what git tracks."""
    files = subprocess.run(["git", "ls-files"], cwd=_ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        if (_ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_ROOT / name, directory / name)


def passes(directory: Path, tests: str) -> bool:
    """Whether the tests pass in the copy; pytest's status 1 is a test that failed, any other is a mistake here."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    # The pieces are code: whatever Python compiled of the piece before must not be taken.
    environment = os.environ | {"PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode > 1:
        raise RuntimeError(f"pytest {tests} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main(_: list[str]) -> None:
    """Plants all faults; status 1 if one of them is not caught."""
    faults = [Fault(**one) for one in json.loads(_FAULTS.read_text()) if _ONLY.value in one["path"]]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        copy_repository(directory)
        for fault in faults:
            if (count := (directory / fault.path).read_text().count(fault.before)) != 1:
                raise RuntimeError(f"{fault.path} has {count} times, not once: {fault.before}")
        for tests in sorted({fault.tests for fault in faults}):
            if not passes(directory, tests):
                raise RuntimeError(f"{tests} fails without any fault")
        for fault in faults:
            file = directory / fault.path
            text = file.read_text()
            file.write_text(text.replace(fault.before, fault.after))
            rows.append({**fault._asdict(), "caught": not passes(directory, fault.tests)})
            file.write_text(text)
            print("caught" if rows[-1]["caught"] else "NOT CAUGHT", fault.path, repr(fault.after), flush=True)
    caught = sum(row["caught"] for row in rows)
    print(f"{caught} of {len(rows)} faults caught")
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(
            json.dumps({"faults": len(rows), "caught": caught, "rows": rows}, indent=1) + "\n"
        )
    sys.exit(caught < len(rows))


if __name__ == "__main__":
    app.run(main)
