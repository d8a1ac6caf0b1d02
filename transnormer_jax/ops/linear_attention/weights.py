"""Decay weights of a block of tokens: between its tokens, and between each token and the block's two ends.

Linear attention over a block with the state at one end known is

    out   = (q k^T * intra) v + head * (q S_in)
    S_out = (S_in + fade * S_in) + sum_j tail_j k_j v_j^T

Each weight is exp(log_decay * distance), zero across a document border, and no exponent is ever positive: the mask goes
inside the exponent, where it cannot make inf * 0. Going backwards in time exchanges head and tail and transposes intra.

The factor on a state that passes through is kept as fade = exp(.) - 1. A weak decay such as 1 - 1e-5 rounds to the
same wrong float32 at every step, and the error grows with their number; S + fade * S rounds without bias. Where a
document starts, fade is -1 and S + fade * S is exactly 0, so that nothing of the state before it is left, not even in
the rounding of what is written.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transnormer_jax.ops.linear_attention.segments import Segments

State = Float[Array, "B H K V"]
"""The state of each row and head, float32."""


class BlockWeights(NamedTuple):
    """Decay weights of blocks of C tokens, float32; the leading axes broadcast over the batch and M blocks.

    All lie in [0, 1], but `fade` in [-1, 0].
    """

    intra: Float[Array, "#B #M H C C"]
    head: Float[Array, "#B #M H C"]
    tail: Float[Array, "#B #M H C"]
    fade: Float[Array, "#B #M H"]

    def reversed(self) -> "BlockWeights":
        """The weights for a state that runs from the last token to the first."""
        return BlockWeights(jnp.swapaxes(self.intra, -1, -2), self.tail, self.head, self.fade)


def block_weights(
    log_decay: Float[Array, " H"], num_tokens: int, num_blocks: int, block: int, segments: Segments | None
) -> BlockWeights:
    """Weights of `num_blocks` blocks of `block` tokens that cover a row of `num_tokens` tokens and its padding.

    The padding at the end of the last block takes no step. `segments` covers the padded row: [B, num_blocks * block].
    """
    causal = jnp.tril(jnp.ones((block, block), bool))[None, None]
    if segments is None:
        position = jnp.minimum(jnp.arange(1, num_blocks * block + 1), num_tokens).reshape(1, num_blocks, block)
        left = jnp.minimum(jnp.arange(num_blocks) * block, num_tokens).reshape(1, num_blocks, 1)
        within = jnp.arange(block)[None, None]  # the same in every block, so that `intra` is computed once
        same_run = same_as_left = same_as_right = passes = None
    else:
        position = within = segments.position.reshape(-1, num_blocks, block)
        run = segments.run.reshape(-1, num_blocks, block)
        left, run_left = _before(position), _before(run)
        same_run = run[..., :, None] == run[..., None, :]
        same_as_left, same_as_right = run == run_left, run == run[..., -1:]
        passes = run_left == run[..., -1:]
    right = position[..., -1:]

    def decay(distance: Array, mask: Array | None) -> Array:
        return jnp.exp(exponent(log_decay, distance, mask))

    return BlockWeights(
        intra=decay(within[..., :, None] - within[..., None, :], _both(causal, same_run)),
        head=decay(position - left, same_as_left),
        tail=decay(right - position, same_as_right),
        fade=jnp.expm1(exponent(log_decay, right - left, passes))[..., 0],
    )


def end_weights(
    log_decay: Float[Array, " H"], num_tokens: int, segments: Segments | None, *, at_start: bool
) -> Float[Array, "#B N H"]:
    """Weight of each token in the state at the end of the row, or at its start: `tail` or `head` of one block."""
    if segments is None:
        position, run = jnp.arange(1, num_tokens + 1)[None], jnp.zeros((1, num_tokens), jnp.int32)
    else:
        position, run = segments
    distance = position if at_start else position[:, -1:] - position
    same = run == (0 if at_start else run[:, -1:])
    return jnp.exp(exponent(log_decay, distance, same))


def step_log_decay(
    log_decay: Float[Array, " H"], num_tokens: int, segments: Segments | None, *, reverse: bool
) -> tuple[Float[Array, "#B N H"], Float[Array, "#B H"]]:
    """Log of the factor on the state as it arrives at each token, -inf where a document starts; and as it leaves."""
    if segments is None:
        steps = jnp.broadcast_to(log_decay, (1, num_tokens, *log_decay.shape))
    else:
        distance = jnp.diff(segments.position, axis=1, prepend=jnp.zeros_like(segments.position[:, :1]))
        same = jnp.diff(segments.run, axis=1, prepend=jnp.zeros_like(segments.run[:, :1])) == 0
        steps = exponent(log_decay, distance, same)
    none = jnp.zeros_like(steps[:, :1])
    if reverse:  # the step between tokens t and t+1 is taken on arriving at t, and the first one on leaving the row
        return jnp.concatenate([steps[:, 1:], none], axis=1), steps[:, 0]
    return steps, none[:, 0]


def exponent(
    log_decay: Float[Array, " H"], distance: Int[Array, "B M *C"], mask: Bool[Array, "#B #M *C"] | None
) -> Float[Array, "B M H *C"]:
    """log_decay * distance where the mask holds, else -inf; the heads come after batch and block."""
    product = distance[:, :, None] * log_decay.reshape(1, 1, -1, *[1] * (distance.ndim - 2))
    return product if mask is None else jnp.where(mask[:, :, None], product, -jnp.inf)


def pass_on(state: Float[Array, "..."], fade: Float[Array, "..."], written: Float[Array, "..."]) -> Float[Array, "..."]:
    """The state after tokens that fade it by 1 + `fade` and write `written`; the shapes broadcast."""
    return (state + fade * state) + written


def _before(x: Int[Array, "B M C"]) -> Int[Array, "B M 1"]:
    """The value at the place before each block; the place before the row is 0."""
    return jnp.pad(x[:, :-1, -1:], ((0, 0), (1, 0), (0, 0)))


def _both(a: Bool[Array, "..."], b: Bool[Array, "..."] | None) -> Bool[Array, "..."]:
    return a if b is None else a & b
