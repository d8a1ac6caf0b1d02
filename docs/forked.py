"""Programs in forks of a process that has made the imports already, so that they begin at once."""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        "transnormer_jax.command",
        "transnormer_jax.inference",
        "transnormer_jax.training",
        "ml_collections.config_flags",
        "tensorflow_datasets",
        "grain",
    ]
)
_LIMIT_SECONDS = 300


def run(arguments: Sequence[str], directory: Path, environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Runs `python ARGUMENTS`: a file or `-m MODULE`, and what follows.

    What JAX reads from its environment when it is imported is that of this process when it first came here.

    Args:
      arguments: of Python.
      directory: to run in.
      environment: variables beside those of this process.

    Returns:
      Exit status, negative for a signal; stdout; stderr.

    Raises:
      TimeoutError: it took more than five minutes, and was killed.
    """
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        become = (list(arguments), str(directory), {**os.environ, **environment}, out.name, err.name)
        process = _PROCESSES.Process(target=_become, args=become)
        process.start()
        process.join(_LIMIT_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{' '.join(arguments)} took more than {_LIMIT_SECONDS} s: {err.read().decode()}")
        return process.exitcode, out.read().decode(), err.read().decode()


def _become(arguments: list[str], directory: str, environment: dict[str, str], out: str, err: str) -> None:
    for number, name in ((1, out), (2, err)):
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
