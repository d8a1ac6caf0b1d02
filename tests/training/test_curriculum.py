"""Rows grow with the steps: the tokens stay the same, a cut document begins anew, and resuming changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small_config import small_config, write_counting
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training import Config, load_workdir, train
from transnormer_jax.training.curriculum import cut_rows, row_length

pytestmark = pytest.mark.usefixtures("on_one_device")


@pytest.fixture
def config(tmp_path):
    config = small_config(tmp_path)
    config.data.files = write_counting(tmp_path)
    config.curriculum = ((4, 16),)
    config.num_steps, config.checkpoint_every, config.log_every = 6, 2, 1
    config.optimizer.warmup_steps = 1
    return config


@pytest.mark.slow
def test_a_cut_row_is_as_many_short_ones():
    task = CausalLM(TransNormerLLM(TransNormerLLMConfig.preset("tiny", num_layers=1, vocab_size=32, dtype="float32")))
    params, key, sums = jax.jit(task.init)(jax.random.key(0)), jax.random.key(0), jax.jit(task.loss_and_metrics)
    tokens = jax.random.randint(key, (2, 24), 0, 32)
    whole = {"inputs": tokens, "targets": jnp.roll(tokens, -1, 1), "segment_ids": jnp.ones_like(tokens)}
    pieces = [{name: array[:, start : start + 8] for name, array in whole.items()} for start in (0, 8, 16)]
    expected = sum(float(sums(params, piece, key).loss) for piece in pieces)
    cut = sums(params, cut_rows(whole, 8), key)
    assert float(cut.loss) == pytest.approx(expected, rel=1e-5)
    assert int(cut.tokens) == tokens.size
    # Whole rows remember more.
    assert float(sums(params, whole, key).loss) != pytest.approx(expected, rel=1e-5)


def test_stages_come_in_turn(config):
    config.curriculum = ((4, 16), (8, 32))
    lengths = [row_length(Config.from_dict(config.to_dict()), step) for step in range(1, 13)]
    assert lengths == [16] * 4 + [32] * 4 + [64] * 4


@pytest.mark.slow
def test_a_run_that_is_resumed_in_a_stage_is_the_uninterrupted_one(config, tmp_path, capsys):
    train(Config.from_dict(config.to_dict()), tmp_path / "whole")
    out = capsys.readouterr().out
    for length in (16, 64):
        assert f"for rows of {length} tokens" in out
    for config.num_steps in (2, 6):
        train(Config.from_dict(config.to_dict()), tmp_path / "halves")
    halves, whole = (load_workdir(tmp_path / name).params for name in ("halves", "whole"))
    jax.tree.map(np.testing.assert_array_equal, halves, whole)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (((4, 24),), "rows of 24 tokens: they must divide config.sequence_length=64"),
        (((8, 16), (4, 32)), "the last steps must increase"),
        ((8, 16), "must be 2 values"),
    ],
)
def test_what_cannot_be_is_said(config, stages, words):
    config.curriculum = stages
    with pytest.raises(UserError, match=words):
        Config.from_dict(config.to_dict())


def test_conversations_are_not_cut(config):
    config.task.name = "supervised_lm"
    with pytest.raises(UserError, match="cannot cut the rows of task 'supervised_lm'"):
        Config.from_dict(config.to_dict())
