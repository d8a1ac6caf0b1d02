"""Signals before the first step: one line and an exit status, wherever the process is."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import ROOT

WAITS = {
    "an import": "import time; print('here', flush=True); time.sleep(60)",
    # A call into C that does not come back to Python: the main thread runs no handler.
    "native code": "import ctypes; print('here', flush=True); ctypes.CDLL(None).pause(); ctypes.CDLL(None).sleep(60)",
}


def stopped(program: str, number: signal.Signals, said: tuple[str, ...] = ("here\n",)) -> tuple[int, str, str]:
    """Sends the program a signal when it has said these lines; its status, and what else it wrote."""
    process = subprocess.Popen(
        # Where tests run in the background, SIGINT is ignored from the start.
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{program}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert tuple(process.stdout.readline() for _ in said) == said
    time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("wait", WAITS)
def test_a_signal_before_the_first_step_ends_in_one_line(wait, number):
    result = stopped(f"from transnormer_jax import start; start.begin(); {WAITS[wait]}", number)
    sentence = f"stopped by {number.name} before the first step; run the same command to resume\n"
    assert result == (75, "", sentence)


def test_a_signal_while_the_interpreter_shuts_down_ends_in_one_line():
    """No thread can be started by then."""
    program = (
        "import atexit, os, signal; from transnormer_jax import start; start.begin(); "
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    sentence = "stopped by SIGTERM before the first step; run the same command to resume\n"
    assert (done.returncode, done.stderr) == (75, sentence)


def test_a_signal_after_the_interpreter_has_dropped_its_handlers_changes_nothing():
    """The run is over and has its status; a `__del__` of what modules hold runs as late as that."""
    program = (
        "import os, signal; from transnormer_jax import start; start.begin(); kill = os.kill, os.getpid(), 15\n"
        "class Late:\n    def __del__(self, kill=kill): kill[0](*kill[1:])\n"
        "late = Late(); raise SystemExit(3)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")


def test_others_hear_of_it_first(tmp_path):
    program = (
        "from pathlib import Path; from transnormer_jax import start; start.begin(); "
        f"start.on_stop(lambda reason: Path({str(tmp_path / 'reason')!r}).write_text(reason)); {WAITS['an import']}"
    )
    assert stopped(program, signal.SIGTERM)[0] == 75
    assert (tmp_path / "reason").read_text() == "stopped by SIGTERM before the first step"


def test_a_child_process_dies_of_its_own_signals():
    program = (
        "import os, signal, time; from transnormer_jax import start; start.begin()\n"
        "reader, writer = os.pipe(); child = os.fork()\n"
        "if child == 0: os.write(writer, b'x'); time.sleep(60); os._exit(0)\n"
        "os.read(reader, 1); os.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
        "time.sleep(0.3); print('goes on')"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == f"{-signal.SIGTERM}\ngoes on\n"


def test_the_loops_own_handler_takes_over():
    program = (
        "import signal; from transnormer_jax import start; start.begin(); start.loop_begins()\n"
        "old = signal.signal(signal.SIGTERM, lambda *_: print('noted', flush=True))\n"
        "signal.raise_signal(signal.SIGTERM)\n"
        f"import time; time.sleep(0.3); signal.signal(signal.SIGTERM, old); {WAITS['an import']}"
    )
    status, _, err = stopped(program, signal.SIGTERM, ("noted\n", "here\n"))
    assert (status, err) == (75, "stopped by SIGTERM after the last step; run the same command to resume\n")


def test_ctrl_c_ends_another_command_without_a_traceback():
    program = f"from transnormer_jax import start; start.run_interruptible(lambda: exec({WAITS['an import']!r}))"
    assert stopped(program, signal.SIGINT) == (130, "", "interrupted\n")


def test_training_listens_before_its_large_imports():
    """In the scripts and in the module: what comes before is the standard library and `start` alone."""
    for file in ("train.py", "transnormer_jax/train.py"):
        before, _, _ = Path(ROOT, file).read_text().partition("start.begin()")
        imports = [line for line in before.splitlines() if line.startswith(("import ", "from "))]
        assert set(imports) <= {"import runpy", "import sys", "from transnormer_jax import start"}, file
