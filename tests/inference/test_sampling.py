import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.inference import SamplingSettings
from transnormer_jax.inference.sampling import keep_likeliest, penalize_repetition, sample, stack_settings

LOGITS = jax.random.normal(jax.random.key(0), (6, 50))
UNSEEN = jnp.zeros(LOGITS.shape, bool)
KEYS = jax.random.split(jax.random.key(1), 6)
FOUR = jnp.log(jnp.array([[0.15, 0.5, 0.1, 0.25]]))

jitted_sample = jax.jit(sample)


def draw(logits=LOGITS, keys=KEYS, seen=UNSEEN, **settings):
    return jitted_sample(keys, logits, seen, stack_settings([SamplingSettings(**settings)] * len(logits)))


def kept_tokens(logits, top_k=0, top_p=1.0):
    kept = keep_likeliest(logits, jnp.array([top_k]), jnp.array([top_p]))
    return np.flatnonzero(np.isfinite(kept[0])).tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"top_p": 1e-46},
        {"temperature": 1e-4},
        {"temperature": 2e-38},
    ],
)
def test_the_narrowest_settings_are_greedy(settings):
    np.testing.assert_array_equal(draw(**settings), jnp.argmax(LOGITS, axis=-1))


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [0, 1, 2, 3]),
        (2, 1.0, [1, 3]),
        (9, 1.0, [0, 1, 2, 3]),
        (0, 0.4, [1]),
        (0, 0.6, [1, 3]),
        (0, 0.8, [0, 1, 3]),
        (3, 0.8, [1, 3]),  # of the three, renormalised: 0.556 + 0.278 > 0.8
        (0, 1e-9, [1]),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(top_k, top_p, kept):
    assert kept_tokens(FOUR, top_k, top_p) == kept


def test_of_equal_tokens_top_k_keeps_no_more_than_k():
    assert kept_tokens(jnp.zeros((1, 8)), top_k=3) == [0, 1, 2]


def test_top_p_of_1_keeps_tokens_that_rounding_would_lose():
    logits = jnp.where(jnp.arange(50_000)[None] == 0, 30.0, 0.0)
    assert len(kept_tokens(logits, top_k=50_000)) == 50_000


@pytest.mark.slow
def test_frequencies_are_the_softmax_at_the_temperature():
    count, temperature = 20_000, 0.7
    keys = jax.random.split(jax.random.key(2), count)
    logits = jnp.broadcast_to(FOUR, (count, 4))
    tokens = draw(logits, keys, jnp.zeros(logits.shape, bool), temperature=temperature)
    np.testing.assert_allclose(
        jnp.bincount(tokens, length=4) / count, jax.nn.softmax(FOUR[0] / temperature), atol=0.015
    )


def test_repetition_penalty_by_hand():
    logits = jnp.array([[2.0, -1.0, 3.0, -0.5]])
    seen = jnp.array([[True, True, False, False]])
    np.testing.assert_array_equal(penalize_repetition(logits, seen, jnp.array([2.0])), [[1.0, -2.0, 3.0, -0.5]])


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.5}])
def test_a_row_does_not_depend_on_the_others(settings):
    together = draw(**settings)
    for row in range(len(LOGITS)):
        one = slice(row, row + 1)
        assert draw(LOGITS[one], KEYS[one], UNSEEN[one], **settings) == together[row]


def test_rows_with_settings_of_their_own():
    settings = [
        SamplingSettings(temperature=0.0),
        SamplingSettings(),
        SamplingSettings(top_k=5),
        SamplingSettings(temperature=2.0, top_p=0.5),
        SamplingSettings(repetition_penalty=3.0),
        SamplingSettings(temperature=0.0, repetition_penalty=3.0),
    ]
    seen = jnp.zeros_like(UNSEEN).at[:, ::2].set(True)
    together = jitted_sample(KEYS, LOGITS, seen, stack_settings(settings))
    for row, own in enumerate(settings):
        one = slice(row, row + 1)
        alone = jitted_sample(KEYS[one], LOGITS[one], seen[one], stack_settings([own]))
        assert alone == together[row]


def test_other_settings_compile_nothing():
    draw()
    before = jitted_sample._cache_size()
    draw(temperature=0.3, top_k=4, top_p=0.5, repetition_penalty=1.5)
    draw(temperature=0, top_k=2**40, top_p=1)
    assert jitted_sample._cache_size() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
    ],
)
def test_a_setting_without_meaning_is_refused(name, value):
    with pytest.raises(UserError, match=f"{name} is {value}"):
        SamplingSettings(**{name: value})
