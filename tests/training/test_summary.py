"""What a run says at its start is true of it."""

import dataclasses
import re
import types

import jax
import numpy as np
import pytest

from tests.training.small_config import small_config
from transnormer_jax.distributed import make_mesh
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerConfig
from transnormer_jax.papers.models import BiLSTMConfig
from transnormer_jax.training import Config
from transnormer_jax.training.assembly import assemble
from transnormer_jax.training.setup import make_task
from transnormer_jax.training.summary import (
    attention_summary,
    checkpoint_words,
    devices_words,
    parameter_table,
    summary,
)


def build(tmp_path, **values):
    config = small_config(tmp_path)
    config.mesh.data, config.mesh.fsdp = 2, 4
    config.num_steps, config.checkpoint_every = 300, 100
    config.update(values)
    config = Config.from_dict(config.to_dict())
    mesh = make_mesh(config.mesh)
    return config, mesh, assemble(config, make_task(config), mesh).state


@pytest.mark.slow
def test_the_summary_is_true_and_short(tmp_path):
    config, mesh, state = build(tmp_path)
    lines = summary(config, mesh, state, data="400 documents", held_out="40 documents", rows_per_epoch=200)
    assert len(lines) == 6
    text = "\n".join(lines)
    # 259 x 32 of the embedding; q, k, v, u and out, three matrices of the GLU, and the LRPE's angles.
    assert f"{259 * 32 + 5 * 32 * 32 + 3 * 32 * 48 + 2 * 16:,} parameters, float32; linear attention by" in text
    parts = [float(x) for x in re.search(r"parameters ([\d.e-]+), optimizer state ([\d.e-]+)", text).groups()]
    placed = jax.tree.map(lambda x: jax.device_put(jax.numpy.zeros(x.shape, x.dtype), x.sharding), state)
    for part, tree in zip(parts, (placed.params, placed.opt_state), strict=True):
        on_one_device = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
        assert part == pytest.approx(on_one_device / 2**30, rel=0.01)
    assert "8 x cpu; mesh data=2 fsdp=4" in text
    assert "300 of 16 rows x 64 tokens = 1,024 tokens; 12.5 steps per epoch" in text
    assert "causal_lm: 400 documents; held out: 40 documents" in text
    assert "every 100 steps" in text


def test_the_devices_of_several_processes():
    devices = np.array([types.SimpleNamespace(process_index=i // 2, device_kind="H100") for i in range(4)])
    mesh = types.SimpleNamespace(devices=devices, size=4, shape={"data": 1, "fsdp": 4})
    assert devices_words(mesh, hosts=2) == "4 x H100, 2 of them local, 2 processes on 2 hosts; mesh fsdp=4"
    assert devices_words(mesh).endswith("2 processes on 1 host; mesh fsdp=4")


def test_the_table_has_every_parameter(tmp_path):
    _, _, state = build(tmp_path)
    table = parameter_table(state).splitlines()
    assert len(table) == len(jax.tree.leaves(state.params)) + 1
    assert table[-1].endswith(" parameters")


def test_the_backend_is_the_one_that_the_steps_run(tmp_path):
    config, _, _ = build(tmp_path)
    assert attention_summary(config) == "linear attention by quadratic"  # one chunk holds a row of 64 tokens
    assert attention_summary(dataclasses.replace(config, sequence_length=4096)) == "linear attention by chunked"
    recurrent = dataclasses.replace(config.model, backend="recurrent")
    assert attention_summary(dataclasses.replace(config, model=recurrent)) == "linear attention by recurrent"
    kernel = dataclasses.replace(config.model, backend="pallas_tpu")
    with pytest.raises(UserError, match="'pallas_tpu' cannot be used here"):
        attention_summary(dataclasses.replace(config, model=kernel))
    for architecture, model, words in (
        ("transnormer", TransNormerConfig(attention="t1"), "attention diag_t1, norm_t1, backend auto"),
        ("bilstm", BiLSTMConfig(), "recurrent"),
    ):
        assert attention_summary(dataclasses.replace(config, architecture=architecture, model=model)) == words


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"checkpoint_every": 0, "keep_checkpoints": 2, "keep_every": 1000, "keep_best": 0},
            "every 15 minutes; kept: the newest 2, every step that is a multiple of 1,000",
        ),
        ({"checkpoint_minutes": 0.0}, "every 500 steps; kept: the newest 3, the best 1"),
    ],
)
def test_when_checkpoints_are_saved(keys, words):
    assert checkpoint_words(Config(**keys)) == words
