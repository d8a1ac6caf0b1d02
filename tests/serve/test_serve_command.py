"""`python -m transnormer_jax.serve` in a process of its own."""

import json
import signal
import socket
import threading

import httpx
import pytest

from tests.commands import assert_fails, run, start
from tests.inference.letters import CONFIG, make_params
from tests.tiny_run import write_run
from transnormer_jax.data import ByteTokenizer

pytestmark = pytest.mark.slow

MODULE = ("-m", "transnormer_jax.serve")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    params = make_params()
    endless = params | {"embedding": params["embedding"].at[ByteTokenizer().eos_id].set(0)}
    return write_run(tmp_path_factory.mktemp("serve") / "little", CONFIG, endless)


def test_a_stop_signal_lets_answers_end_in_time(workdir):
    limits = ("--slots=2", "--max_new_tokens=10000000", "--grace_seconds=3")
    process = start(*MODULE, f"--workdir={workdir}", "--port=0", "--chat_template=released", *limits)
    line = next(process.lines(), "")
    assert line.startswith("serving 'little' at http://127.0.0.1:"), process.communicate(timeout=10)
    url = line.split()[3]
    lengths = (300, 10_000_000)
    heard: list[list[str]] = [[], []]
    begun = [threading.Event(), threading.Event()]

    def read(number):
        body = {"prompt": "x", "max_tokens": lengths[number], "stream": True, "temperature": 0}
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=60) as response:
            for event in response.iter_lines():
                heard[number].append(event)
                begun[number].set()

    readers = [threading.Thread(target=read, args=(number,)) for number in (1, 0)]
    for reader in readers:
        reader.start()
    assert all(event.wait(30) for event in begun)
    process.send_signal(signal.SIGTERM)
    for reader in readers:
        reader.join(60)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (out, err)
    assert "Traceback" not in err
    events, cut = heard
    assert json.loads(cut[-2].removeprefix("data: "))["error"]["message"] == "the server is stopping"
    assert events[-2] == "data: [DONE]"
    pieces = [json.loads(event[6:])["choices"][0] for event in events if event.startswith("data: {")]
    assert pieces[-1]["finish_reason"] == "length"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


def test_what_is_wrong_is_said_in_a_sentence(workdir, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_fails(run(*MODULE, f"--workdir={workdir}", f"--port={port}"), f"cannot listen on 127.0.0.1:{port}")
    assert_fails(run(*MODULE, f"--workdir={tmp_path}", "--port=0"), "holds no run")
    content = json.loads((workdir / "config.json").read_text())
    content["data"]["tokenizer"] = str(tmp_path / "gone")
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    assert_fails(run(*MODULE, f"--workdir={tmp_path}", "--port=0"), "unknown tokenizer")
