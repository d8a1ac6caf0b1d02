"""What the benchmarks share: flags from settings, refusals of what is impossible, a record at any time."""

import dataclasses
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
import transnormer_jax
from benchmarks import gradient_bounds, linformer_speed
from benchmarks.common import Measurement, Record, explain_fields, last_error_line, results_directory
from tests.commands import ROOT, assert_fails
from tests.commands import run as run_command
from transnormer_jax.errors import UserError

_NO_COMMANDS = {"attention_maps", "common", "definition", "fault_lab", "gpu_worker", "studies"}
_NO_COMMANDS |= {"tpu_bundles", "tpu_compiler"}


@pytest.mark.slow
def test_every_benchmark_is_a_command():
    names = {module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - _NO_COMMANDS
    for name in names - {"scaling"}:  # whose flags are its own
        settings = importlib.import_module(f"benchmarks.{name}").Settings()
        assert explain_fields(settings).keys() == {field.name for field in dataclasses.fields(settings)}, name
    for name in ("scaling", "attention"):
        status, out, err = run_command("-m", f"benchmarks.{name}", "--help")
        assert status == 0, err
        assert "\nFlags:\n" in out, name


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="unknown name 'papr' in preset: did you mean 'paper'"):
        linformer_speed.Settings(preset="papr")
    with pytest.raises(UserError, match="head_dim is 0: give positive numbers"):
        gradient_bounds.Settings(head_dim=0)
    with pytest.raises(UserError, match="scales is empty: give one"):
        gradient_bounds.Settings(scales=())
    with pytest.raises(UserError, match=r"ends in \.json"):
        Record(tmp_path / "bounds.png", "", None)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another output"):
        Record(tmp_path / "file" / "bounds.json", "", None)


@pytest.mark.slow
def test_flags_are_the_settings(tmp_path):
    module = ("-m", "benchmarks.gradient_bounds")
    assert_fails(run_command(*module, "--scales=0.1,small"), "scales is ['0.1', 'small']: give numbers")
    output = tmp_path / "bounds.json"
    status, out, err = run_command(*module, "--scales=0.1,2", "--num_tokens=8", f"--output={output}")
    assert status == 0, err
    record = json.loads(output.read_text())
    settings = {"scales": [0.1, 2.0], "num_tokens": 8, "head_dim": 16, "norm_eps": 1e-6}
    assert record["settings"] == settings
    assert record["command"].startswith("python -m benchmarks.gradient_bounds --scales=0.1,2")
    assert json.loads(out.splitlines()[-1])["output"] == str(output)


def test_what_was_measured_is_kept_when_the_rest_fails(tmp_path, monkeypatch):
    def measured_once(settings, num_tokens, projected):
        if projected:
            raise RuntimeError("the machine is taken away")
        return Measurement(1, 2.0, 1.0, 3)

    monkeypatch.setattr(linformer_speed, "_measure", measured_once)
    output, settings = tmp_path / "speed.json", linformer_speed.Settings()
    with pytest.raises(RuntimeError):
        linformer_speed.run(settings, Record(output, "the command", settings))
    [row] = json.loads(output.read_text())["rows"]
    assert (row["projected"], row["median_ms"]) == (0, 2.0)
    assert list(tmp_path.iterdir()) == [output]


def test_a_record_names_what_it_was_made_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = Record("", "the command", gradient_bounds.Settings(), "bounds")
    record.write(rows=[])
    assert record.path == Path("benchmarks/results/cpu/bounds.json")
    read = json.loads(record.path.read_text())
    assert read["command"] == "the command"
    assert {"platform", "device_kind", "devices", "cpu", "python", "commit", "jax", "flax"} <= read[
        "environment"
    ].keys()
    assert read["environment"]["transnormer_jax"] == transnormer_jax.__version__
    assert results_directory({"device_kind": "NVIDIA H200"}) == Path("benchmarks/results/h200")
    assert results_directory({"device_kind": "TPU v5 lite"}) == Path("benchmarks/results/tpu-v5-lite")


def test_last_error_line():
    assert last_error_line("Traceback\n\nOSError: no room\n\n", 1) == "OSError: no room"
    assert last_error_line("\n", -9) == "status -9"


@pytest.mark.slow
def test_the_benchmarks_of_the_operator_need_no_package_of_training_or_data():
    missing = ("flax", "grain", "ml_collections", "optax", "orbax", "tensorflow_datasets")
    program = f"import sys; sys.modules.update(dict.fromkeys({missing})); import benchmarks.gpu_worker"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
