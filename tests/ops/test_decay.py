"""Decay forms against published values."""

import numpy as np
import pytest

from transnormer_jax.ops import alibi_slopes, paper_log_decay, released_log_decay


def test_alibi_slopes_of_a_power_of_two():
    np.testing.assert_allclose(alibi_slopes(4), [0.25, 0.0625, 0.015625, 0.00390625])


def test_alibi_slopes_of_other_counts():
    # Printed by the released code for 12 and 40 heads.
    np.testing.assert_allclose(alibi_slopes(12)[:8], alibi_slopes(8))
    np.testing.assert_allclose(alibi_slopes(12)[8:], [0.707107, 0.353553, 0.176777, 0.088388], atol=1e-6)
    np.testing.assert_allclose(alibi_slopes(40)[32:35], [0.917004, 0.771105, 0.64842], atol=1e-6)


def test_released_decay_fades_with_depth():
    decay = released_log_decay(8, 3)
    assert decay.dtype == np.float32
    np.testing.assert_allclose(decay[:, 0], [-0.5 * 1.00001, -0.5 * 0.50001, -0.5 * 1e-5], rtol=1e-4)
    assert np.isfinite(released_log_decay(8, 1)).all()


def test_paper_decay_is_linear_in_the_head():
    decay = paper_log_decay(4, 2)
    np.testing.assert_allclose(decay, [[0, -2, -4, -6], [0, -1, -2, -3]])


@pytest.mark.parametrize("form", [released_log_decay, paper_log_decay])
def test_decay_is_never_growth(form):
    for heads in (1, 2, 3, 20, 96):
        assert form(heads, 7).shape == (7, heads)
        assert (form(heads, 7) <= 0).all()
