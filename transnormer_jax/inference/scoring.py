"""Log-probabilities of tokens under the model itself, before temperature, penalties and limits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MAX_TOP = 20


class TokenScores(NamedTuple):
    """What the model thought of tokens. T is the smaller of `MAX_TOP` and the vocabulary.

    Attributes:
      log_prob: [...] float32, natural.
      likeliest: [...] bool, whether no token is likelier.
      top_log_probs: [..., T] float32, of the likeliest tokens, in order; of equal ones the first is likelier.
      top_tokens: [..., T] int32, these tokens.
    """

    log_prob: Float[Array, "*batch"]
    likeliest: Bool[Array, "*batch"]
    top_log_probs: Float[Array, "*batch T"]
    top_tokens: Int[Array, "*batch T"]


def score(logits: Float[Array, "*batch V"], tokens: Int[Array, "*batch"], top_wanted: Bool[Array, ""]) -> TokenScores:
    """Scores tokens [...] by logits [..., V] float32; unless `top_wanted`, the likeliest tokens are not looked for."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    log_prob = jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
    count = min(MAX_TOP, logits.shape[-1])
    shape = (*tokens.shape, count)
    top = jax.lax.cond(
        top_wanted,
        lambda: tuple(jax.lax.top_k(log_probs, count)),
        lambda: (jnp.zeros(shape), jnp.zeros(shape, jnp.int32)),
    )
    return TokenScores(log_prob, jnp.max(log_probs, axis=-1) == log_prob, *top)
