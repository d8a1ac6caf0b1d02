"""The benchmark of generation, with tiny models: what it writes, leaves out and refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import inference
from benchmarks.inference import KINDS, MODELS, Settings, softmax_config
from tests.benchmarks.runs import run_benchmark
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormer, TransNormerLLM

_SMALL = {"models": ("tiny",), "batch_sizes": (1, 3), "block_size": 2, "seconds": 1e-3}


def _run(tmp_path, **settings):
    summary, record = run_benchmark(inference, Settings(**(_SMALL | settings)), tmp_path / "inference.json")
    return summary["tiny"], record


@pytest.mark.slow
def test_speed_by_context_beside_softmax(tmp_path):
    summary, record = _run(tmp_path, batch_sizes=(2,), contexts=(64, 16), max_gigabytes=6e-5)
    rows = {(row["kind"], row["what"], row["context"]): row for row in record["rows"]}
    assert len(rows) == len(record["rows"]) == 2 * 2 * 2
    skipped = {key for key, row in rows.items() if "the limit is 6e-05 GB" in row.get("skipped", "")}
    assert skipped == {("softmax", "decode", 64)}
    for kind, what, context in rows.keys() - skipped:
        row = rows[kind, what, context]
        assert row["milliseconds"] > 0
        if what == "decode":
            assert row["tokens_per_second"] == pytest.approx(1e3 * 2 / row["milliseconds"])
            assert row["calls"] >= 3
            assert row["state"] == "read"
    assert rows["linear", "decode", 64]["state_bytes"] == rows["linear", "decode", 16]["state_bytes"]
    assert summary["time_of_a_token_over_that_at_the_shortest_context"].keys() == {"batch 2, 64"}
    assert summary["linear_over_softmax"].keys() == {"batch 2, 16"}


@pytest.mark.slow
def test_a_long_prompt_is_not_read_and_int8_is_smaller(tmp_path):
    sizes = []
    for weights in ("dtype", "int8"):
        limits = {"batch_sizes": (1,), "contexts": (16, 1000), "read_tokens": 100, "weights": weights}
        _, record = _run(tmp_path, kinds=("linear",), **limits)
        assert [row["context"] for row in record["rows"] if row["what"] == "first token"] == [16]
        states = {row["context"]: row["state"] for row in record["rows"] if row["what"] == "decode"}
        assert states == {16: "read", 1000: "placed"}
        sizes.append(record["parameters"]["tiny"]["linear"]["bytes"])
    assert sizes[1] < 0.4 * sizes[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_placed_states_go_on_in_a_batch(kind):
    subject = KINDS[kind](MODELS["tiny"], Settings(block_size=2))
    one = subject.read(40)
    assert sum(x.nbytes for x in jax.tree.leaves(one.cache)) == subject.state_bytes(1, 40)
    placed = subject.place(one, 5000)
    state = subject.decode(subject.repeat(placed, 3))
    assert jax.tree.leaves(state.cache.position)[0].shape == (3,)
    assert np.all(np.asarray(state.cache.position) >= 5000)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.cache))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("tiny", 125_184), ("100m", 1e8)])
def test_both_models_have_the_same_size(name, size):
    config, tokens = MODELS[name], jnp.zeros((1, 1), jnp.int32)
    for model in (TransNormerLLM(config), TransNormer(softmax_config(config, "float32"))):
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
        assert sum(x.size for x in jax.tree.leaves(params)) == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ("tinny",)}, "unknown name 'tinny' in models: did you mean 'tiny'"),
        ({"kinds": ("lsh",)}, "unknown name 'lsh' in kinds"),
        ({"contexts": ()}, "contexts is empty"),
        ({"contexts": (8192,)}, "read_tokens is 4096: one of the contexts"),
        ({"dtype": "float16"}, "unknown name 'float16' in dtype"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Settings(**settings)
