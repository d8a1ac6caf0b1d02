"""Texts of any length: reading in windows and writing token by token are one pass over the whole."""

import jax
import numpy as np
import pytest

from tests.compiled import apply_of, random_params
from tests.inference.letters import CONFIG, MODEL
from transnormer_jax.inference.decoding import WINDOW, advance, decode, empty_state, prefill, take_rows
from transnormer_jax.inference.sampling import SamplingSettings, stack_settings
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig

one_step = jax.jit(advance, static_argnums=0)


def make_text(length):
    return np.random.default_rng(0).integers(3, 259, length).astype(np.int32)


def assert_close(actual, expected):
    """Within 1e-4 of the largest logit."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_after_prompts_of_several_widths_a_step_is_a_full_pass(params):
    """Of three widths prompts that just need it, that fill it and 30 between, after none and after one whole window.

    What is read later is read by the same programs, from a state of the same kind.
    """
    text = make_text(2 * WINDOW + 1)
    expected = np.asarray(apply_of(MODEL)({"params": params}, text[None])[0])
    before = empty_state(MODEL, params, 1, CONFIG.vocab_size)
    for start in (0, WINDOW):
        for width in (32, 128, 512):
            lengths = np.linspace(1 if width == 32 else width // 2 + 1, width, 32).astype(int)
            rows = take_rows(before, np.zeros(32, np.int32))
            state = prefill(MODEL, params, rows, [text[start : start + n] for n in lengths])
            ends = start + lengths
            assert_close(state.logits, expected[ends - 1])
            assert_close(one_step(MODEL, params, state, text[ends]).logits, expected[ends])
        before = prefill(MODEL, params, before, [text[:WINDOW]])


@pytest.mark.slow
def test_after_65536_tokens_steps_are_a_full_pass(params):
    text = make_text(65_536 + 4)
    last = jax.jit(lambda params, tokens: MODEL.apply({"params": params}, tokens, method="hidden")[0][:, -5:])
    hidden = last(params, text[None])
    expected = np.asarray(apply_of(MODEL)({"params": params}, hidden, method="unembed")[0])
    state = prefill(MODEL, params, empty_state(MODEL, params, 1, CONFIG.vocab_size), [text[:65_536]])
    assert_close(state.logits[0], expected[0])
    for step in range(4):
        state = one_step(MODEL, params, state, text[65_536 + step, None])
        assert_close(state.logits[0], expected[step + 1])


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_100_000_steps_stay_finite_and_bounded():
    """Ten times as many as the first layer remembers; a state that grows faster than a sum shows in a tenth of them."""
    config = TransNormerLLMConfig(vocab_size=16, num_layers=2, model_dim=16, num_heads=2, glu_dim=16, dtype="float32")
    model = TransNormerLLM(config)
    params = random_params(model, 0.3)
    state = prefill(model, params, empty_state(model, params, 1, 16), [[1]])
    settings = stack_settings([SamplingSettings()])
    seed, no, block = np.zeros(1, np.uint32), np.bool_(False), 10_000
    norms, logits = [], []
    for start in range(0, 100_000, block):
        so_far = np.array([start], np.int32)
        state, tokens, _ = decode(model, params, state, seed, settings, so_far, no, block)
        assert len(np.unique(tokens)) > 1
        norms.append([np.linalg.norm(layer) for states in state.cache.states for layer in np.asarray(states)])
        logits.append(np.abs(state.logits).max())
    assert state.cache.position == 100_001
    assert np.isfinite(norms).all()
    early, late = np.split(np.array(norms), 2)
    # What the first layer forgets in thousands of tokens stays as large as it is.
    np.testing.assert_array_less(late[:, :-1].max(axis=0), 1.1 * early[:, :-1].max(axis=0))
    # The last layer forgets in millions: until then its state is a sum, which the norm after it takes to one size.
    assert late[-1, -1] < 1.01 * 10 * early[0, -1]
    assert max(logits[5:]) < 1.5 * max(logits[:5])
