"""Gated linear attention, the token mixer of TransNormerLLM."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.distributed import constrain
from transnormer_jax.layers.norm import make_norm
from transnormer_jax.layers.projection import Projection
from transnormer_jax.ops import activation, linear_attention, lrpe, lrpe_frequencies


class GatedLinearAttention(nn.Module):
    """y = W_o (u * SimpleRMSNorm(o)), o = linear attention of act(q), act(k), v (arXiv 2307.14995, section 3.2).

    The norm spans the concatenated heads, and neither 1/sqrt(K) nor a denominator appears. For ablations, the gate u
    can be left out and the norm can be another.

    Attributes:
      num_heads: H.
      head_dim: K = V, features per head.
      use_lrpe: encode the relative position in q and k, which doubles their width to 2K.
      activation: name of the activation of q and k.
      use_bias: biases in all projections.
      norm_eps: eps of the norm.
      init_std: standard deviation of the projections at initialisation.
      dtype: of the computation; parameters are `param_dtype`.
      param_dtype: of the parameters.
      backend: of `linear_attention`.
      use_gate: whether u is there.
      norm: a name of `make_norm`.
    """

    num_heads: int
    head_dim: int
    use_lrpe: bool
    activation: str
    use_bias: bool
    norm_eps: float
    init_std: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    backend: str
    use_gate: bool = True
    norm: str = "simple_rms_norm"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        log_decay: Float[Array, " H"],
        position: Int[Array, "#B N"],
        segment_ids: Int[Array, "B N"] | None,
        state: Float[Array, "B H K V"] | None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B H K V"]]:
        """Returns the mixed tokens [B, N, D] and the state after the last, [B, H, K or 2K, V] float32."""
        dense = functools.partial(
            Projection,
            use_bias=self.use_bias,
            init_std=self.init_std,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

        def project(name: str) -> Float[Array, "B N H*K"]:
            layer = dense(self.num_heads * self.head_dim, ("embed", "heads"), name=name)
            return constrain(layer(x), "batch", "sequence", "heads")

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
                q, k = lrpe(q, theta, position), lrpe(k, theta, position)
        with jax.named_scope("linear_attention"):
            out, state = linear_attention(
                q, k, v, log_decay, initial_state=state, segment_ids=segment_ids, backend=self.backend
            )
        with jax.named_scope("gate"):
            norm = make_norm(self.norm, self.norm_eps, self.dtype, self.param_dtype, name="out_norm")
            out = norm(out.reshape(*x.shape[:2], self.num_heads * self.head_dim))
            if u is not None:
                out = u * out
        return dense(x.shape[-1], ("heads", "embed"), name="out")(out), state
