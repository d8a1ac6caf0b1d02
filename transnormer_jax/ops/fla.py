"""The names, arguments and defaults of flash-linear-attention (`fla.ops`), computed by this package's operators.

Shapes are those of its documentation: q, k, v [B, T, H, K or V], states [B, H, K, V]. With `cu_seqlens` [D + 1], the
borders of D documents packed into one row (B = 1), states are [D, H, K, V], one for each document. The scale is K^-0.5
unless given. Every function returns the output and the final state, which is None unless
`output_final_state=True`. Options after g are keywords; `head_first`, which fla has removed, does not exist, nor do
options about kernels or memory layouts.

Conventions as of fla-core 0.6.0, https://github.com/fla-org/flash-linear-attention.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transnormer_jax.errors import UserError
from transnormer_jax.ops.decay import paper_log_decay
from transnormer_jax.ops.linear_attention import (
    gated_linear_attention,
    linear_attention,
    normalized_linear_attention,
)

_Keys = Float[Array, "B T H K"]
_Values = Float[Array, "B T H V"]
_State = Float[Array, "D H K V"]
_Borders = Int[Array | np.ndarray, " borders"]


def chunk_simple_gla(
    q: _Keys,
    k: _Keys,
    v: _Values,
    g: Float[Array, "B T H"] | None = None,
    g_gamma: Float[Array | np.ndarray, " H"] | None = None,
    *,
    scale: float | None = None,
    initial_state: _State | None = None,
    output_final_state: bool = False,
    cu_seqlens: _Borders | None = None,
) -> tuple[_Values, _State | None]:
    """Scalar decay: S_t = exp(g_t) S_{t-1} + k_t v_t^T, o_t = scale q_t S_t.

    Args:
      q: [B, T, H, K].
      k: [B, T, H, K].
      v: [B, T, H, V].
      g: [B, T, H] log decay of each token and head, <= 0.
      g_gamma: [H] constant log decay of each head, instead of g.
      scale: factor on the output; None is K^-0.5.
      initial_state: [B, H, K, V], or [D, H, K, V] with `cu_seqlens`, float32.
      output_final_state: whether to return the state.
      cu_seqlens: [D + 1], the borders of packed documents, from 0 to T.

    Returns:
      o [B, T, H, V], and the final state or None.

    Raises:
      UserError: both decays are given, or `cu_seqlens` with several rows.
    """
    if g is not None and g_gamma is not None:
        raise UserError("g and g_gamma are both given: give g for a decay per token, or g_gamma for one per head.")
    log_decay = g_gamma if g is None else g
    return _run(linear_attention, q, k, v, log_decay, scale, initial_state, output_final_state, cu_seqlens)


# The numbers are the same; linear_attention itself has a form for short rows.
fused_recurrent_simple_gla = chunk_simple_gla


def chunk_gla(
    q: _Keys,
    k: _Keys,
    v: _Values,
    g: _Keys,
    *,
    scale: float | None = None,
    initial_state: _State | None = None,
    output_final_state: bool = False,
    cu_seqlens: _Borders | None = None,
) -> tuple[_Values, _State | None]:
    """A decay per key channel: as `chunk_simple_gla`, with g [B, T, H, K]."""
    return _run(gated_linear_attention, q, k, v, g, scale, initial_state, output_final_state, cu_seqlens)


def chunk_lightning_attn(
    q: _Keys, k: _Keys, v: _Values, layer_idx: int, num_layers: int, **options: Any
) -> tuple[_Values, _State | None]:
    """A constant decay of -(8 / H) (1 - layer_idx / num_layers) h for head h = 0 ... H - 1; else `chunk_simple_gla`.

    This decay is linear in h, as in the paper (`ops.paper_log_decay`). The released TransNormerLLM and MiniMax
    checkpoints have another, geometric in h: their weights need `ops.released_log_decay` and `linear_attention`.
    """
    return chunk_simple_gla(q, k, v, g_gamma=paper_log_decay(q.shape[2], num_layers)[layer_idx], **options)


def chunk_retention(q: _Keys, k: _Keys, v: _Values, **options: Any) -> tuple[_Values, _State | None]:
    """RetNet's decay (arXiv 2307.08621), log(1 - 2^(-5 - h)) for head h = 0 ... H - 1; else `chunk_simple_gla`."""
    g_gamma = np.log1p(-(2.0 ** (-5 - np.arange(q.shape[2])))).astype(np.float32)
    return chunk_simple_gla(q, k, v, g_gamma=g_gamma, **options)


def chunk_linear_attn(
    q: _Keys,
    k: _Keys,
    v: _Values,
    *,
    scale: float | None = None,
    initial_state: _State | tuple[_State, Float[Array, "D 1 H K"]] | None = None,
    output_final_state: bool = False,
    normalize: bool = True,
    cu_seqlens: _Borders | None = None,
) -> tuple[_Values, _State | tuple[_State, Float[Array, "D 1 H K"]] | None]:
    """No decay. With `normalize`, outputs are divided by q_t . z_t + 1e-10, z_t the sum of scaled keys up to t.

    The state is then a pair: that of `chunk_simple_gla`, and the sum of keys [B or D, 1, H, K].
    """
    attend: Callable[..., Any] = linear_attention
    if normalize:
        attend = functools.partial(normalized_linear_attention, eps=1e-10)
    if isinstance(initial_state, tuple):
        state, z = initial_state
        initial_state = jnp.concatenate([state, z[:, 0, ..., None]], axis=-1)
    out, final = _run(attend, q, k, v, None, scale, initial_state, output_final_state, cu_seqlens)
    if final is None or not normalize:
        return out, final
    return out, (final[..., :-1], final[:, None, ..., -1])


def _run(
    attend: Callable[..., tuple[Array, Array]],
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | np.ndarray | None,
    scale: float | None,
    initial_state: Array | None,
    output_final_state: bool,
    cu_seqlens: Array | np.ndarray | None,
) -> tuple[Array, Array | None]:
    """Calls `attend` with documents as segments."""
    attend = functools.partial(attend, q, k, v, log_decay, scale=k.shape[-1] ** -0.5 if scale is None else scale)
    if cu_seqlens is None:
        out, state = attend(initial_state=initial_state)
        return out, state if output_final_state else None
    if q.shape[0] != 1:
        raise UserError(f"cu_seqlens with {q.shape[0]} rows: pack all documents into one row, with B = 1.")
    cu_seqlens = jnp.asarray(cu_seqlens)
    segment_ids = jnp.searchsorted(cu_seqlens, jnp.arange(q.shape[1]), side="right")[None]
    if initial_state is None and not output_final_state:
        return attend(segment_ids=segment_ids)[0], None
    # Segments are counted where they occur, so states of documents without tokens go to the end.
    order = jnp.argsort(jnp.diff(cu_seqlens) == 0)
    if initial_state is not None:
        initial_state = initial_state[order][None]
    out, state = attend(initial_state=initial_state, segment_ids=segment_ids, max_segments=len(order))
    return out, jnp.zeros_like(state[0]).at[order].set(state[0]) if output_final_state else None
