"""The matrices that the commands for the papers' claims read are those of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gradient_spread
from benchmarks.attention_maps import MAPPED, Caught, catch, check_mapped, distribution, mix, positions, scores, visible
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormer
from transnormer_jax.papers.config import BaselineConfig
from transnormer_jax.tasks import CausalLM, MaskedLM


def every_attention(*, causal: bool) -> CausalLM:
    """A model in which each layer has another attention."""
    config = BaselineConfig.preset(
        "tiny",
        num_layers=len(MAPPED),
        attention=",".join(MAPPED),
        causal=causal,
        vocab_size=50,
        backend="quadratic",  # the quickest to compile
        scan_layers=False,
    )
    return (CausalLM if causal else MaskedLM)(TransNormer(config))


def random_params(task: CausalLM) -> dict:
    """Parameters with which nothing is zero, and quicker to make than the right ones."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree.map(lambda x: generator.normal(scale=0.2, size=x.shape).astype(x.dtype), shapes)


def packed_batch() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    ids = np.array([[1] * 21 + [2] * 16, [1] * 30 + [0] * 7], np.int32)
    inputs, targets = generator.integers(1, 50, (2, *ids.shape), np.int32)
    return {"inputs": inputs, "targets": targets, "segment_ids": ids}


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_the_matrices_are_those_of_the_model(causal):
    """Matrix times values is what the output projection reads; and the scores' gradients lead to the parameters'."""
    task, batch = every_attention(causal=causal), packed_batch()
    config, params = task.model.config, random_params(task)
    real = batch["segment_ids"] != 0

    @jax.jit
    def look(params, batch):
        sums, caught = catch(lambda: task.loss_and_metrics(params, batch))
        mixed, biases, rows = [], [], []
        loss, by_params, by_scores = gradient_spread.loss_and_gradients(task, config, params, batch)
        ids = batch["segment_ids"]
        for layer, word in enumerate(config.attentions):
            passed = Caught(**caught[layer])
            seen = visible(config, layer, ids)

            def from_queries(q, layer=layer, passed=passed):
                return scores(config, layer, params, passed._replace(q=q), positions(ids))

            s, pull_back = jax.vjp(from_queries, passed.q)
            mixed.append((mix(word, s, seen, passed.v), passed.mixed))
            own = by_params[f"layers_{layer}"]["attention"]["q"]["bias"][0]
            biases.append((jnp.sum(pull_back(by_scores[layer])[0], axis=(0, 1)), own))
            rows.append((distribution(word, s, seen), seen))
        return loss, sums.loss / sums.predictions, mixed, biases, rows

    loss, expected_loss, mixed, biases, rows = look(params, batch)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for word, (ours, theirs), (bias, expected), (p, seen) in zip(config.attentions, mixed, biases, rows, strict=True):
        np.testing.assert_allclose(ours[real], theirs[real], rtol=1e-4, atol=1e-5, err_msg=word)
        np.testing.assert_allclose(bias, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=word)
        assert np.all(np.asarray(p)[~np.broadcast_to(seen, p.shape)] == 0), word
        total = np.moveaxis(np.asarray(p).sum(axis=-1), 1, 2)[real]
        # relu and the T1 features may leave a row empty; nothing else does.
        expected_total = np.where(total > 0, 1, 0) if word == "diag_t1" else np.ones_like(total)
        np.testing.assert_allclose(total, expected_total, rtol=1e-4, err_msg=word)


def test_models_without_matrices_are_refused():
    with pytest.raises(UserError, match="attention 'lsh' has no N x N matrix"):
        check_mapped(BaselineConfig.preset("tiny", attention="lsh"))
    with pytest.raises(UserError, match="reversible=False"):
        check_mapped(BaselineConfig.preset("tiny", attention="softmax", reversible=True))
