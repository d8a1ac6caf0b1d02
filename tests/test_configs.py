"""Every file in configs/ is a configuration whose model and task exist, of the size that was published."""

import functools
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.commands import ROOT
from transnormer_jax.training.config import Config
from transnormer_jax.training.optimizer import make_optimizer, make_schedule
from transnormer_jax.training.setup import make_task

_FILES = sorted((ROOT / "configs").glob("*.py"))

# "Transformers are RNNs" by the layers of its authors' code; TransNormer's paper says 156M of its WikiText-103 model.
_PUBLISHED = {
    "duplication": 3_163_787,
    "mnist_images": 6_359_070,
    "cifar10_images": 12_677_150,
    "wikitext_causal_lm": 156e6,
}


def _config(path: Path) -> Config:
    return Config.from_dict(runpy.run_path(str(path))["get_config"]().to_dict())


@functools.cache
def _num_parameters(config: Config) -> int:
    abstract = jax.eval_shape(make_task(config).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(abstract))


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_its_task_model_and_optimizer_exist(path):
    config = _config(path)
    assert _num_parameters(config) > 100_000
    schedule = make_schedule(config.optimizer, config.num_steps)
    make_optimizer(config.optimizer, schedule)
    rates = jax.vmap(schedule)(jnp.array([0, config.optimizer.warmup_steps, config.num_steps - 1]))
    assert 0 < rates[0] <= rates[1]
    assert 0 <= rates[2] <= rates[1]
    assert rates[1] == pytest.approx(config.optimizer.learning_rate)
    # No token has a position beyond what the model was built for.
    if config.task.name != "causal_lm" and config.architecture in ("transnormer", "baseline"):
        assert config.sequence_length <= config.model.max_length


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_its_docstring_says_how_it_is_run_on_what_and_what_came_out(path):
    text = path.read_text()
    assert f"python train.py --config=configs/{path.name} --workdir=runs/" in text
    assert re.search(r"Made for|two x86-64 cores", text)
    assert "has not been run" in text or "bits/byte on" in text


@pytest.mark.parametrize(("name", "published"), _PUBLISHED.items())
def test_its_model_has_as_many_parameters_as_the_published_one(name, published):
    found = _num_parameters(_config(ROOT / "configs" / f"{name}.py"))
    assert found == published if isinstance(published, int) else abs(found - published) < 0.5e6


@pytest.mark.parametrize("attention", ["t1", "linear", "linformer", "linformer_linear", "lsh", "performer", "softmax"])
def test_a_comparison_changes_one_word(attention):
    values = runpy.run_path(str(ROOT / "configs" / "lra_listops.py"))["get_config"]()
    values.model.attention = attention
    config = Config.from_dict(values.to_dict())
    assert set(config.model.attentions) <= {attention, "diag_t1", "norm_t1"}
    assert _num_parameters(config) > 100_000
