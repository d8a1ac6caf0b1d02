"""The Transformer's attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.layers.projection import project_heads, project_out
from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.ops import KeyValueCache, resume_softmax_attention, softmax_attention


class SoftmaxAttention(nn.Module):
    """y = W_out softmax(q k^T / sqrt(K)) v over H heads (arXiv 1706.03762, section 3.2).

    Attributes:
      causal: whether no token attends to a later one.
    """

    num_heads: int
    causal: bool
    dtype: jnp.dtype = jnp.dtype("float32")
    param_dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], positions: TokenPositions, state: KeyValueCache | None = None
    ) -> tuple[Float[Array, "B N D"], KeyValueCache | None]:
        """Returns the mixed tokens [B, N, D] and, if a cache was given, the cache with them."""
        q, k, v = project_heads("qkv", x, self.num_heads, self.dtype, self.param_dtype)
        with jax.named_scope("softmax_attention"):
            if state is None:
                out = softmax_attention(q, k, v, causal=self.causal, segment_ids=positions.segment_ids)
            else:
                out, state = resume_softmax_attention(q, k, v, state, positions.position, positions.segment_ids)
        return project_out(out, self.dtype, self.param_dtype), state

    @nn.nowrap
    def init_state(self, batch_size: int, max_length: int, model_dim: int) -> KeyValueCache:
        """A cache of `batch_size` rows for at most `max_length` tokens each, in `dtype`; K = `model_dim` / H."""
        shape = (batch_size, max_length, self.num_heads, model_dim // self.num_heads)
        return KeyValueCache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
