"""The loss is the mean over real tokens, whatever the slicing of logits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import apply_of, random_params
from transnormer_jax.distributed import MeshConfig, make_mesh
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.tasks import CausalLM, cross_entropy

MODEL = TransNormerLLM(TransNormerLLMConfig.preset("tiny"))
TASK = CausalLM(MODEL)
INPUTS, TARGETS = np.random.default_rng(1).integers(3, 259, (2, 3, 24), dtype=np.int32)
SEGMENT_IDS = np.repeat([[1, 2], [1, 0], [1, 1]], [10, 14], axis=1).astype(np.int32)
BATCH = {"inputs": INPUTS, "targets": TARGETS, "segment_ids": SEGMENT_IDS}


def loss_and_sums(params, batch):
    sums = TASK.loss_and_metrics(params, batch)
    return sums.loss, sums


def with_gradient():
    """(params, batch) -> ((loss, sums), gradient), compiled anew."""
    return jax.jit(jax.value_and_grad(loss_and_sums, has_aux=True))


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL)


@pytest.fixture(scope="module")
def run():
    return with_gradient()


@pytest.mark.slow
def test_sums_equal_the_definition(run, params):
    (_, sums), _ = run(params, BATCH)
    logits = apply_of(MODEL)({"params": params}, INPUTS, segment_ids=SEGMENT_IDS)
    real = SEGMENT_IDS != 0
    log_probs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), TARGETS[..., None], -1)
    np.testing.assert_allclose(sums.loss, -log_probs[..., 0][real].sum(), rtol=1e-5)
    assert sums.tokens == real.sum() == 58
    assert sums.correct == (np.argmax(logits, -1) == TARGETS)[real].sum()


@pytest.mark.slow
def test_slices_of_logits_change_nothing(run, params, monkeypatch):
    whole = run(params, BATCH)
    monkeypatch.setattr(cross_entropy, "_MAX_LOGITS", 3 * 259 * 5)  # at most 4 tokens of the sequence at one time
    assert cross_entropy._num_slices(24, 3 * 24 * 259) == 6
    for a, b in zip(jax.tree.leaves(with_gradient()(params, BATCH)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_padding_has_no_loss_and_no_gradient(run, params):
    rubbish = {name: np.where(SEGMENT_IDS == 0, 7, x) for name, x in BATCH.items()} | {"segment_ids": SEGMENT_IDS}
    chex.assert_trees_all_equal(run(params, rubbish), run(params, BATCH))


@pytest.mark.slow
def test_windows_with_carried_state_equal_one_pass(run, params):
    (_, whole), _ = run(params, BATCH)
    cache, pieces, sums_from = MODEL.init_cache(3), [], jax.jit(TASK.loss_and_metrics_from)
    for start in (0, 8, 16):
        # Row 0 begins another document at 10, inside a window, so no state has to be cleared from outside.
        sums, cache = sums_from(params, {name: x[:, start : start + 8] for name, x in BATCH.items()}, cache)
        pieces.append(sums)
    for total, *of_windows in zip(whole, *pieces, strict=True):
        np.testing.assert_allclose(sum(of_windows), total, rtol=1e-5)


@pytest.mark.parametrize(("vocab_size", "slices"), [(260, 6), (259, 12)])
def test_slices_count_the_logits_that_a_device_holds(vocab_size, slices, monkeypatch):
    """A vocabulary that the devices of `tensor` do not divide is whole on each."""
    monkeypatch.setattr(cross_entropy, "_MAX_LOGITS", 4 * vocab_size // 2)
    found, count = [], cross_entropy._num_slices
    monkeypatch.setattr(cross_entropy, "_num_slices", lambda *sizes: found.append(count(*sizes)) or found[-1])
    hidden, tokens = jnp.zeros((1, 24, 8)), jnp.zeros((1, 24), jnp.int32)

    def loss(hidden):
        table, weights = jnp.zeros((8, vocab_size)), jnp.ones((1, 24))
        sums = cross_entropy.cross_entropy_sums(lambda table, x: x @ table, table, hidden, tokens, weights, vocab_size)
        return sums.loss

    with jax.set_mesh(make_mesh(MeshConfig(data=1, tensor=2), jax.devices()[:2])):
        jax.eval_shape(loss, hidden)
    assert found == [slices]
