"""Compiles a script's program with the TPU compiler, where there is one, in a process that has it from the start."""

import os
import subprocess
import sys

import pytest

from tests.commands import ROOT
from transnormer_jax.distributed.topology import ENVIRONMENT, find_libtpu
from transnormer_jax.errors import UserError


def compiled_text(script: str) -> str:
    """What the script prints; skips the test where there is no TPU compiler."""
    try:
        environment = os.environ | ENVIRONMENT | {"TPU_LIBRARY_PATH": str(find_libtpu())}
    except UserError as error:
        pytest.skip(str(error))
    environment.pop("XLA_FLAGS", None)
    program = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert program.returncode == 0, program.stderr[-2000:]
    return program.stdout
