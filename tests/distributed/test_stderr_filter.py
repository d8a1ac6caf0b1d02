"""What passes the filter of stderr, and how an abort ends; the texts are those of jaxlib 0.12."""

import signal
import subprocess
import sys

import pytest

from tests.commands import ROOT
from transnormer_jax.distributed.stderr_filter import lost_tasks

HEARTBEAT = """\
E1130 21:15:39.365670    7292 coordination_service.cc:1518] [143] Use error polling to propagate the following error \
to all tasks: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1
The tasks have crashed. Check the task logs for an earlier error, or scheduler events to debug further.
=== Source Location Trace: ===
external/xla+/xla/pjrt/distributed/coordination/coordination_service.cc:232

E1130 21:15:39.366190    7303 coordination_service_agent.cc:288] Polled an error from coordination service.
F1130 21:15:39.366412    7303 client.h:86] Terminating process because the JAX distributed service detected fatal \
errors. absl::Status: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1
3
The tasks have crashed. Check the task logs for an earlier error, or scheduler events to debug further.

RPC: /xla.coordination.CoordinationService/PollForError [type.googleapis.com/tensorflow.CoordinationServiceError='']
*** Check failure stack trace: ***
    @     0x7f0fb28d81b4  absl::lts_20260526::log_internal::LogMessage::SendToLog()
"""
LEADER = """\
F1130 21:15:57.913769    7883 client.h:86] Terminating process because the JAX distributed service detected fatal \
errors. absl::Status: UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted
Additional GRPC error information from remote target coordination_service while calling PollForError:
:UNAVAILABLE:Stream removed (Socket closed)
"""
# What a second thread wrote between the record of an abort and its stack.
INTERLEAVED = (
    LEADER
    + """\
E1130 21:15:57.913801    7886 coordination_service_agent.cc:610] Barrier failed: UNAVAILABLE: Shutdown
=== Source Location Trace: ===
external/xla+/xla/pjrt/distributed/coordination/coordination_service_agent.cc:610
 for task: 0
I1130 21:15:57.913815    7887 another_source.cc:20] another thread
*** Check failure stack trace: ***
    @     0x7f91c7af81b4  absl::lts_20260526::log_internal::LogMessage::SendToLog()
"""
)
CHECK = """\
F1130 21:24:48.285569   19958 some_pass.cc:86] Check failed: shape == other
*** Check failure stack trace: ***
    @     0x7f0fb28d81b4  xla::Pass()
"""


def filtered(text: str, end: str) -> tuple[int, str]:
    """Writes `text` as C++ does, then runs `end`; exit status and stderr."""
    program = f"""
import ctypes, os, sys
from transnormer_jax.distributed.abort_handling import AbortHandler, leave
from transnormer_jax.distributed.stderr_filter import StderrFilter
output, handler = StderrFilter("process 1: "), AbortHandler()
handler.expect_abort(output, lambda lost: leave(f"lost {{lost}}", 3))
os.write(2, {text.encode()!r})
{end}
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    return run.returncode, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("text", "lost"), [(HEARTBEAT, [1, 3]), (LEADER, [0])])
def test_a_loss_ends_in_one_sentence(text, lost):
    assert lost_tasks(text) == lost
    assert filtered(text, "ctypes.CDLL(None).abort()") == (3, f"error: lost {lost}\n")


@pytest.mark.slow
def test_a_loss_ends_in_one_sentence_though_two_threads_write():
    other = "process 1: I1130 21:15:57.913815    7887 another_source.cc:20] another thread\n"
    assert filtered(INTERLEAVED, "ctypes.CDLL(None).abort()") == (3, f"{other}error: lost [0]\n")


@pytest.mark.slow
def test_another_abort_keeps_its_output_and_status():
    status, err = filtered(CHECK, "ctypes.CDLL(None).abort()")
    assert status == -signal.SIGABRT
    assert [line.removeprefix("process 1: ") for line in err.splitlines()[:-1]] == CHECK.splitlines()
    assert err.splitlines()[-1] == "error: the runtime aborted, and no process was lost: see above why."
    assert lost_tasks(CHECK) is None


@pytest.mark.slow
def test_what_comes_after_a_loss_is_kept_apart():
    mixed = LEADER + "what a library says\n" + HEARTBEAT + CHECK
    status, err = filtered(mixed, "output.close()")
    expected = ["what a library says", *CHECK.splitlines()]
    assert (status, err.splitlines()) == (0, [f"process 1: {line}" for line in expected])


@pytest.mark.slow
@pytest.mark.parametrize("end", ["os._exit(5)", "os.kill(os.getpid(), 11)", "output.close()"])
def test_nothing_is_lost_however_the_process_ends(end):
    text = "".join(f"line {i}\n\n" for i in range(3000)) + "an unfinished line"
    _, err = filtered(text, end)
    assert [line.removeprefix("process 1: ") for line in err.splitlines()] == text.splitlines()


@pytest.mark.slow
def test_pythons_own_output_needs_no_filter():
    """The watchdog's stacks, which a thread of C writes while others hold all locks."""
    status, err = filtered("", "import faulthandler; faulthandler.dump_traceback(file=sys.__stderr__); os._exit(0)")
    assert status == 0
    assert err.startswith("Current thread")
    assert "process 1" not in err
