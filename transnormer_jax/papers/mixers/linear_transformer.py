"""The Linear Transformer's attention, and the form of every attention that is a feature map and a denominator."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.layers.projection import project_heads, project_out
from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.models import MIXERS, TransNormerConfig
from transnormer_jax.ops import activation, normalized_linear_attention


class LinearTransformerAttention(nn.Module):
    """y = W_out (phi(q) (phi(k)^T v) / phi(q) sum(phi(k))), phi = 1 + elu (arXiv 2006.16236, eq. 7 and 9).

    Decoding is the paper's recurrent network: the state is S and z, the column after the last of S.
    A subclass with another phi overrides `features` and `num_features_of`.

    Attributes:
      num_heads: H.
      causal: whether no token attends to a later one.
      dtype: of the computation; parameters are `param_dtype`.
      param_dtype: of the parameters.
      backend: of `linear_attention`.
      query_dim: K of queries and keys, by default D / H, which values always have.
    """

    num_heads: int
    causal: bool
    dtype: jnp.dtype = jnp.dtype("float32")
    param_dtype: jnp.dtype = jnp.dtype("float32")
    backend: str = "auto"
    query_dim: int | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], positions: TokenPositions, state: Float[Array, "B H F V+1"] | None = None
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B H F V+1"] | None]:
        """Returns the mixed tokens [B, N, D] and, if a state was given, the state after the last token."""
        q, k = project_heads("qk", x, self.num_heads, self.dtype, self.param_dtype, head_dim=self.query_dim)
        (v,) = project_heads("v", x, self.num_heads, self.dtype, self.param_dtype)
        with jax.named_scope("features"):
            q, k = self.features(q, k, positions)
        with jax.named_scope("linear_attention"):
            out, new_state = normalized_linear_attention(
                q,
                k,
                v,
                initial_state=state,
                segment_ids=positions.segment_ids,
                causal=self.causal,
                backend=self.backend,
            )
        return project_out(out, self.dtype, self.param_dtype), None if state is None else new_state

    def features(
        self, q: Float[Array, "B N H K"], k: Float[Array, "B N H K"], positions: TokenPositions
    ) -> tuple[Float[Array, "B N H F"], Float[Array, "B N H F"]]:
        """phi(q) and phi(k), not negative.

        Args:
          q: [B, N, H, K] queries.
          k: [B, N, H, K] keys.
          positions: of the tokens, for a phi that depends on them.

        Returns:
          Both as [B, N, H, F], F = `num_features_of(K)`, in the dtype of `q`.
        """
        del positions
        phi = activation("1+elu")
        return phi(q), phi(k)

    @nn.nowrap
    def num_features_of(self, head_dim: int) -> int:
        """How many features phi makes of a head's K."""
        return head_dim

    @nn.nowrap
    def init_state(self, batch_size: int, max_length: int, model_dim: int) -> Float[Array, "B H F V+1"]:
        """State of `batch_size` rows before the first token, float32; V = `model_dim` / H, `max_length` is not read."""
        del max_length
        value_dim = model_dim // self.num_heads
        shape = (batch_size, self.num_heads, self.num_features_of(self.query_dim or value_dim), value_dim + 1)
        return jnp.zeros(shape, jnp.float32)


@MIXERS.register("linear")
def _linear(config: TransNormerConfig, layer: int, **fields: Any) -> nn.Module:
    del layer
    return LinearTransformerAttention(backend=config.backend, **fields)
