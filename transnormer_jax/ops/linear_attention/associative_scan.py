"""Linear attention by `jax.lax.associative_scan` over tokens: logarithmic depth, and a K x V state for every token.

The formulation to measure the others against: it reads and writes N K V numbers where a chunk needs N (K + V).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.weights import State, step_log_decay


def associative_scan(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, " H"],
    initial_state: State,
    segments: Segments | None,
    *,
    reverse: bool,
    chunk_size: int | None,
) -> tuple[Float[Array, "B N H V"], State]:
    """Every state S_t at once; see `primitive.py` for the contract of a backend."""
    del chunk_size
    q, k, v32 = (x.astype(jnp.float32) for x in (q, k, v))
    step, leaving = step_log_decay(log_decay, q.shape[1], segments, reverse=reverse)  # [B, N, H], [B, H]

    def combine(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        # Decays add as logarithms, exactly for equal steps; -inf (a new document) forgets all that came before.
        return earlier[0] + later[0], jnp.exp(later[0])[..., None, None] * earlier[1] + later[1]

    written = k[..., :, None] * v32[..., None, :]  # [B, N, H, K, V]
    step = jnp.broadcast_to(step, written.shape[:3])
    since_start, states = jax.lax.associative_scan(combine, (step, written), axis=1, reverse=reverse)
    states += jnp.exp(since_start)[..., None, None] * initial_state[:, None]
    out = jnp.einsum("bnhk,bnhkv->bnhv", q, states, precision=jax.lax.Precision.HIGHEST)
    final_state = states[:, 0 if reverse else -1]
    return out.astype(v.dtype), jnp.exp(leaving)[..., None, None] * final_state
