"""What the benchmarks share: flags from settings, refusals of what is impossible, a record at any time."""

import json
from pathlib import Path

import pytest

import transnormer_jax
from benchmarks import dilution, gradient_bounds, steps_per_second
from benchmarks.environment import results_directory
from benchmarks.measure import Measurement
from benchmarks.processes import last_words
from benchmarks.record import write
from tests.commands import assert_fails
from tests.commands import run as run_command
from transnormer_jax.errors import UserError


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="unknown name 'papr' in preset: did you mean 'paper'"):
        steps_per_second.Settings(preset="papr")
    with pytest.raises(UserError, match="length is 0: give positive numbers"):
        dilution.Settings(length=0)
    with pytest.raises(UserError, match=r"ends in \.json"):
        gradient_bounds.run(gradient_bounds.Settings(), tmp_path / "bounds.png", "")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another output"):
        gradient_bounds.run(gradient_bounds.Settings(), tmp_path / "file" / "bounds.json", "")


def test_flags_are_the_settings(tmp_path):
    module = ("-m", "benchmarks.gradient_bounds")
    assert_fails(run_command(*module, "--scales=0.1,small"), "scales is ['0.1', 'small']: give numbers")
    output = tmp_path / "bounds.json"
    status, out, err = run_command(*module, "--scales=0.1,2", "--num_tokens=8", f"--output={output}")
    assert status == 0, err
    record = json.loads(output.read_text())
    assert record["settings"] | {"norm_eps": 0} == {
        "scales": [0.1, 2.0],
        "num_tokens": 8,
        "head_dim": 16,
        "norm_eps": 0,
    }
    assert record["command"].startswith("python -m benchmarks.gradient_bounds --scales=0.1,2")
    assert json.loads(out.splitlines()[-1])["output"] == str(output)


def test_what_was_measured_is_kept_when_the_rest_fails(tmp_path, monkeypatch):
    def measured_once(settings, attention, num_tokens):
        if attention != "softmax":
            raise RuntimeError("the machine is taken away")
        return [Measurement(1, 2.0, 1.0, 3)] * 2

    monkeypatch.setattr(steps_per_second, "_measure", measured_once)
    output = tmp_path / "steps.json"
    with pytest.raises(RuntimeError):
        steps_per_second.run(steps_per_second.Settings(), output, "the command")
    rows = json.loads(output.read_text())["rows"]
    assert [(row["attention"], row["steps_per_second"]) for row in rows] == [("softmax", 500.0)] * 2
    assert list(tmp_path.iterdir()) == [output]


def test_a_record_names_what_it_was_made_with(tmp_path):
    settings = gradient_bounds.Settings()
    environment = write(tmp_path / "record.json", "the command", settings, {"rows": []})
    assert {"platform", "device_kind", "devices", "cpu", "python", "commit", "jax", "flax"} <= environment.keys()
    assert environment["transnormer_jax"] == transnormer_jax.__version__
    assert results_directory(environment) == Path("benchmarks/results/cpu")
    assert results_directory({"device_kind": "NVIDIA H200"}) == Path("benchmarks/results/h200")
    assert results_directory({"device_kind": "TPU v5 lite"}) == Path("benchmarks/results/tpu-v5-lite")


def test_the_last_words_of_a_process():
    assert last_words("Traceback\n\nOSError: no room\n\n", 1) == "OSError: no room"
    assert last_words("\n", -9) == "status -9"
