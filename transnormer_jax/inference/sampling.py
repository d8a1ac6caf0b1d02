"""Samples a token from logits: repetition penalty, temperature, top-k and top-p, in the order of Hugging Face.

Every function treats each row by itself. The settings are traced, so another temperature compiles nothing, and rows of
one batch may have different ones.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from transnormer_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How to choose the next token.

    Attributes:
      temperature: logits are divided by it; 0 takes the likeliest token.
      top_k: only the k likeliest tokens; 0 is no limit.
      top_p: only the fewest likeliest tokens whose probabilities reach p in sum, at least one; 1 is no limit.
      repetition_penalty: above 1, tokens of the prompt and of the text so far become less likely.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Raises UserError where a setting has no meaning."""
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}: give 0 (the likeliest token) or a positive number.")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise UserError(f"top_k is {self.top_k}: give a positive number of tokens, or 0 for no limit.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: give a probability above 0 and up to 1 (no limit).")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(
                f"repetition_penalty is {self.repetition_penalty}: give a positive number; 1 is no penalty."
            )


class RowSettings(NamedTuple):
    """The `SamplingSettings` of B rows, each [B]."""

    temperature: Any
    top_k: Any
    top_p: Any
    repetition_penalty: Any


def stack_settings(settings: Sequence[SamplingSettings]) -> RowSettings:
    """The settings of rows as arrays [B] of NumPy: float32, and int32 for `top_k`."""
    no_limit = np.iinfo(np.int32).max
    return RowSettings(
        np.array([row.temperature for row in settings], np.float32),
        np.array([min(row.top_k, no_limit) for row in settings], np.int32),
        np.array([row.top_p for row in settings], np.float32),
        np.array([row.repetition_penalty for row in settings], np.float32),
    )


def sample(
    keys: Key[Array, " B"], logits: Float[Array, "B V"], seen: Bool[Array, "B V"], settings: RowSettings
) -> Int[Array, " B"]:
    """Draws a token for each row.

    Args:
      keys: [B], a random key for each row, so that no row depends on the others.
      seen: [B, V] bool, the tokens of the prompt and of the text so far.

    Returns:
      [B] int32.
    """
    logits = penalize_repetition(logits, seen, settings.repetition_penalty)
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    greedy = settings.temperature == 0

    def draw() -> Int[Array, " B"]:
        # Without a limit there is nothing to sort, and sorting costs more than all else here.
        limited = jnp.any((settings.top_k > 0) | (settings.top_p < 1))
        # The largest is 0, so that no temperature overflows.
        scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.where(greedy, 1, settings.temperature)[
            :, None
        ]
        kept = jax.lax.cond(limited, lambda: keep_likeliest(scaled, settings.top_k, settings.top_p), lambda: scaled)
        drawn = jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
        return jnp.where(greedy, likeliest, drawn)

    return jax.lax.cond(jnp.all(greedy), lambda: likeliest, draw)


def penalize_repetition(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """Divides positive logits of seen tokens by the penalty and multiplies negative ones (CTRL, arXiv 1909.05858)."""
    penalty = penalty[:, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_likeliest(
    logits: Float[Array, "B V"], top_k: Int[Array, " B"], top_p: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """Sets to -inf all but the `top_k` likeliest tokens, and of these all but the nucleus of `top_p`.

    The nucleus (arXiv 1904.09751) is the smallest set of likeliest tokens with a probability of at least `top_p`. Of
    equal tokens the first counts as likelier, as in `argmax`, so that k tokens remain and never more.

    Args:
      top_k: [B]; 0 is no limit.
      top_p: [B]; 1 is no limit.
    """
    top_k, top_p = top_k[:, None], top_p[:, None]
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    by_rank = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(logits.shape[-1])[None]
    kept = jnp.broadcast_to((rank < top_k) | (top_k == 0), logits.shape)
    probability = jax.nn.softmax(jnp.where(kept, by_rank, -jnp.inf), axis=-1)
    likelier = jnp.cumsum(probability, axis=-1) - probability
    # Rounding may let the sum reach 1 too early, or make a tiny `top_p` 0.
    kept &= (likelier < top_p) | (top_p >= 1) | (rank == 0)
    kept = jnp.put_along_axis(jnp.zeros_like(kept), order, kept, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)
