"""The Linear Transformer's attention: linear attention divided by the sum of its weights."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.ops.linear_attention.api import linear_attention


def normalized_linear_attention(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, "..."] | None = None,
    *,
    initial_state: Float[Array, "B *S H K V+1"] | None = None,
    segment_ids: Int[Array, "B N"] | None = None,
    eps: float = 1e-6,
    **options: Any,
) -> tuple[Float[Array, "B N H V"], Float[Array, "B *S H K V+1"]]:
    """out_t = q_t S_t / (q_t z_t + eps), z_t = sum of the keys as S_t is the sum of k v^T.

    "Transformers are RNNs" (arXiv 2006.16236, eq. 9), for q and k that are feature maps already, such as 1 + elu(x).
    The denominator is one more value feature that is always 1, so the state is [B, H, K, V + 1]: [S_t, z_t].

    `q` and `k` are not negative; `v`, `log_decay`, `segment_ids` and `options` are as in `linear_attention`. Padding is
    in neither sum, and its output is 0. `initial_state` is float32, with the column of z_t last. `eps` is added to the
    denominator. The division is float32; float16 is float32 throughout, whose range the sums need.

    Returns:
      out in v's dtype, and the state, float32, of the shape of `initial_state`.
    """
    values = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    if v.dtype == jnp.float16:
        q, k, values = (x.astype(jnp.float32) for x in (q, k, values))
    both, state = linear_attention(
        q, k, values, log_decay, initial_state=initial_state, segment_ids=segment_ids, **options
    )
    both = both.astype(jnp.float32)
    return (both[..., :-1] / (both[..., -1:] + eps)).astype(v.dtype), state
