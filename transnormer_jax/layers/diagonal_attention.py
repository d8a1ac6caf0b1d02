"""DiagAttention, the attention within blocks of TransNormer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.layers.lrpe import lrpe_parameters, reflect_and_rotate
from transnormer_jax.layers.projection import project_heads, project_out
from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.ops import (
    DiagonalState,
    diagonal_attention,
    resume_diagonal_attention,
    transnormer_rms_norm,
)

_WEIGHTS = {"t1": "relu", "t2": "softmax"}


class DiagAttention(nn.Module):
    """y = W_out diagonal_attention(q, k, v), with LRPE on q and k (arXiv 2210.10340, section 4.2).

    Attributes:
      num_heads: H; K = D / H.
      causal: whether no token attends to a later one.
      variant: "t1" (relu of the scores, then SimpleRMSNorm over the heads) or "t2" (softmax, no norm).
      block_size: tokens of a block, counted from the beginning of each document.
      count_padding: see `ops.diagonal_attention`.
    """

    num_heads: int
    causal: bool
    variant: str = "t2"
    block_size: int = 64
    count_padding: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")
    param_dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], positions: TokenPositions, state: DiagonalState | None = None
    ) -> tuple[Float[Array, "B N D"], DiagonalState | None]:
        """Returns the mixed tokens [B, N, D] and, if a state was given, the state after the last token.

        Raises:
          UserError: the variant is unknown, or count_padding is asked for with segment ids.
        """
        if self.variant not in _WEIGHTS:
            raise UserError(f"unknown variant {self.variant!r}: {did_you_mean(self.variant, _WEIGHTS)}")
        weights = _WEIGHTS[self.variant]
        q, k, v = project_heads("qkv", x, self.num_heads, self.dtype, self.param_dtype)
        with jax.named_scope("lrpe"):
            # Positions within the block keep the angles small, and so exact.
            offset, vector = lrpe_parameters(self, q.shape[-1])
            q, k = (reflect_and_rotate(x, offset, vector, positions.position % self.block_size) for x in (q, k))
        with jax.named_scope("diagonal_attention"):
            if state is None:
                out = diagonal_attention(
                    q,
                    k,
                    v,
                    block_size=self.block_size,
                    weights=weights,
                    causal=self.causal,
                    segment_ids=positions.segment_ids,
                    count_padding=self.count_padding,
                )
            else:
                out, state = resume_diagonal_attention(
                    q, k, v, state, positions.position, positions.segment_ids, weights=weights
                )
        out = out.reshape(x.shape)
        if self.variant == "t1":
            out = transnormer_rms_norm(out)
        return project_out(out, self.dtype, self.param_dtype), state

    @nn.nowrap
    def init_state(self, batch_size: int, max_length: int, model_dim: int) -> DiagonalState:
        """State of `batch_size` rows before token 0, in `dtype`; K = `model_dim` / H, `max_length` is not read."""
        del max_length
        shape = (batch_size, self.block_size, self.num_heads, model_dim // self.num_heads)
        keys = values = jnp.zeros(shape, self.dtype)
        return DiagonalState(keys, values, jnp.zeros(shape[:2], jnp.int32))
