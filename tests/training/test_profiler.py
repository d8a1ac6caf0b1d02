"""A profile is of the steps that were asked for, whatever becomes of the run."""

import socket

import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.training import profiler
from transnormer_jax.training.profiler import Profiler, serve_profiles


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (range(1, 9), [1, 2, 3, 4, "start", 5, 6, "stop", 7, 8]),
        (range(1, 6), [1, 2, 3, 4, "start", 5, "stop"]),  # the run ends inside the window
        (range(6, 9), [6, 7, 8]),  # a resumed run begins inside it
    ],
)
def test_what_was_started_is_stopped(monkeypatch, tmp_path, steps, expected):
    happened = []
    monkeypatch.setattr(profiler.jax.profiler, "start_trace", lambda directory: happened.append("start"))
    monkeypatch.setattr(profiler.jax.profiler, "stop_trace", lambda: happened.append("stop"))
    with Profiler(tmp_path, 5, 2) as window:
        for step in steps:
            window.begin_step(step)
            happened.append(step)
            window.end_step(step, None)
    assert happened == expected


def test_a_running_process_answers_at_the_port_that_was_asked_for(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen at port {port} .*: set config.profiler_port to another"):
            serve_profiles(port)
    started = []
    monkeypatch.setattr(profiler.jax.profiler, "start_server", started.append)
    serve_profiles(0)
    serve_profiles(port)
    serve_profiles(port)  # by a second run in the same process
    assert started == [port]
