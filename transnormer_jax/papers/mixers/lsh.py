"""LSH attention, the token mixer of the Reformer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.errors import UserError
from transnormer_jax.layers.projection import project_heads, project_out
from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.models import MIXERS, ModelConfig
from transnormer_jax.papers.config import baseline_options
from transnormer_jax.papers.ops import bucket_factors, lsh_attention


class LSHAttention(nn.Module):
    """out(attention among tokens of like hash), H heads, one projection for queries and keys (arXiv 2001.04451).

    The random rotations come from the stream "hash" if `apply` is given one, as in training, and otherwise from a fixed
    key, so that evaluation is deterministic.

    Attributes:
      num_heads: H.
      causal: a token sees only tokens before it, or itself if it meets none. Later tokens still move the borders of
        chunks; see `lsh_attention`.
      chunk_size: sorted tokens that attend to each other and to the chunk before.
      num_rounds: of hashing.
      num_buckets: per round, even; 0 is two per chunk. Above 128 they are hashed as two factors.
      dtype: of the computation; parameters are `param_dtype`.
      param_dtype: of the parameters.
    """

    num_heads: int
    causal: bool
    chunk_size: int
    num_rounds: int
    num_buckets: int = 0
    dtype: jnp.dtype = jnp.dtype("float32")
    param_dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], positions: TokenPositions, state: None = None
    ) -> tuple[Float[Array, "B N D"], None]:
        """Returns the mixed tokens [B, N, D], and None for a state.

        Raises:
          UserError: a state is given, or a count is out of range.
        """
        if state is not None:
            raise UserError(
                "LSH attention has no state, since each new token may change the order of all others: "
                "generate by running the whole row again, or choose another attention."
            )
        if self.chunk_size < 1 or self.num_rounds < 1:
            raise UserError(
                f"chunk_size is {self.chunk_size} and num_rounds {self.num_rounds}: give both as 1 or more."
            )

        qk, v = project_heads(("qk", "v"), x, self.num_heads, self.dtype, self.param_dtype)
        factors = bucket_factors(self.num_buckets or 2 * -(-x.shape[1] // self.chunk_size))
        key = self.make_rng("hash") if self.has_rng("hash") else jax.random.key(0)
        rotations = jax.random.normal(key, (self.num_heads, qk.shape[-1], self.num_rounds, sum(factors) // 2))
        with jax.named_scope("lsh_attention"):
            out = lsh_attention(
                qk,
                v,
                rotations,
                chunk_size=self.chunk_size,
                causal=self.causal,
                factors=factors,
                segment_ids=positions.segment_ids,
            )
        return project_out(out, self.dtype, self.param_dtype), None


@MIXERS.register("lsh")
def _lsh(config: ModelConfig, layer: int, **fields: Any) -> nn.Module:
    del layer
    options = baseline_options(config)
    return LSHAttention(
        chunk_size=options.lsh_chunk, num_rounds=options.lsh_rounds, num_buckets=options.lsh_buckets, **fields
    )
