"""What may change when a run is resumed, and what is refused: docs/commands/train.md has the table."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small_config import small_config
from transnormer_jax.data import DataConfig
from transnormer_jax.distributed import make_mesh
from transnormer_jax.errors import UserError
from transnormer_jax.training import Config
from transnormer_jax.training.assembly import assemble
from transnormer_jax.training.checkpoints import Checkpoints
from transnormer_jax.training.config import TaskConfig
from transnormer_jax.training.parameters import save_params
from transnormer_jax.training.setup import make_task
from transnormer_jax.training.step import TrainState
from transnormer_jax.training.workdir import changed_rows, write_config


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    return Config.from_dict(small_config(tmp_path_factory.mktemp("data")).to_dict())


def save(workdir, config: Config):
    """Writes a checkpoint of a run that has not learnt anything; returns its state."""
    assembly = assemble(config, make_task(config), make_mesh(config.mesh))
    state = jax.tree.map(lambda x: jax.device_put(np.full(x.shape, 2, x.dtype), x.sharding), assembly.state)
    with Checkpoints(workdir, config=config, tokenizer="t") as checkpoints:
        checkpoints.save(state, rows=32)
    return state


def restore(workdir, config: Config):
    assembly = assemble(config, make_task(config), make_mesh(config.mesh))
    return Checkpoints(workdir, config=config, tokenizer="t").restore(assembly.state)


@pytest.fixture(scope="module")
def saved(config, tmp_path_factory):
    """A workdir and the state in it."""
    workdir = tmp_path_factory.mktemp("saved")
    return workdir, save(workdir, config)


@pytest.mark.parametrize("name", ["adafactor", "radam"])  # of another structure, and of the same with another meaning
def test_another_optimizer_is_refused_by_name(config, saved, name):
    other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, name=name))
    with pytest.raises(
        UserError, match=f"state of optimizer 'adamw', config.optimizer.name is {name!r}: set it to 'adamw', or begin"
    ):
        restore(saved[0], other)


def test_a_checkpoint_that_does_not_name_its_optimizer_is_read(config, saved, tmp_path):
    shutil.copytree(saved[0], tmp_path, dirs_exist_ok=True)
    [file] = (tmp_path / "checkpoints" / "2" / "metadata").glob("metadata")
    metadata = json.loads(file.read_text())
    assert metadata.pop("optimizer") == "adamw"
    file.write_text(json.dumps(metadata))
    restored, rows = restore(tmp_path, config)
    assert rows == 32
    jax.tree.map(np.testing.assert_array_equal, restored, saved[1])


def test_a_converted_model_is_no_run(config, tmp_path):
    save_params(tmp_path, {"embedding": np.zeros((2, 2), np.float32)})
    with pytest.raises(UserError, match=f"holds a converted model, .* --config.init_from={tmp_path} "):
        restore(tmp_path, config)


def test_what_the_parameters_do_not_depend_on_may_change(config, saved):
    model = dataclasses.replace(config.model, init_std=0.2, pad_token_id=1, remat="full", backend="chunked")
    assert restore(saved[0], dataclasses.replace(config, model=model)) is not None


def test_what_they_depend_on_may_not(config, saved):
    model = dataclasses.replace(config.model, decay="none")
    with pytest.raises(UserError, match="holds a model with decay='released', the config says 'none'"):
        restore(saved[0], dataclasses.replace(config, model=model))
    with pytest.raises(UserError, match="holds a model with task='causal_lm', the config says 'supervised_lm'"):
        restore(saved[0], dataclasses.replace(config, task=TaskConfig("supervised_lm")))


def test_the_options_of_a_task_may_not_change(tmp_path):
    values = small_config(tmp_path).to_dict() | {"architecture": "transnormer", "model": {"model_dim": 16}}

    def of(**task) -> Config:
        return Config.from_dict(values | {"task": {"name": "classification", **task}})

    with Checkpoints(tmp_path, config=of(), tokenizer="t") as checkpoints:
        checkpoints.save(TrainState(jnp.array(1), {"embedding": jnp.ones(2)}, jnp.zeros(2)), rows=32)
    with pytest.raises(UserError, match="holds a model with num_classes=2, the config says 3"):
        Checkpoints(tmp_path, config=of(num_classes=3), tokenizer="t").restore(None)


def test_the_keys_that_give_row_numbers_another_meaning_are_named(config, tmp_path):
    assert changed_rows(tmp_path, config) == []  # there is no former configuration
    mixture = {"a": 1.0, "b": {"dataset": "lm1b", "weight": 2.0}}
    config = dataclasses.replace(config, data=DataConfig(mixture=mixture), curriculum=((2, 32),))
    write_config(tmp_path, config)
    assert changed_rows(tmp_path, config) == []
    harmless = dataclasses.replace(config.data, data_dir="elsewhere", eval_split="test", tokenizer="elsewhere")
    assert changed_rows(tmp_path, dataclasses.replace(config, data=harmless, batch_size=8, num_steps=99)) == []
    data = dataclasses.replace(config.data, files="*.txt", mixture={})
    changed = changed_rows(tmp_path, dataclasses.replace(config, data=data, seed=1, sequence_length=32))
    assert changed == ["config.seed", "config.sequence_length", "config.data.files", "config.data.mixture"]
