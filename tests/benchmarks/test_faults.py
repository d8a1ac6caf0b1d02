"""The harness of benchmarks/faults.py: what it disturbs and how it counts; one short record of each kind."""

import itertools
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from benchmarks import fault_lab, faults
from tests.commands import ROOT

as_root = pytest.mark.skipif("cut_network" in fault_lab.missing(), reason="network namespaces need root and `ip`")


def row(kind, statuses, victim=0, **others):
    return {
        "kind": kind,
        "victim": victim,
        "exit_statuses": statuses,
        "hung": None in statuses,
        "survived": False,
        "during_startup": False,
        "at_the_end": False,
        "seconds_to_end": 1.0,
        "steps_lost": 0,
    } | others


@pytest.mark.parametrize(
    ("kind", "statuses", "victim"),
    [
        ("sigkill", [3, -9], 1),
        ("sigterm", [75, 75], 0),
        ("preemption", [-9, 75], 0),
        ("cut_network", [3, 3, 3, 3], 2),
        ("full_disk", [2, 3], 1),
        ("failing_store", [2], 0),
    ],
)
def test_documented_ends_are_no_problem(kind, statuses, victim):
    assert faults.problems_of(row(kind, statuses, victim), ["error: a sentence"] * len(statuses)) == []


@pytest.mark.parametrize(
    ("kind", "statuses", "text", "problem"),
    [
        ("sigterm", [0], "", "exit statuses [0]"),  # another program would take the run for done
        ("sigkill", [-9, 1], "", "exit statuses [-9, 1]"),
        ("sigkill", [-9, None], "", "hung"),
        ("full_disk", [2], "Traceback (most recent call last):", "traceback of process 0"),
    ],
)
def test_other_ends_are_problems(kind, statuses, text, problem):
    assert faults.problems_of(row(kind, statuses), [text] * len(statuses)) == [problem]


def test_a_fault_may_cost_the_steps_between_checkpoints_and_one_more():
    settings = faults.Settings(checkpoint_every=5)
    assert faults.cost_problems(row("sigkill", [-9], steps_lost=6), settings) == []
    assert faults.cost_problems(row("sigkill", [-9], steps_lost=7), settings) == ["7 steps lost"]
    assert faults.cost_problems(row("sigterm", [75], steps_lost=1), settings)


def test_plans_have_every_kind_for_every_number_of_processes():
    found = list(itertools.islice(faults.plans(faults.Settings(), faults.KINDS), 6))
    for count in (1, 2, 4):
        kinds = {kind for plan in found if plan.processes == count for kind in plan.kinds}
        assert kinds == set(faults.KINDS) - ({"cut_network"} if count == 1 else set())
    assert all(len(plan.kinds) == 5 for plan in found)
    assert not any(plan.in_bucket for plan in itertools.islice(faults.plans(faults.Settings(), ["sigkill"]), 6))


@pytest.fixture
def served():
    """A proxy before a server that answers every request with "here"."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"here")

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    proxy = fault_lab.Proxy(server.server_port)
    yield proxy
    proxy.close()
    server.shutdown()
    server.server_close()


def get(proxy):
    with urllib.request.urlopen(f"http://127.0.0.1:{proxy.port}/", timeout=1) as answer:
        return answer.read()


@pytest.mark.slow
def test_a_proxy_fails_on_request_and_recovers(served):
    assert get(served) == b"here"
    served.set_mode(fault_lab.UNAVAILABLE)
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(served)
    assert caught.value.code == 503
    caught.value.close()
    served.set_mode(fault_lab.RESET)
    with pytest.raises(OSError):  # noqa: PT011 (a reset, or an end without an answer)
        get(served)
    served.set_mode(fault_lab.SILENT)
    with pytest.raises(TimeoutError):
        get(served)
    served.set_mode(fault_lab.PASS)
    assert get(served) == b"here"


@as_root
def test_a_full_disk_is_full_until_it_is_freed(tmp_path):
    disk = fault_lab.Disk(tmp_path / "disk", megabytes=1)
    try:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "disk" / "more").write_text("x" * 10_000)
        disk.free()
        (tmp_path / "disk" / "more").write_text("x" * 10_000)
    finally:
        disk.close()


@pytest.mark.slow
@as_root
def test_hosts_reach_each_other_until_one_is_cut():
    network = fault_lab.Network(2)
    try:
        ping = ["ip", "netns", "exec", network.hosts[0], sys.executable, "-c", _PING]
        assert subprocess.run(ping, check=False).returncode == 1  # an answer: nobody listens there
        network.cut(1)
        assert subprocess.run(ping, check=False).returncode == 2
        network.mend()
        assert subprocess.run(ping, check=False).returncode == 1
    finally:
        network.close()


_PING = """
import socket, sys
try:
    socket.create_connection(("host1", 9), timeout=1)
except ConnectionRefusedError:
    sys.exit(1)
except OSError:
    sys.exit(2)
"""


@pytest.mark.slow
def test_a_short_record(tmp_path):
    output = tmp_path / "faults.json"
    flags = ["--faults=1", "--faults_per_run=1", "--processes=1", "--num_steps=20", "--seed=1"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    command = [sys.executable, "-m", "benchmarks.faults", *flags, f"--output={output}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    counts = record["summary"]
    assert record["failures"] == []
    assert [one["problems"] for one in record["rows"]] == [[]], record["rows"]
    assert (counts["faults"], counts["same_parameters"], counts["hung"], counts["over_the_bound"]) == (1, 1, 0, 0)
