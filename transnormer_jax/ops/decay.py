"""Decay of every head in every layer: the released checkpoints' form and the paper's form, which differ.

Both return `log_decay` [L, H] float32, <= 0: the state is multiplied by exp(log_decay) at each token.
"""

import math

import numpy as np


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Slopes of ALiBi (arXiv 2108.12409): 2^(-8 (h+1) / H).

    For a head count that is no power of two: the slopes of the power below, then every second slope of the power above.

    Returns:
      [H] float64, > 0: their negative is a `log_decay` of `linear_attention`.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    if power == num_heads:
        return slopes
    return np.concatenate([slopes, alibi_slopes(2 * power)[::2][: num_heads - power]])


def released_log_decay(num_heads: int, num_layers: int) -> np.ndarray:
    """The decay of the released TransNormerLLM checkpoints; that of their paper (arXiv 2307.14995) is another.

    -slope_h (1 - l / (L - 1) + 1e-5) with ALiBi slopes: fast decay in the first layer, next to none in the last.

    Args:
      num_layers: L; with a single layer, l / (L - 1) is 0.

    Returns:
      [L, H] float32, < 0.
    """
    depth = np.arange(num_layers) / max(num_layers - 1, 1)
    return (-alibi_slopes(num_heads) * (1 - depth + 1e-5)[:, None]).astype(np.float32)


def paper_log_decay(num_heads: int, num_layers: int) -> np.ndarray:
    """The decay of TransNormerLLM (arXiv 2307.14995, section 3.1): -(8 h / H) (1 - l / L).

    Linear in h, counted from 0: head 0 has no decay. Weights trained with one form are wrong under the other.

    Returns:
      [L, H] float32, <= 0.
    """
    depth = np.arange(num_layers) / num_layers
    slopes = 8 * np.arange(num_heads) / num_heads
    return (-slopes * (1 - depth)[:, None]).astype(np.float32)
