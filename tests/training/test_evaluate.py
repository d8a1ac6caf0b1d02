"""A run is evaluated on other devices than it was trained on, from the checkpoint that was asked for."""

import dataclasses
import functools
import json

import jax
import pytest

from tests.commands import assert_fails, run
from tests.training.small_config import small_config, write_counting
from transnormer_jax.distributed import MeshConfig, make_mesh
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerConfig
from transnormer_jax.papers.models import BiLSTMConfig
from transnormer_jax.training import Config, evaluate, evaluate_run, load_workdir
from transnormer_jax.training.assembly import assemble
from transnormer_jax.training.available_mesh import available_mesh
from transnormer_jax.training.checkpoints import Checkpoints
from transnormer_jax.training.chosen_step import chosen_step
from transnormer_jax.training.setup import make_task
from transnormer_jax.training.step import TrainState
from transnormer_jax.training.workdir import write_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on four devices, `mesh.fsdp=4`, with checkpoints of other parameters at steps 1 and 2."""
    directory = tmp_path_factory.mktemp("run")
    values = small_config(directory)
    values.data.files = write_counting(directory)
    values.mesh.data, values.mesh.fsdp = 1, 4
    config = Config.from_dict(values.to_dict())
    mesh = make_mesh(config.mesh, jax.devices()[:4])
    assembly = assemble(config, make_task(config), mesh)
    write_config(directory, config)
    with jax.set_mesh(mesh), Checkpoints(directory, config=config, tokenizer="bytes-1") as checkpoints:
        for step in (1, 2):
            params = jax.jit(assembly.task.init, out_shardings=assembly.shardings.params)(jax.random.key(step))
            state = TrainState(jax.numpy.int32(step), params, assembly.optimizer.init(params))
            checkpoints.save(state, rows=16 * step)
    return directory


def evaluate_on(monkeypatch, count, workdir, **arguments):
    on = functools.partial(available_mesh, devices=jax.devices()[:count])
    monkeypatch.setattr(evaluate, "available_mesh", on)
    return evaluate_run(workdir, max_tokens=500, **arguments)


@pytest.fixture(scope="module")
def on_its_own_devices(workdir):
    with pytest.MonkeyPatch.context() as patch:
        return evaluate_on(patch, 4, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_a_run_of_four_devices_is_evaluated_on_others(workdir, on_its_own_devices, monkeypatch, count, capsys):
    report = evaluate_on(monkeypatch, count, workdir)
    assert report["step"] == 2
    assert report["tokens"] == on_its_own_devices["tokens"]
    assert report["loss"] == pytest.approx(on_its_own_devices["loss"], rel=1e-5)
    assert json.loads((workdir / "eval.json").read_text()) == report
    assert f"evaluating step 2 on {count} x cpu" in capsys.readouterr().out


@pytest.mark.slow
def test_a_mesh_that_was_asked_for_is_used_or_refused(workdir, on_its_own_devices, monkeypatch, capsys):
    report = evaluate_on(monkeypatch, 4, workdir, mesh=MeshConfig(data=2, fsdp=2))
    assert "4 x cpu (data=2, fsdp=2)" in capsys.readouterr().out
    assert report["loss"] == pytest.approx(on_its_own_devices["loss"], rel=1e-5)
    with pytest.raises(UserError, match="does not fit 3 devices"):
        evaluate_on(monkeypatch, 3, workdir, mesh=MeshConfig(data=1, fsdp=2))


def test_another_checkpoint_gives_another_loss(workdir, on_its_own_devices, monkeypatch):
    report = evaluate_on(monkeypatch, 1, workdir, step=1)
    assert report["step"] == 1
    assert report["loss"] != pytest.approx(on_its_own_devices["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("model", "mesh", "count", "expected"),
    [
        ({}, {"data": 2, "fsdp": 4}, 8, {"data": 2, "fsdp": 4}),  # its own
        ({}, {"data": -1, "fsdp": 4}, 8, {"data": 2, "fsdp": 4}),
        ({}, {"data": 1, "fsdp": 1, "context": 4}, 8, {"fsdp": 8}),
        ({}, {"data": 1, "fsdp": 4}, 6, {"data": 3, "fsdp": 2}),  # 32 features are divided by 2, not by 3
        ({}, {"data": 1, "fsdp": 4}, 7, {"data": 7}),
        ({}, {"data": 1, "fsdp": 2, "tensor": -1}, 8, {"fsdp": 8}),  # two heads are not divided by 4
        ({"architecture": "bilstm", "model": BiLSTMConfig(hidden_dim=12)}, {"fsdp": 16}, 8, {"data": 2, "fsdp": 4}),
        ({"architecture": "transnormer", "model": TransNormerConfig()}, {"data": 3}, 8, {"fsdp": 8}),
    ],
)
def test_the_mesh_for_the_devices_there_are(tmp_path, model, mesh, count, expected):
    config = dataclasses.replace(Config.from_dict(small_config(tmp_path).to_dict()), mesh=MeshConfig(**mesh), **model)
    made = available_mesh(config, devices=jax.devices()[:count])
    assert {axis: size for axis, size in made.shape.items() if size > 1} == expected
    assert made.size == count


def test_the_checkpoint_that_was_asked_for(workdir, tmp_path):
    assert chosen_step(workdir, "") is None
    assert chosen_step(workdir, "1") == 1
    with pytest.raises(UserError, match=r"no checkpoint of step 3: give one of 1, 2\."):
        chosen_step(workdir, "3")
    with pytest.raises(UserError, match="--step=last is neither a number nor 'best': give one of 1, 2"):
        chosen_step(workdir, "last")
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        chosen_step(tmp_path, "best")


def test_the_best_of_the_checkpoints_that_are_kept(workdir):
    metrics = workdir / "metrics.jsonl"
    metrics.write_text('{"step": 2, "loss": 1.0}\n')
    with pytest.raises(UserError, match="was evaluated during training: give --step=N, one of 1, 2"):
        chosen_step(workdir, "best")
    losses = {0: 1.0, 1: 2.0, 2: 3.0}  # step 0 has no checkpoint any more
    metrics.write_text("".join(json.dumps({"step": step, "eval/loss": loss}) + "\n" for step, loss in losses.items()))
    assert chosen_step(workdir, "best") == 1
    metrics.write_text(metrics.read_text() + '{"step": 1, "eval/loss": null}\n{"step": 2, "eval/loss": 0.5}\n')
    assert chosen_step(workdir, "best") == 2


@pytest.mark.slow
def test_the_command_takes_other_values_than_the_run(workdir):
    values = ("--config.model.backend=recurrent", "--config.evaluation.max_tokens=300", "--config.data.held_out=0.2")
    status, out, err = run("eval.py", *values, f"--workdir={workdir}", "--step=1", "--config.mesh.fsdp=1")
    assert status == 0, err
    report = json.loads(out.splitlines()[-1])
    assert (report["step"], report["documents"] > 0, report["tokens"] <= 330) == (1, True, True)
    assert_fails(run("eval.py", f"--workdir={workdir}", "--config.mesh.fsdp=3"), "does not fit 1 devices")


def test_another_model_than_the_run_is_refused(workdir):
    config = load_workdir(workdir).config
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, num_layers=3))
    with pytest.raises(UserError, match="holds a model with num_layers=1, the config says 3"):
        load_workdir(workdir, config=wider)
    slower = dataclasses.replace(config, model=dataclasses.replace(config.model, backend="recurrent"))
    assert load_workdir(workdir, config=slower).model_config.backend == "recurrent"
