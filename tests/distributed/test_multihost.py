"""What processes do together: wait for as long as it takes, say who is waited for, and act on requests at one step."""

import json

import pytest

from tests.distributed.test_processes import finish_well, start_all
from transnormer_jax.distributed import multihost

PROGRAM = """
import json, sys, time
from transnormer_jax.distributed import multihost, processes

multihost._REMINDER_SECONDS = 0.5
own, count, port = int(sys.argv[3][-1]), int(sys.argv[2][-1]), sys.argv[1].rpartition("=")[2]
with processes.joined(processes.Membership(port, count, own)):
    gathered = multihost.all_gather({"own": own})
    first = multihost.broadcast_from_process0(own + 5)
    agreed = multihost.all_agree(own == 0)
    if own == 0:
        time.sleep(2)
    multihost.barrier("counting sheep")
    due = []
    with multihost.Requests() as requests:
        for step in range(1500):
            time.sleep(0.002 if own else 0.003)
            if step == 20 and own == 2:
                requests.make("save", "the clock")
            if step == 270 and own == 0:
                requests.make("stop", "SIGTERM")
            due += [[step, kind, reason] for kind, reason in requests.poll().items()]
    late = []
    with multihost.Requests() as requests:  # process 1 makes its last poll before the others hear of the request
        for step in range(5):
            if own != 1 and step == 4:
                requests.make("stop", "too late")
                time.sleep(2)
            late += requests.poll()
    with open(f"{sys.argv[0]}.{own}", "w") as file:
        json.dump([gathered, first, agreed, due, late], file)
"""


@pytest.mark.slow
def test_three_processes_agree(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    results = finish_well(start_all([str(program)], count=3, devices=1))
    one, *others = [json.loads((tmp_path / f"program.py.{i}").read_text()) for i in range(3)]
    assert others == [one, one]
    gathered, first, agreed, due, late = one
    assert late == []
    assert gathered == [{"own": 0}, {"own": 1}, {"own": 2}]
    assert (first, agreed) == (5, False)
    [[save, *saved], [stop, *stopped]] = due
    assert (saved, stopped) == (["save", "the clock"], ["stop", "SIGTERM"])
    assert save > 20
    assert stop > 270
    for _, _, err in results[1:]:
        assert "waiting for process 0: counting sheep" in err


def test_one_process_agrees_with_itself():
    assert multihost.all_gather(3) == [3]
    assert multihost.broadcast_from_process0("a") == "a"
    assert multihost.all_agree(True)
    with multihost.Requests() as requests:
        assert requests.poll() == {}
        requests.make("stop", "SIGTERM")
        requests.make("stop", "SIGINT")
        assert requests.poll() == {"stop": "SIGTERM"}
        assert requests.poll() == {}
