"""Compiles a script's program with the TPU compiler, in a process that has it from the start."""

import os
import subprocess
import sys
from pathlib import Path

from tests.commands import ROOT
from transnormer_jax.distributed.topology import ENVIRONMENT


def compiled_text(script: str, libtpu: Path) -> str:
    """What the script prints."""
    environment = os.environ | ENVIRONMENT | {"TPU_LIBRARY_PATH": str(libtpu)}
    environment.pop("XLA_FLAGS", None)
    program = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert program.returncode == 0, program.stderr[-2000:]
    return program.stdout
