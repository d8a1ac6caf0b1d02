"""The arrays of a call of the operator, and what is static about it."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.linear_attention.segments import Segments

State = Float[Array, "B *S H K V"]
"""The state of each row and head, or of each document of a row, float32."""

LogDecay = Float[Array, " H"] | Float[Array, "B N H"]
"""float32, constant per head or one per token and head, in [`decay.FLOOR`, 0]; 0 at padding."""


class Problem(NamedTuple):
    """What is static about a call, by which backends accept or refuse it.

    Attributes:
      batch: B.
      num_tokens: N.
      num_heads: H, of v.
      key_dim: K.
      value_dim: V.
      dtype: of q, k and v.
      key_heads: heads of q and k; None is H.
      decay_per_token: whether log_decay is [B, N, H].
      max_segments: S if each document has its own state, else None.
      packed: whether there are segment ids.
    """

    batch: int
    num_tokens: int
    num_heads: int
    key_dim: int
    value_dim: int
    dtype: Any = jnp.float32
    key_heads: int | None = None
    decay_per_token: bool = False
    max_segments: int | None = None
    packed: bool = False

    @property
    def heads_per_key(self) -> int:
        """Heads of v that read one head of q and k."""
        return self.num_heads // (self.key_heads or self.num_heads)


class Operands(NamedTuple):
    """What every backend takes.

    q, k and v have one dtype and are 0 at padding. Value head h goes with query/key head h // (H / G). `segments` is
    None without documents and padding.
    """

    q: Float[Array, "B N G K"]
    k: Float[Array, "B N G K"]
    v: Float[Array, "B N H V"]
    log_decay: LogDecay
    state: State
    segments: Segments | None

    @property
    def problem(self) -> Problem:
        """What is static about them."""
        batch, num_tokens, num_heads, value_dim = self.v.shape
        max_segments = self.state.shape[1] if self.state.ndim == 5 else None
        sizes = (batch, num_tokens, num_heads, self.q.shape[3], value_dim, self.q.dtype, self.q.shape[2])
        return Problem(*sizes, self.log_decay.ndim == 3, max_segments, self.segments is not None)


class Gradients(NamedTuple):
    """What every backend returns: `steps` is the gradient of each token's log decay, or None where it is not wanted."""

    q: Float[Array, "B N G K"]
    k: Float[Array, "B N G K"]
    v: Float[Array, "B N H V"]
    steps: Float[Array, "B N H"] | None
    state: State
