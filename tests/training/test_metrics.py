"""Where metrics go, on a disk and on a store, and what of them is there when a run dies."""

import json
import socket
import sys
import time
import types
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from transnormer_jax import storage
from transnormer_jax.errors import UserError
from transnormer_jax.training.metrics import MetricWriter, metrics_of, read_metrics


def events(file: Path) -> list[Event]:
    """A file of TensorBoard: length, its checksum, the event, its checksum, and so on."""
    content, found = file.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_a_line_says_step_time_and_host(tmp_path):
    before = time.time()
    writer = MetricWriter(tmp_path, first_step=1)
    writer.write(3, {"loss": 1.5})
    writer.close()
    [line] = read_metrics(tmp_path)
    assert (line["step"], line["loss"]) == (3, 1.5)
    assert before - 1 <= line["time"] <= time.time() + 1
    assert line["host"] == socket.gethostname().partition(".")[0]
    assert metrics_of(line) == {"loss": 1.5}


def test_tensorboard_has_the_scalars_and_where_the_run_began_again(tmp_path):
    for first_step, loss in ((1, 2.0), (3, 1.0)):
        writer = MetricWriter(tmp_path, first_step=first_step)
        writer.write(first_step, {"loss": loss})
        writer.close()
    files = sorted((tmp_path / "tensorboard").iterdir(), key=lambda file: file.suffix)
    assert len(files) == 2
    for file, first_step, loss in zip(files, (1, 3), (2.0, 1.0), strict=True):
        version, start, scalar = events(file)
        assert version.file_version == "brain.Event:2"
        assert (start.step, start.session_log.status) == (first_step, 1)
        [value] = scalar.summary.value
        assert (scalar.step, value.tag, value.simple_value) == (first_step, "loss", loss)


def test_lines_after_the_newest_checkpoint_are_dropped(tmp_path):
    writer = MetricWriter(tmp_path, first_step=1)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)})
    writer.close()
    writer = MetricWriter(tmp_path, first_step=3)
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_a_file_that_cannot_be_opened_is_told_in_a_sentence(tmp_path, name):
    if name == "metrics.jsonl":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("in its place")
    with pytest.raises(UserError, match="metrics cannot be written"):
        MetricWriter(tmp_path, first_step=1)


@pytest.mark.parametrize("part", ["_lines", "_tensorboard"])
def test_a_full_disk_is_told_in_a_sentence(tmp_path, monkeypatch, part):
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("needs /dev/full")
    writer = MetricWriter(tmp_path, first_step=1)
    records = writer._tensorboard._events._py_recordio_writer
    with full.open("w" if part == "_lines" else "wb", buffering=-1 if part == "_lines" else 0) as refusing:
        if part == "_lines":
            writer._lines.close()
            monkeypatch.setattr(writer, "_lines", refusing)
        else:
            records._writer.close()
            monkeypatch.setattr(records, "_writer", refusing)
        with pytest.raises(UserError, match=r"No space left on device.*make room"):
            writer.write(1, {"loss": 1.0})
        writer.close()


def test_on_a_store_the_files_are_written_whole(gs):
    workdir = storage.as_path("gs://bench/metrics")
    writer = MetricWriter(workdir, first_step=1)
    writer.write(1, {"loss": 1.0})
    writer.write(1, {"eval/loss": 2.0})
    while not (workdir / "metrics.jsonl").exists():  # an evaluation is copied soon
        pass
    writer.write(2, {"loss": 0.5})
    writer.close()
    assert [metrics_of(line) for line in read_metrics(workdir)] == [{"loss": 1.0}, {"eval/loss": 2.0}, {"loss": 0.5}]
    again = MetricWriter(workdir, first_step=2)
    again.close()
    assert [line["step"] for line in read_metrics(workdir)] == [1, 1]
    assert len(storage.children(workdir / "tensorboard")) == 2


def test_a_run_of_wandb_keeps_its_id_and_has_the_configuration(tmp_path, monkeypatch):
    begun = []
    run = types.SimpleNamespace(log=lambda scalars, step: None, finish=lambda: None)
    stub = types.SimpleNamespace(init=lambda **arguments: begun.append(arguments) or run)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    for workdir in ("a/run", "b/run", "a/run"):
        directory = tmp_path / workdir
        MetricWriter(directory, first_step=1, wandb_project="p", config={"seed": 3}).close()
    first, other, again = begun
    assert first["id"] == again["id"] == (tmp_path / "a" / "run" / "wandb_id").read_text()
    assert first["id"] != other["id"]
    assert json.loads(json.dumps(first["config"])) == {"seed": 3}
    assert (first["name"], first["resume"]) == ("run", "allow")
