"""Lightning attention, the token mixer of TransNormerLLM."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.layers.norm import make_norm
from transnormer_jax.layers.projection import Projection
from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.ops import activation, linear_attention, lrpe, lrpe_frequencies


class LightningAttention(nn.Module):
    """y = W_o (u * SimpleRMSNorm(o)), o = linear attention of act(q), act(k), v (arXiv 2307.14995, section 3.2).

    The norm spans the concatenated heads, and neither 1/sqrt(K) nor a denominator appears. For ablations, the gate u
    can be left out and the norm can be another.

    Attributes:
      head_dim: K = V, features per head.
      use_lrpe: encode the relative position in q and k, which doubles their width to 2K.
      activation: name of the activation of q and k.
      norm: a name of `make_norm`.
    """

    num_heads: int
    head_dim: int
    use_lrpe: bool
    activation: str
    use_bias: bool
    norm_eps: float
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    backend: str
    use_gate: bool = True
    norm: str = "simple_rms_norm"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        positions: TokenPositions,
        state: Float[Array, "B H K V"] | None = None,
        log_decay: Float[Array, " H"] | None = None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B H K V"] | None]:
        """Returns the mixed tokens [B, N, D] and, if a state was given, the state after the last one, float32."""
        dense = functools.partial(
            Projection,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

        def project(name: str) -> Float[Array, "B N H*K"]:
            return dense(self.num_heads * self.head_dim, ("embed", "heads"), name=name)(x)

        def heads(x: Float[Array, "B N H*K"]) -> Float[Array, "B N H K"]:
            return x.reshape(*x.shape[:2], self.num_heads, self.head_dim)

        # Tokens stay [B, N, H * K] from projection to projection, the form in which kernels read and write them. On a
        # TPU, a projection to [B, N, H, K], or one to all of q, k, v and u, costs transposed copies in HBM.
        with jax.named_scope("qkvu"):
            q, k, v = (project(name) for name in "qkv")
            u = project("u") if self.use_gate else None
            act = activation(self.activation)
            q, k, v = heads(act(q)), heads(act(k)), heads(v)
        if self.use_lrpe:
            with jax.named_scope("lrpe"):
                theta = self.param(
                    "theta", lambda _: jnp.asarray(lrpe_frequencies(self.num_heads, self.head_dim), self.param_dtype)
                )
                q, k = (lrpe(x, theta, positions.position) for x in (q, k))
        with jax.named_scope("linear_attention"):
            out, new_state = linear_attention(
                q, k, v, log_decay, initial_state=state, segment_ids=positions.segment_ids, backend=self.backend
            )
        with jax.named_scope("gate"):
            norm = make_norm(self.norm, self.norm_eps, self.dtype, self.param_dtype, name="out_norm")
            out = norm(out.reshape(*x.shape[:2], self.num_heads * self.head_dim))
            if u is not None:
                out = u * out
        out = dense(x.shape[-1], ("heads", "embed"), name="out")(out)
        return out, None if state is None else new_state

    @nn.nowrap
    def init_state(self, batch_size: int, max_length: int, model_dim: int) -> Float[Array, "B H K V"]:
        """State of `batch_size` rows before the first token, float32; `max_length` and `model_dim` are not read."""
        del max_length, model_dim
        key_dim = self.head_dim * (2 if self.use_lrpe else 1)
        return jnp.zeros((batch_size, self.num_heads, key_dim, self.head_dim), jnp.float32)
