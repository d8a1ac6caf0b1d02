"""Which hosts share files: each "process" is a thread here, with a directory that may be its own."""

import contextvars
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from transnormer_jax.distributed import multihost, shared_files
from transnormer_jax.errors import UserError

_process = contextvars.ContextVar("_process", default=0)


@pytest.fixture
def run(monkeypatch):
    """Runs a function in one thread for every host name; returns the results or errors, by process."""
    monkeypatch.setattr(shared_files, "_SECONDS", 0.5)
    monkeypatch.setattr(jax, "process_index", _process.get)

    def together(hosts: list[str], function: Callable[[int], Any]) -> list[Any]:
        meeting, values, results = threading.Barrier(len(hosts)), dict[int, str](), [None] * len(hosts)

        def all_gather(value: Any, doing: str = "", name: str = "") -> list[Any]:
            values[_process.get()] = json.dumps(value)
            meeting.wait(20)
            found = [json.loads(values[one]) for one in range(len(hosts))]
            meeting.wait(20)
            return found

        monkeypatch.setattr(jax, "process_count", lambda: len(hosts))
        monkeypatch.setattr(multihost, "all_gather", all_gather)
        monkeypatch.setattr(multihost, "broadcast_from_process0", lambda value: all_gather(value)[0])
        monkeypatch.setattr(multihost, "barrier", all_gather)
        monkeypatch.setattr(shared_files, "_hostname", lambda: hosts[_process.get()])

        def one(process: int) -> None:
            _process.set(process)
            try:
                results[process] = function(process)
            except UserError as error:
                results[process] = error

        threads = [threading.Thread(target=one, args=(process,)) for process in range(len(hosts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    return together


def test_a_workdir_of_all_is_accepted(run, tmp_path):
    assert run(["a", "a", "b"], lambda process: shared_files.check_shared(tmp_path / "run")) == [None] * 3
    assert list((tmp_path / "run").iterdir()) == []


def test_a_workdir_that_some_do_not_see_is_refused_by_all(run, tmp_path):
    own = {0: "one", 1: "one", 2: "two", 3: "three"}
    results = run(["a", "a", "b", "c"], lambda process: shared_files.check_shared(tmp_path / own[process]))
    for result in results:
        assert "of a is not seen by b, c: all processes need the same one" in str(result)


def test_a_workdir_that_cannot_be_written_is_refused_by_all(run, tmp_path):
    (tmp_path / "file").write_text("")
    results = run(["a", "b"], lambda process: shared_files.check_shared(tmp_path / "file" / "run"))
    assert all("process 0 cannot write into workdir" in str(result) for result in results)


@pytest.mark.parametrize(
    ("directories", "preparing"),
    [
        (["one"] * 4, {0}),  # all hosts share it
        (["one", "one", "two", "two"], {0, 2}),  # each host has its own
        (["one", "one", "two", "one"], {0, 2}),  # two of three share it
    ],
)
def test_every_file_system_is_filled_once(run, tmp_path, directories, preparing):
    hosts = ["a", "a", "b", "b" if directories[3] == "two" else "c"]
    order = list[int]()

    def prepare(process: int) -> bool:
        directory = tmp_path / directories[process]
        with shared_files.prepared_once(str(directory)):
            order.append(process)
            prepared = (directory / "data").exists()
            (directory / "data").write_text("")
        return prepared

    found_prepared = run(hosts, prepare)
    assert {process for process, found in enumerate(found_prepared) if not found} == preparing
    assert set(order[: len(preparing)]) == preparing
    for directory in {tmp_path / name for name in directories}:
        assert [path.name for path in Path(directory).iterdir()] == ["data"]


def test_one_process_asks_nobody(tmp_path):
    shared_files.check_shared(tmp_path / "none")
    with shared_files.prepared_once(str(tmp_path / "none")):
        assert not (tmp_path / "none").exists()
    shared_files.check_same_data("", {"inputs": np.zeros(3)})


def test_different_corpora_are_refused(run):
    def check(process: int) -> None:
        words = f"{10 + process // 2} documents"
        shared_files.check_same_data(words, {"inputs": np.arange(3)})

    assert (
        run(["a", "b"], lambda _: shared_files.check_same_data("10 documents", {"inputs": np.arange(3)})) == [None] * 2
    )
    for result in run(["a", "b", "c"], check):
        assert "a, b: 10 documents; first row " in str(result)
        assert "c: 11 documents" in str(result)
    for result in run(["a", "b"], lambda process: shared_files.check_same_data("", {"inputs": np.arange(3) + process})):
        assert "the hosts have prepared different data" in str(result)
