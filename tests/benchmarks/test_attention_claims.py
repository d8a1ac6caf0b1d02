"""The commands for the papers' claims about attention, at tiny sizes: their measures, what they write."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import dilution, gradient_bounds, gradient_spread
from tests.benchmarks.runs import run_benchmark
from transnormer_jax.errors import UserError
from transnormer_jax.training.checkpoints import Checkpoints
from transnormer_jax.training.setup import make_task
from transnormer_jax.training.step import TrainState
from transnormer_jax.training.workdir import write_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("corpus")
    file = directory / "corpus.txt"
    file.write_text("".join(f"line {i} says {i} times {i % 7} is {i * (i % 7)}\n" for i in range(200)))
    return {"files": str(file), "data_dir": str(directory / "datasets")}


@pytest.fixture(scope="module")
def workdir(corpus, tmp_path_factory) -> Path:
    settings = gradient_spread.Settings(**corpus, length=32, num_layers=2, model_dim=16)
    config = gradient_spread.text_config(settings, "diag_t2,linear")
    directory = tmp_path_factory.mktemp("runs") / "small"
    write_config(directory, config)
    params = jax.jit(make_task(config).init)(jax.random.key(0))
    with Checkpoints(directory, config=config, tokenizer="bytes-1") as checkpoints:
        checkpoints.save(TrainState(jnp.array(2), params, {"count": jnp.zeros(())}), rows=0)
    return directory


@pytest.mark.slow
def test_accumulated_attention_grows_from_a_token_to_all():
    p = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 37, 37)))
    curves = np.stack([dilution.accumulated(p, share) for share in np.linspace(0, 1, 75)])
    np.testing.assert_allclose(curves[0], np.diagonal(p, axis1=1, axis2=2), rtol=1e-6)
    np.testing.assert_allclose(curves[-1], 1, rtol=1e-5)
    assert np.all(np.diff(curves, axis=0) > -1e-6)
    # In the middle of a row, 9 of 37 tokens are four on either side.
    np.testing.assert_allclose(dilution.accumulated(p, 9 / 37)[:, 18], p[:, 18, 14:23].sum(axis=1), rtol=1e-5)


def test_the_spectrum_counts_the_rank():
    n = 16
    np.testing.assert_allclose(dilution.cumulative(np.eye(n)), np.arange(1, n + 1) / n, rtol=1e-12)
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 3, n, 4))
    curves = dilution.cumulative(a @ np.swapaxes(b, 1, 2))
    assert curves.shape == (3, n)
    assert np.all(curves[:, 2] < 0.999)
    np.testing.assert_allclose(curves[:, 3:], 1, rtol=1e-12)


@pytest.mark.slow
def test_dilution_and_spectrum_of_a_trained_model(workdir, tmp_path):
    settings = dilution.Settings(workdirs=(str(workdir),), rows=2, length=24, shares=(0.25, 0.5, 1.0))
    summary, record = run_benchmark(dilution, settings, tmp_path / "new" / "dilution.json")
    (model,) = record["models"]
    assert (model["step"], model["num_tokens"], model["attentions"]) == (2, 24, ["diag_t2", "linear"])
    for layer in (*model["layers"], model["uniform"]):
        assert layer == sorted(layer)
        assert layer[-1] == pytest.approx(1, rel=1e-5)
    assert model["uniform"][:2] == pytest.approx([0.25, 0.5])
    for layer, needed in zip(model["spectrum"], summary["small diag_t2,linear"]["values_for_mass"], strict=True):
        assert len(layer) == 24
        assert layer[-1] == 1
        assert layer[needed - 1] >= 0.9 > (layer[needed - 2] if needed > 1 else 0)
    with pytest.raises(UserError, match="0 rows have 24 tokens: ask for fewer"):
        dilution.whole_rows([], 1, 24)


@pytest.mark.slow
def test_derivatives_stay_within_their_bounds(tmp_path):
    settings = gradient_bounds.Settings(scales=(1e-4, 1e-2, 1.0, 30.0), num_tokens=12, head_dim=4)
    summary, record = run_benchmark(gradient_bounds, settings, tmp_path / "bounds.json")
    assert summary["within_bounds"]
    first, second, *_ = rows = record["rows"]
    # As the square of the scale, since both q and k have it.
    assert first["1+elu derivative"] == pytest.approx(1e4 * second["1+elu derivative"], rel=1e-6)
    assert max(row["softmax derivative"] for row in rows) > 0.2
    assert 0.5 / settings.norm_eps**0.5 < first["norm derivative"] < 1.5 / settings.norm_eps**0.5
    for row in rows:
        assert row["softmax derivative"] <= 0.25


@pytest.mark.slow
def test_the_spread_of_gradients_is_taken_after_the_warm_up(corpus, tmp_path):
    settings = gradient_spread.Settings(
        **corpus,
        attentions=("softmax", "norm_t2"),
        steps=6,
        warmup_steps=2,
        batch_size=4,
        length=32,
        num_layers=1,
        model_dim=16,
    )
    summary, record = run_benchmark(gradient_spread, settings, tmp_path / "spread.json")
    for word, model in record["attentions"].items():
        assert np.shape(model["loss"]) == (6,)
        for kind in gradient_spread.KINDS:
            norms = np.array(model["norms"][kind])
            assert norms.shape == (6, 1)
            assert np.all(norms > 0)
            assert summary[word][kind] == pytest.approx(norms[2:].std() / norms[2:].mean(), abs=1e-4)
        assert summary[word]["published"] == gradient_spread.PUBLISHED[word]
