"""Linformer attention and the projection of the sequence that it rests on."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.layers.projection import project_heads, project_out
from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.models import MIXERS, ModelConfig
from transnormer_jax.papers.config import baseline_options
from transnormer_jax.papers.ops import (
    convolve_length,
    linformer_attention,
    linformer_linear_attention,
    pool_length,
    project_length,
)
from transnormer_jax.papers.ops.linformer_attention import check_length

KINDS = ("learned", "convolution", "mean", "max")
"""How the length may be projected."""
SHARINGS = ("none", "headwise", "key_value")
"""Which projections of a layer may be one."""
_ATTENTIONS = {"softmax": linformer_attention, "linear": linformer_linear_attention}


class LengthProjection(nn.Module):
    """Projects keys or values along the sequence, N tokens to R rows (arXiv 2006.04768, sections 3 and 4).

    One instance may serve the keys and the values of many layers; it is then one set of parameters.

    Attributes:
      projected_length: R for max_length tokens, the paper's k. Windows are ceil(M / R) tokens long, and there may be
        fewer than R of them: 3 for M = 9 and R = 4.
      max_length: M, tokens of the longest row. Shorter rows use the first N columns, or have fewer windows.
      kind: "learned" (a matrix, xavier uniform), "convolution" (kernel and stride ceil(M / R), over the features of a
        head), "mean" or "max" of windows of ceil(M / R) tokens.
      num_heads: H for one projection per head, None for one that all heads share. No effect on pooling.
      use_bias: add a learned number to all features of each of the R rows; for "learned" only.
      param_dtype: of the parameters.
    """

    projected_length: int
    max_length: int
    kind: str = "learned"
    num_heads: int | None = None
    use_bias: bool = False
    param_dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N H K"], segment_ids: Int[Array, "B N"] | None
    ) -> tuple[Float[Array, "B R H K"], Bool[Array, "B R"] | None]:
        """Returns the rows in x's dtype, and which of them saw a real token (None: all count).

        Raises:
          UserError: the kind is unknown, or N > max_length.
        """
        if self.kind not in KINDS:
            raise UserError(f"unknown Linformer projection {self.kind!r}: {did_you_mean(self.kind, KINDS)}")
        check_length(x, self.max_length)
        heads = () if self.num_heads is None else (self.num_heads,)
        window = -(-self.max_length // self.projected_length)
        if self.kind in ("mean", "max"):
            return pool_length(x, window, self.kind, segment_ids)
        if self.kind == "convolution":
            init = nn.initializers.lecun_normal(in_axis=(-3, -2), out_axis=-1, batch_axis=_batch_axis(heads))
            kernel = self.param("kernel", init, (*heads, window, x.shape[-1], x.shape[-1]), self.param_dtype)
            return convolve_length(x, kernel, segment_ids)
        init = nn.initializers.xavier_uniform(in_axis=-1, out_axis=-2, batch_axis=_batch_axis(heads))
        kernel = self.param("kernel", init, (*heads, self.projected_length, self.max_length), self.param_dtype)
        rows = project_length(x, kernel, segment_ids)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (*heads, self.projected_length), self.param_dtype)
            bias = bias[:, None] if self.num_heads is None else bias.T
            rows += bias[None, ..., None].astype(rows.dtype)
        return rows, None


class LinformerAttention(nn.Module):
    """out(softmax(q (E k)^T / sqrt(K)) (F v)) over H heads, not causal (arXiv 2006.04768, eq. 7).

    A row of the batch is one document, with padding on either side; packed rows cannot be served. A layer of another
    `projected_length` is the paper's non-uniform projected dimension.

    Attributes:
      num_heads: H.
      causal: must be False.
      projected_length: R, the paper's k.
      max_length: tokens of the longest row.
      projection: kind of the `LengthProjection`.
      sharing: "none" (E and F for each head), "headwise" (E and F, for all heads), "key_value" (E = F for all heads).
      attention: "softmax", or "linear" for linear attention on the projected rows.
      length_projection: one that other layers use too (layerwise sharing); E and F are this, and `sharing` is not read.
      head_dim: K, by default D / H.
      one_kv_head: whether all heads share one head of keys and values.
      keys_are_values: whether the projected keys are the values too, with one projection of each kind.
      use_bias: whether E and F have biases (learned projections only).
      dtype: of the computation; parameters are `param_dtype`.
      param_dtype: of the parameters.
    """

    num_heads: int
    causal: bool
    projected_length: int
    max_length: int
    projection: str = "learned"
    sharing: str = "none"
    attention: str = "softmax"
    length_projection: nn.Module | None = None
    head_dim: int | None = None
    one_kv_head: bool = False
    keys_are_values: bool = False
    use_bias: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")
    param_dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        positions: TokenPositions,
        state: None = None,
        *,
        context: Float[Array, "B M E"] | None = None,
        context_segment_ids: Int[Array, "B M"] | None = None,
    ) -> tuple[Float[Array, "B N D"], None]:
        """Returns the mixed tokens [B, N, D], and None for a state.

        With a `context` (cross attention), its tokens are the keys and values; segment id 0 is padding.

        Raises:
          UserError: causal=True, a state is given, a name is unknown, or N > max_length.
        """
        if self.causal or state is not None:
            raise UserError(
                "Linformer has no causal form, since every row of the projected keys mixes all positions, later ones "
                "included: set causal=False, or choose another attention."
            )
        if self.attention not in _ATTENTIONS:
            raise UserError(
                f"unknown Linformer attention {self.attention!r}: {did_you_mean(self.attention, _ATTENTIONS)}"
            )

        source, segment_ids = (x, positions.segment_ids) if context is None else (context, context_segment_ids)
        head_dim = self.head_dim or x.shape[-1] // self.num_heads
        kv_heads = 1 if self.one_kv_head else self.num_heads
        project = functools.partial(project_heads, dtype=self.dtype, param_dtype=self.param_dtype, head_dim=head_dim)
        (q,) = project("q", x, self.num_heads)
        k, *values = project("k" if self.keys_are_values else "kv", source, kv_heads)
        with jax.named_scope("project_length"):
            project_k, project_v = self._length_projections(kv_heads)
            k, seen = project_k(k, segment_ids)
            v = k if self.keys_are_values else project_v(*values, segment_ids)[0]
            k, v = (jnp.broadcast_to(y, (*y.shape[:2], self.num_heads, head_dim)) for y in (k, v))
        with jax.named_scope("linformer_attention"):
            out = _ATTENTIONS[self.attention](q, k, v, seen)
        return project_out(out, self.dtype, self.param_dtype, x.shape[-1]), None

    def _length_projections(self, kv_heads: int) -> tuple[Any, Any]:
        """E and F, as shared as they are to be."""
        if self.length_projection is not None:
            return self.length_projection, self.length_projection
        if self.sharing not in SHARINGS:
            raise UserError(f"unknown Linformer sharing {self.sharing!r}: {did_you_mean(self.sharing, SHARINGS)}")
        options: dict[str, Any] = {
            "projected_length": self.projected_length,
            "max_length": self.max_length,
            "kind": self.projection,
            "num_heads": kv_heads if self.sharing == "none" else None,
            "use_bias": self.use_bias,
            "param_dtype": self.param_dtype,
        }
        if self.sharing == "key_value":
            both = LengthProjection(**options, name="project_kv")
            return both, both
        return LengthProjection(**options, name="project_k"), LengthProjection(**options, name="project_v")


def _batch_axis(heads: tuple[int, ...]) -> tuple[int, ...]:
    """Heads have matrices of their own, which count neither as inputs nor as outputs of an initialiser."""
    return (0,) if heads else ()


@dataclasses.dataclass(frozen=True)
class _Linformer:
    """The mixer: attention on the projected rows, with one projection for all layers if the configuration says so."""

    attention: str

    def __call__(self, config: ModelConfig, layer: int, *, shared: nn.Module | None, **fields: Any) -> nn.Module:
        options = baseline_options(config)
        return LinformerAttention(
            attention=self.attention,
            projected_length=options.linformer_dims[layer],
            max_length=options.max_length,
            projection=options.linformer_projection,
            sharing=options.linformer_sharing,
            length_projection=shared,
            **fields,
        )

    def make_shared(self, config: ModelConfig, **module: Any) -> nn.Module | None:
        options = baseline_options(config)
        if options.linformer_sharing != "layerwise":
            return None
        return LengthProjection(
            projected_length=options.linformer_dims[0],
            max_length=options.max_length,
            kind=options.linformer_projection,
            param_dtype=jnp.dtype(options.param_dtype),
            **module,
        )


MIXERS["linformer"] = _Linformer("softmax")
MIXERS["linformer_linear"] = _Linformer("linear")
