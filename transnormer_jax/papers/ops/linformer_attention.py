"""Linformer: keys and values projected along the sequence to a fixed number of rows, R (arXiv 2006.04768).

Every projected row mixes all positions of a row of the batch. So there is no causal form, and a row of the batch is one
document with padding on either side: packed rows of several documents cannot be served, and no mask could make it so.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transnormer_jax.errors import UserError
from transnormer_jax.ops.precision import wide_type


def project_length(
    x: Float[Array, "B N H K"],
    projection: Float[Array, "R M"] | Float[Array, "H R M"],
    segment_ids: Int[Array, "B N"] | None = None,
) -> Float[Array, "B R H K"]:
    """E x along the sequence: the linear projection of keys or values (arXiv 2006.04768, eq. 7).

    Args:
      x: [B, N, H, K] keys or values.
      projection: E, [R, M], or [H, R, M] with one for each head; M is the trained length. If N < M, the first N
        columns are used.
      segment_ids: [B, N] int32; 0 is padding, which is projected as zero whatever it holds.

    Returns:
      [B, R, H, K] in x's dtype, summed in float32.

    Raises:
      UserError: N > M.
    """
    length = x.shape[1]
    check_length(x, projection.shape[-1])
    equation = "rn,bnhk->brhk" if projection.ndim == 2 else "hrn,bnhk->brhk"
    columns = projection[..., :length].astype(x.dtype)
    return jnp.einsum(equation, columns, _without_padding(x, segment_ids), preferred_element_type=wide_type(x)).astype(
        x.dtype
    )


def check_length(x: Float[Array, "B N H K"], max_length: int) -> None:
    """Raises UserError where x [B, N, H, K], of any float dtype, has more tokens than a projection was made for."""
    if x.shape[1] > max_length:
        raise UserError(
            f"{x.shape[1]} tokens, but the Linformer was built for max_length={max_length}: "
            "cut the rows, or train with a larger max_length."
        )


def convolve_length(
    x: Float[Array, "B N H K"],
    kernel: Float[Array, "W K V"] | Float[Array, "H W K V"],
    segment_ids: Int[Array, "B N"] | None = None,
) -> tuple[Float[Array, "B R H V"], Bool[Array, "B R"] | None]:
    """A convolution whose stride is the width of its kernel, W (arXiv 2006.04768, section 4, "general projections").

    Args:
      x: [B, N, H, K] keys or values.
      kernel: [W, K, V], or [H, W, K, V] with one for each head.
      segment_ids: [B, N] int32; 0 is padding, which counts as zero.

    Returns:
      [B, R, H, V] in x's dtype with R = ceil(N / W), and which of these rows saw a real token, [B, R] (None: all).
    """
    windows, seen = _windows(_without_padding(x, segment_ids), kernel.shape[-3], segment_ids)
    equation = "brwhk,wkv->brhv" if kernel.ndim == 3 else "brwhk,hwkv->brhv"
    out = jnp.einsum(equation, windows, kernel.astype(x.dtype), preferred_element_type=wide_type(x))
    return out.astype(x.dtype), None if segment_ids is None else seen.any(axis=2)


def pool_length(
    x: Float[Array, "B N H K"], window: int, kind: str, segment_ids: Int[Array, "B N"] | None = None
) -> tuple[Float[Array, "B R H K"], Bool[Array, "B R"] | None]:
    """The mean or maximum of each window of tokens (arXiv 2006.04768, section 4, "general projections").

    Args:
      x: [B, N, H, K] keys or values.
      window: tokens per window, W; the last window may hold fewer.
      kind: "mean" or "max", over the real tokens of a window.
      segment_ids: [B, N] int32; 0 is padding.

    Returns:
      [B, R, H, K] in x's dtype with R = ceil(N / W), and which of these rows saw a real token, [B, R] (None: all).
    """
    windows, real = _windows(_without_padding(x, segment_ids), window, segment_ids)
    seen = real.any(axis=2)
    if kind == "mean":
        count = jnp.maximum(real.sum(axis=2), 1)[..., None, None]
        pooled = windows.sum(axis=2, dtype=wide_type(x)) / count.astype(wide_type(x))
    else:
        lowest = jnp.finfo(x.dtype).min
        pooled = jnp.where(real[..., None, None], windows, lowest).max(axis=2)
        pooled = jnp.where(seen[..., None, None], pooled, 0)
    return pooled.astype(x.dtype), None if segment_ids is None else seen


def linformer_attention(
    q: Float[Array, "B N H K"],
    k_projected: Float[Array, "B R H K"],
    v_projected: Float[Array, "B R H V"],
    seen: Bool[Array, "B R"] | None = None,
) -> Float[Array, "B N H V"]:
    """softmax(q k~^T / sqrt(K)) v~, with a softmax over the R projected rows (arXiv 2006.04768, eq. 7).

    Args:
      q: [B, N, H, K] queries.
      k_projected: [B, R, H, K], k~ = E k.
      v_projected: [B, R, H, V], v~ = F v.
      seen: [B, R], the projected rows that take part. None: all.

    Returns:
      [B, N, H, V] in q's dtype; the softmax is float32. Time and memory are O(N R).
    """
    scores = jnp.einsum("bnhk,brhk->bhnr", q, k_projected, preferred_element_type=wide_type(q))
    scores /= math.sqrt(q.shape[-1])
    if seen is not None:
        scores = jnp.where(seen[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores).astype(v_projected.dtype)
    out = jnp.einsum("bhnr,brhv->bnhv", weights, v_projected, preferred_element_type=wide_type(q))
    return out.astype(q.dtype)


def linformer_linear_attention(
    q: Float[Array, "B N H K"],
    k_projected: Float[Array, "B R H K"],
    v_projected: Float[Array, "B R H V"],
    seen: Bool[Array, "B R"] | None = None,
    *,
    eps: float = 1e-6,
) -> Float[Array, "B N H V"]:
    """Linear attention on the projected rows: phi(q) phi(k~)^T v~ / (phi(q) sum phi(k~) + eps), phi = elu + 1.

    The features are taken after the projection: E has entries of both signs, so E phi(k) could make the denominator
    zero or negative, while phi(E k) keeps it positive. Without that nonlinearity the projections would also collapse to
    phi(K)^T (E^T F) V, which is linear attention with a fixed mixing of positions put in between.

    It combines the Linformer (arXiv 2006.04768) and the Linear Transformer (arXiv 2006.16236) so that one can see what
    that brings: not speed, since linear attention costs O(N) anyhow.

    Args:
      q: [B, N, H, K] queries, before the features.
      k_projected: [B, R, H, K], k~ = E k.
      v_projected: [B, R, H, V], v~ = F v.
      seen: [B, R], the projected rows that take part. None: all.
      eps: added to the denominator.

    Returns:
      [B, N, H, V] in q's dtype; features, sums and the division are float32.
    """
    wide = wide_type(q)
    q_features, k_features = (jax.nn.elu(x.astype(wide)) + 1 for x in (q, k_projected))
    if seen is not None:
        k_features = jnp.where(seen[..., None, None], k_features, 0)
    state = jnp.einsum("brhk,brhv->bhkv", k_features, v_projected.astype(wide))
    numerator = jnp.einsum("bnhk,bhkv->bnhv", q_features, state)
    denominator = jnp.einsum("bnhk,bhk->bnh", q_features, k_features.sum(axis=1))
    return (numerator / (denominator[..., None] + eps)).astype(q.dtype)


def _without_padding(x: Array, segment_ids: Array | None) -> Array:
    return x if segment_ids is None else jnp.where((segment_ids != 0)[..., None, None], x, 0)


def _windows(x: Array, window: int, segment_ids: Array | None) -> tuple[Array, Array]:
    """Cuts [B, N, H, K] into [B, R, W, H, K], filled up with zeros; and which of these tokens are real, [B, R, W]."""
    batch, length = x.shape[:2]
    rows = -(-length // window)
    real = jnp.ones((batch, length), bool) if segment_ids is None else segment_ids != 0
    missing = rows * window - length
    x = jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))
    real = jnp.pad(real, ((0, 0), (0, missing)))
    return x.reshape(batch, rows, window, *x.shape[2:]), real.reshape(batch, rows, window)
