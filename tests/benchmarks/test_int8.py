"""The benchmark of int8 weights, with tiny models."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import int8
from benchmarks.inference_subjects import MODELS, Linear
from tests.training.small_config import small_config, write_counting
from transnormer_jax.training.checkpoints import Checkpoints
from transnormer_jax.training.config import Config
from transnormer_jax.training.setup import make_task
from transnormer_jax.training.step import TrainState
from transnormer_jax.training.workdir import write_config


def test_every_pair_of_dtypes_is_compared_and_timed(tmp_path, monkeypatch):
    values = small_config(tmp_path)
    values.data.files = write_counting(tmp_path)
    config = Config.from_dict(values.to_dict())
    write_config(tmp_path / "run", config)
    params = jax.jit(make_task(config).init)(jax.random.key(0))
    with Checkpoints(tmp_path / "run", config=config, tokenizer="bytes-1") as checkpoints:
        checkpoints.save(TrainState(jnp.array(2), params, {"count": jnp.zeros(())}), rows=0)
    monkeypatch.setitem(MODELS, "100m", config.model)
    # Decoding is timed in the tests of `benchmarks.inference`.
    monkeypatch.setattr(Linear, "read", lambda *arguments: None)
    monkeypatch.setattr(int8, "time_in_turn", lambda steps, states, seconds: {key: [0.5, 0.25, 0.5] for key in steps})

    output = tmp_path / "int8.json"
    settings = int8.Settings(str(tmp_path / "run"), tokens=512, block_size=2, seconds=1e-3)
    summary = int8.run(settings, output, "the command")
    rows = {(row["dtype"], row["weights"]): row for row in json.loads(output.read_text())["rows"]}
    assert [*rows] == [("float32", "float32"), ("float32", "int8"), ("bfloat16", "bfloat16"), ("bfloat16", "int8")]
    assert rows["float32", "float32"]["relative_logit_error"] == 0
    assert 0 < rows["float32", "int8"]["relative_logit_error"] < 0.1
    assert summary["relative_logit_error"] == rows["float32", "int8"]["relative_logit_error"]
    for row in rows.values():
        assert row["megabytes"] == pytest.approx(row["megabytes_100m"])
        assert row["tokens_per_second"] == row["tokens_per_second_100m"] == 4
