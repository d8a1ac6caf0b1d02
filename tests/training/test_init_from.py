"""Training on from other parameters: of a run, or of a converted checkpoint."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from tests.training.small_config import small_config, write_counting
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.training import Config, default_config, load_workdir, train
from transnormer_jax.training.workdir import model_to_begin_with, write_model

pytestmark = pytest.mark.usefixtures("on_one_device")

MODEL = TransNormerLLMConfig(
    vocab_size=259, num_layers=1, model_dim=32, num_heads=2, glu_dim=48, param_dtype="bfloat16", init_std=0.1
)


@pytest.fixture
def config(tmp_path):
    config = small_config(tmp_path)
    config.model = default_config(dtype="float32").model  # of the model, only the dtype counts
    config.data.files = write_counting(tmp_path)
    config.num_steps = 2
    config.optimizer.warmup_steps = 1
    config.init_from = str(tmp_path / "converted")
    return config


def make_converted(directory):
    """As `python -m transnormer_jax.convert` leaves it, for the tokenizer of bytes."""
    params = jax.jit(TransNormerLLM(MODEL).init)(jax.random.key(7), jnp.zeros((1, 1), jnp.int32))["params"]
    write_model(directory, MODEL, params)
    content = json.loads((directory / "config.json").read_text())
    content["data"]["tokenizer"] = "bytes"
    (directory / "config.json").write_text(json.dumps(content))
    return params


@pytest.mark.slow
def test_a_run_begins_with_the_parameters_and_the_model_of_another(config, tmp_path):
    params = make_converted(tmp_path / "converted")
    config.optimizer.learning_rate = 0.0
    train(Config.from_dict(config.to_dict()), tmp_path / "still")
    still = load_workdir(tmp_path / "still")
    assert still.model_config.num_layers == 1
    assert (still.model_config.dtype, still.model_config.param_dtype) == ("float32", "float32")
    jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours, np.float32(theirs)), still.params, params)


def test_a_run_goes_on_without_what_it_began_with(config, tmp_path):
    make_converted(tmp_path / "run")  # whatever has checkpoints
    frozen = Config.from_dict(config.to_dict())
    resumed = model_to_begin_with(frozen, tmp_path / "run", "any")
    assert resumed.model == dataclasses.replace(MODEL, dtype="float32", param_dtype="float32")
    with pytest.raises(UserError, match="holds no run"):
        model_to_begin_with(frozen, tmp_path / "another", "any")


def test_what_cannot_be_begun_with_is_refused(config, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        train(Config.from_dict(config.to_dict()), tmp_path / "run")
    make_converted(tmp_path / "converted")
    content = json.loads((tmp_path / "converted" / "config.json").read_text())
    content["data"]["tokenizer"] = str(tmp_path / "tokenizer.json")
    (tmp_path / "converted" / "config.json").write_text(json.dumps(content))
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="trained with another tokenizer than 'bytes'"):
        train(Config.from_dict(config.to_dict()), tmp_path / "run")
