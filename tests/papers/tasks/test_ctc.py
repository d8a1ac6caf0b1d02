"""CTC against the sum over all alignments, decoding and edit distance against plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.papers.tasks.ctc import ctc_loss, edit_distance, greedy_ctc_decode


@jax.jit
def loss_and_gradient(logits, mask, labels):
    return jax.value_and_grad(lambda logits: ctc_loss(logits, mask, labels).sum())(logits)


def collapse(alignment):
    """Repeats collapsed, then blanks dropped."""
    return [label for label, _ in itertools.groupby(alignment) if label]


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


@pytest.mark.parametrize("labels", [[], [2], [1, 2], [1, 1], [2, 1, 2]], ids=str)
def test_loss_is_the_sum_over_all_alignments(labels):
    frames, classes = 5, 3
    logits = jax.random.normal(jax.random.key(0), (1, frames, classes))
    log_probs = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
    probability = sum(
        np.exp(log_probs[np.arange(frames), alignment].sum())
        for alignment in itertools.product(range(classes), repeat=frames)
        if collapse(alignment) == labels
    )
    padded = jnp.array([labels + [0] * (4 - len(labels))])
    loss, _ = loss_and_gradient(logits, jnp.ones((1, frames), bool), padded)
    np.testing.assert_allclose(loss, -np.log(probability), rtol=1e-5)


@pytest.mark.slow
def test_padding_does_not_matter_to_the_loss():
    logits = jax.random.normal(jax.random.key(1), (2, 9, 5))
    labels, mask = jnp.array([[3, 3, 1, 0], [4, 2, 0, 0]]), jnp.arange(9)[None] < jnp.array([[9], [6]])
    loss, gradient = loss_and_gradient(logits, mask, labels)
    first, _ = loss_and_gradient(logits[:1], mask[:1], labels[:1])
    second, _ = loss_and_gradient(logits[1:, :6], mask[1:, :6], labels[1:, :2])
    np.testing.assert_allclose(loss, first + second, rtol=1e-6)
    assert np.abs(gradient[1, :6]).min() > 0
    assert not gradient[1, 6:].any()
    for rubbish in (1e9, np.inf, np.nan):
        dirty = jnp.where(mask[..., None], logits, rubbish)
        other, gradient_of_other = loss_and_gradient(dirty, mask, labels)
        assert other == loss
        np.testing.assert_array_equal(gradient_of_other, gradient)


@pytest.mark.slow
def test_too_few_frames_have_a_great_loss_and_a_finite_gradient():
    logits, labels = jax.random.normal(jax.random.key(2), (1, 3, 4)), jnp.array([[1, 1, 2]])
    loss, gradient = loss_and_gradient(logits, jnp.ones((1, 3), bool), labels)
    assert 1e4 < loss < 1e6
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_greedy_decoding_equals_plain_python():
    logits = jax.random.normal(jax.random.key(3), (20, 17, 4))
    lengths = jax.random.randint(jax.random.key(4), (20,), 0, 18)
    mask = jnp.arange(17)[None] < lengths[:, None]
    labels, is_label = jax.jit(greedy_ctc_decode)(logits, mask)
    assert labels.dtype == jnp.int32
    assert labels.shape == is_label.shape == (20, 17)
    for row, best, length in zip(range(20), np.argmax(logits, -1), lengths, strict=True):
        expected = collapse(best[:length].tolist())
        assert labels[row].tolist() == expected + [0] * (17 - len(expected))
        assert is_label[row].tolist() == [i < len(expected) for i in range(17)]


def test_greedy_decoding_keeps_labels_parted_by_a_blank():
    best = jnp.array([[2, 2, 0, 2, 1, 1, 0, 0, 1, 3]])
    labels, is_label = greedy_ctc_decode(jax.nn.one_hot(best, 4), jnp.arange(10)[None] < 9)
    assert labels[is_label].tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("kitten", "sitting", 3),
        ("saturday", "sunday", 3),
        ("intention", "execution", 5),
        ("flaw", "lawn", 2),
        ("", "abc", 3),
        ("abc", "", 3),
        ("", "", 0),
    ],
)
def test_edit_distance_of_known_words(a, b, distance):
    def as_row(word):
        return jnp.array([list(word.encode().ljust(10, b"x"))]), jnp.array([len(word)])

    assert edit_distance(*as_row(a), *as_row(b)).tolist() == [distance]
    assert edit_distance(*as_row(b), *as_row(a)).tolist() == [distance]


def test_edit_distance_of_random_rows_equals_plain_python():
    random = np.random.default_rng(0)
    a, b = random.integers(1, 4, (200, 12)), random.integers(1, 4, (200, 9))
    a_length, b_length = random.integers(0, 13, 200), random.integers(0, 10, 200)
    distance = jax.jit(edit_distance)(*(jnp.asarray(x, jnp.int32) for x in (a, a_length, b, b_length)))
    assert distance.dtype == jnp.int32
    expected = [levenshtein(x[:n], y[:m]) for x, n, y, m in zip(a, a_length, b, b_length, strict=True)]
    assert distance.tolist() == expected
