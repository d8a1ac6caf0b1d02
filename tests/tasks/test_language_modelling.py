"""The loss is the mean over real tokens, whatever the slicing of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import apply_of
from transnormer_jax.distributed import MeshConfig, make_mesh
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.tasks import CausalLM, cross_entropy


@pytest.fixture(scope="module")
def task():
    return CausalLM(TransNormerLLM(TransNormerLLMConfig.preset("tiny", init_std=0.2)))


@pytest.fixture(scope="module")
def params(task):
    return jax.jit(task.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    inputs, targets = jax.random.randint(jax.random.key(1), (2, 3, 24), 3, 259)
    segment_ids = jnp.ones((3, 24), jnp.int32).at[0, 10:].set(2).at[1, 20:].set(0)
    return {"inputs": inputs, "targets": targets, "segment_ids": segment_ids}


def test_sums_equal_the_definition(task, params, batch):
    sums = task.loss_and_metrics(params, batch)
    logits = apply_of(task.model)({"params": params}, batch["inputs"], segment_ids=batch["segment_ids"])
    real = np.asarray(batch["segment_ids"]) != 0
    log_probs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(batch["targets"])[..., None], -1)
    np.testing.assert_allclose(sums.loss, -log_probs[..., 0][real].sum(), rtol=1e-5)
    assert sums.tokens == real.sum() == 68
    assert sums.correct == (np.argmax(logits, -1) == batch["targets"])[real].sum()


def test_slices_of_logits_change_nothing(task, params, batch, monkeypatch):
    def loss_and_gradient():
        return jax.jit(jax.value_and_grad(lambda params: task.loss_and_metrics(params, batch).loss))(params)

    whole = loss_and_gradient()
    monkeypatch.setattr(cross_entropy, "_MAX_LOGITS", 3 * 259 * 5)  # at most 4 tokens of the sequence at one time
    assert cross_entropy._num_slices(24, 3 * 24 * 259) == 6
    for a, b in zip(jax.tree.leaves(loss_and_gradient()), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_padding_has_no_loss_and_no_gradient(task, params, batch):
    rubbish = {name: x.at[1, 20:].set(7) if name != "segment_ids" else x for name, x in batch.items()}

    def gradient(batch):
        return jax.jit(jax.grad(lambda params: task.loss_and_metrics(params, batch).loss))(params)

    for a, b in zip(jax.tree.leaves(gradient(batch)), jax.tree.leaves(gradient(rubbish)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_windows_with_carried_state_equal_one_pass(task, params, batch):
    whole = task.loss_and_metrics(params, batch)
    cache, parts, sums_from = task.model.init_cache(3), [], jax.jit(task.loss_and_metrics_from)
    for window in (slice(0, 8), slice(8, 16), slice(16, 24)):
        # Row 0 begins another document at 10, inside a window, so no state has to be cleared from outside.
        sums, cache = sums_from(params, {name: x[:, window] for name, x in batch.items()}, cache)
        parts.append(sums)
    for total, *pieces in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(sum(pieces), total, rtol=1e-5)


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
