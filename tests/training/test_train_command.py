"""train.py and eval.py as processes: resuming after SIGKILL and SIGTERM, and users' mistakes."""

import json
import random
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.commands import assert_fails, run, start, write_tiny_config
from transnormer_jax.models import TransNormerLLM
from transnormer_jax.start import STOPPED
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.parameters import restore_params
from transnormer_jax.training.workdir import read_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_tiny_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def finished(config) -> Path:
    """A run that nothing disturbed."""
    workdir = config.parent / "finished"
    status, out, err = run("train.py", f"--config={config}", f"--workdir={workdir}")
    assert status == 0, err
    assert "bits_per_byte" in out
    return workdir


def params_of(workdir: Path) -> list[np.ndarray]:
    task = CausalLM(TransNormerLLM(read_config(workdir).model))
    step, params = restore_params(workdir, jax.eval_shape(task.init, jax.random.key(0)))
    assert step == 40
    return [np.asarray(x) for x in jax.tree.leaves(params)]


def metrics_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses_of(workdir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics_of(workdir) if "loss" in line}


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM], ids=lambda kind: kind.name)
def test_a_stopped_run_ends_with_the_same_parameters(config, finished, kind, tmp_path):
    workdir = tmp_path / "run"
    # A log line per step tells where the run is, one step late.
    process = start("train.py", f"--config={config}", f"--workdir={workdir}")
    stop_at = random.randrange(2, 30)
    for line in process.lines():
        if f"| step {stop_at:>2}/40 |" in line:
            process.send_signal(kind)
            break
    out, err = process.communicate(timeout=300)
    if kind == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == STOPPED, err
        assert "stopped by SIGTERM" in out
    # Saving goes on in the background: a run killed early may have no checkpoint yet, and then begins again.
    saved = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved or kind == signal.SIGKILL
    status, out, err = run("train.py", f"--config={config}", f"--workdir={workdir}")
    assert status == 0, err
    assert ("resumed from checkpoint" in out) == bool(saved)
    assert "warning" not in out
    for a, b in zip(params_of(workdir), params_of(finished), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=f"stopped by {kind.name} at step {stop_at}")
    # The log is that of one run: each step once, with the same losses.
    assert losses_of(workdir) == losses_of(finished)
    steps = [line["step"] for line in metrics_of(workdir) if "loss" in line]
    assert steps == list(range(1, 41))


def test_metrics_are_complete(finished):
    lines = metrics_of(finished)
    assert lines[0]["compile_seconds"] > 0
    step = next(line for line in lines if line["step"] == 20)
    for name in ("loss", "accuracy", "grad_norm", "learning_rate", "tokens_per_second", "tflops_per_second_per_device"):
        assert np.isfinite(step[name])
    assert step["peak_memory_gb"] > 0
    assert step["skipped_steps"] == 0
    assert "mfu" not in step  # nobody knows the peak of a CPU
    assert lines[-1]["eval/bits_per_byte"] > 0
    assert losses_of(finished)[40] < 0.8 * losses_of(finished)[1]
    assert list((finished / "tensorboard").glob("events.*"))


def test_a_checkpoint_of_another_model_is_refused(config, finished):
    before = sorted(path.stat().st_mtime for path in finished.rglob("*"))
    result = run("train.py", f"--config={config}", f"--workdir={finished}", "--config.model.num_layers=3")
    assert_fails(result, "num_layers=1", "the config says 3", "--workdir")
    assert sorted(path.stat().st_mtime for path in finished.rglob("*")) == before


def test_eval_command(config, finished):
    status, out, err = run("eval.py", f"--config={config}", f"--workdir={finished}")
    assert status == 0, err
    report = json.loads(out.splitlines()[-1])
    assert report == json.loads((finished / "eval.json").read_text())
    assert (report["step"], report["dataset"], report["split"]) == (40, "plain_text", "validation")
    during_training = metrics_of(finished)[-1]
    for name in ("loss", "bits_per_byte", "tokens", "bytes", "documents"):
        assert report[name] == pytest.approx(during_training[f"eval/{name}"], rel=1e-6)
    # Ends of documents are predicted, and paid for, too.
    assert report["tokens"] == report["bytes"] + report["documents"]
    bits = report["loss"] * report["tokens"] / np.log(2)
    assert report["bits_per_byte"] == pytest.approx(bits / report["bytes"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.optimizer.learning_rat=1"], ["unknown config key", "config.optimizer.learning_rate"]),
        (["--config.num_steps=many"], ["num_steps"]),
        (["--config.data.files=nowhere.txt"], ["nowhere.txt"]),
        (["--config.model.vocab_size=256"], ["259 different tokens", "vocab_size"]),
        (["--config.data.dataset=python_sauce", "--config.data.files="], ["python_sauce", "python_source"]),
        (["--config.optimizer.schedule=linear"], ["cosine, inverse_sqrt, step, wsd"]),
        (["--config.keep_checkpoints=0"], ["config.keep_checkpoints=0", "at least 1"]),
        (["--config.evaluation.window=0"], ["config.evaluation.window=0", "at least 1"]),
        (["--config.mesh.fsdp=3"], ["does not fit 1 devices"]),
        (["--confg=x"], ["confg", "--help"]),
        (["stray"], ["stray", "--name=value"]),
    ],
    ids=lambda value: value[0],
)
def test_mistakes_are_one_sentence(config, tmp_path, arguments, words):
    workdir = tmp_path / "run"
    assert_fails(run("train.py", f"--config={config}", f"--workdir={workdir}", *arguments), *words)
    assert not workdir.exists()  # nothing half-written


def test_an_empty_corpus_is_refused(config, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    files = f"--config.data.files={tmp_path / 'empty.txt'}"
    assert_fails(run("train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}", files), "white space")


def test_missing_things_are_named(config, tmp_path):
    assert_fails(run("train.py", "--config=configs/none.py", f"--workdir={tmp_path}"), "configs/none.py")
    assert_fails(run("train.py", f"--config={config}"), "--workdir=... is missing")
    assert_fails(run("eval.py", f"--workdir={tmp_path}"), "holds no run")


def test_another_tokenizer_is_refused(config, finished, tmp_path):
    vocabulary = {"</s>": 0, "l": 1, "i": 2}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "</s>"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    result = run("train.py", f"--config={config}", f"--workdir={finished}", f"--config.data.tokenizer={path}")
    assert_fails(result, "another tokenizer")
