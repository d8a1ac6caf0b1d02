"""Programs in forks of a process that has made the imports already, so that they begin at once."""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
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


class Program:
    """`python ARGUMENTS` as it runs, with the methods of `subprocess.Popen` that a test needs.

    What JAX reads from its environment when it is imported is that of this process when it first came here; the number
    of CPU devices alone is taken from `environment`.
    """

    def __init__(self, arguments: Sequence[str], directory: Path, environment: Mapping[str, str]):
        """Starts it.

        Args:
          arguments: of Python: a file or `-m MODULE`, and what follows.
          directory: to run in.
          environment: variables beside those of this process.
        """
        self._name = " ".join(arguments)
        # `communicate` closes them.
        self._out, self._err = (tempfile.NamedTemporaryFile("r+") for _ in range(2))  # noqa: SIM115
        become = (list(arguments), str(directory), {**os.environ, **environment}, self._out.name, self._err.name)
        self._process = _PROCESSES.Process(target=_become, args=become)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while the program runs."""
        return self._process.exitcode

    def lines(self) -> Iterator[str]:
        """The lines of stdout, each as soon as it is complete, until the program ends."""
        begun = ""
        while True:
            ended = self.returncode is not None
            begun += self._out.readline()
            if begun.endswith("\n"):
                yield begun
                begun = ""
            elif ended:
                return
            else:
                time.sleep(0.01)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends the program a signal."""
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Ends the program at once, by SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Waits for its end; returns stdout and stderr, from their beginning. To be called once.

        Raises:
          TimeoutError: it took more than `timeout` seconds, and was killed.
        """
        self._process.join(timeout)
        late = self.returncode is None
        if late:
            self.kill()
            self._process.join()
        with self._out, self._err:
            out, err = (Path(file.name).read_text() for file in (self._out, self._err))
        if late:
            raise TimeoutError(f"{self._name} took more than {timeout} s: {err}")
        return out, err


def run(arguments: Sequence[str], directory: Path, environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Runs a program to its end, of at most 300 seconds; returns its exit status, stdout and stderr."""
    program = Program(arguments, directory, environment)
    out, err = program.communicate(timeout=300)
    return program.returncode, out, err


def _become(arguments: list[str], directory: str, environment: dict[str, str], out: str, err: str) -> None:
    for number, name in ((1, out), (2, err)):
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    if devices := environment.get("JAX_NUM_CPU_DEVICES"):
        import jax

        jax.config.update("jax_num_cpu_devices", int(devices))
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
