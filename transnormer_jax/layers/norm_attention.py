"""NormAttention, the linear attention of TransNormer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.layers.lrpe import lrpe_parameters, reflect_and_rotate
from transnormer_jax.layers.projection import project_heads, project_out
from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.ops import (
    activation,
    linear_attention,
    transnormer_rms_norm,
)

_ACTIVATIONS = {"t1": "elu", "t2": "1+elu"}


class NormAttention(nn.Module):
    """y = W_out SimpleRMSNorm(phi(q) (phi(k)^T v)), with LRPE on phi(q) and phi(k) (arXiv 2210.10340, section 4.1).

    The norm over the concatenated heads takes the place of the denominator, and neither 1/sqrt(K) nor a decay appears.

    Attributes:
      num_heads: H; K = D / H.
      causal: whether no token attends to a later one.
      variant: "t1" (phi = elu) or "t2" (phi = 1 + elu).
    """

    num_heads: int
    causal: bool
    variant: str = "t2"
    dtype: jnp.dtype = jnp.dtype("float32")
    param_dtype: jnp.dtype = jnp.dtype("float32")
    backend: str = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], positions: TokenPositions, state: Float[Array, "B H K K"] | None = None
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B H K K"] | None]:
        """Returns the mixed tokens [B, N, D] and, if a state was given, the state after the last token.

        Raises:
          UserError: the variant is unknown.
        """
        if self.variant not in _ACTIVATIONS:
            raise UserError(f"unknown variant {self.variant!r}: {did_you_mean(self.variant, _ACTIVATIONS)}")
        # Xavier with gain 1 / sqrt(2), as the authors have it here and nowhere else.
        narrow = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
        q, k, v = project_heads("qkv", x, self.num_heads, self.dtype, self.param_dtype, narrow)
        with jax.named_scope("features"):
            phi = activation(_ACTIVATIONS[self.variant])
            q, k = phi(q), phi(k)
        with jax.named_scope("lrpe"):
            offset, vector = lrpe_parameters(self, q.shape[-1])
            q, k = (reflect_and_rotate(x, offset, vector, positions.position) for x in (q, k))
        with jax.named_scope("linear_attention"):
            out, new_state = linear_attention(
                q,
                k,
                v,
                initial_state=state,
                segment_ids=positions.segment_ids,
                causal=self.causal,
                backend=self.backend,
            )
        out = transnormer_rms_norm(out.reshape(x.shape))
        out = project_out(out, self.dtype, self.param_dtype)
        return out, None if state is None else new_state

    @nn.nowrap
    def init_state(self, batch_size: int, max_length: int, model_dim: int) -> Float[Array, "B H K K"]:
        """State of `batch_size` rows before the first token, float32; K = `model_dim` / H, `max_length` is not read."""
        del max_length
        head_dim = model_dim // self.num_heads
        return jnp.zeros((batch_size, self.num_heads, head_dim, head_dim), jnp.float32)
