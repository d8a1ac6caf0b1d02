"""A stage of the engine leaves no process behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import ROOT

SCRIPT = """
import os, time
from pathlib import Path
from transnormer_jax.data.engine import EachTask, run_stage

def wait(task):
    (Path(OUT) / f"started.{task}").touch()
    time.sleep(120)

if __name__ == "__main__":
    run_stage("wait", [EachTask("wait", wait)], 2, WORKERS, Path(OUT) / "logs" / "wait")
"""


def processes_of_session(session: int) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of_session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state != "Z":
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find processes")
@pytest.mark.parametrize("workers", [1, 2])
def test_its_processes_end_when_it_is_killed(tmp_path, workers):
    script = tmp_path / "stage.py"
    script.write_text(SCRIPT.replace("OUT", repr(str(tmp_path))).replace("WORKERS", str(workers)))
    process = subprocess.Popen(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True
    )
    while process.poll() is None and len(list(tmp_path.glob("started.*"))) < workers:
        time.sleep(0.02)
    assert len(processes_of_session(process.pid)) > 1
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while (left := processes_of_session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
