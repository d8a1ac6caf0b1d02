"""The N x N matrices of a model's attentions, read while its task runs, without a change to the model.

No linear attention ever makes its matrix. It follows from the queries and keys, which are caught on their way, and
`mix` is the definition that the matrix must satisfy: what the output projection reads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Bool, Float, Int

from transnormer_jax.errors import UserError
from transnormer_jax.layers import TokenPositions
from transnormer_jax.layers.lrpe import reflect_and_rotate
from transnormer_jax.models import TransNormerConfig
from transnormer_jax.ops import (
    activation,
    token_positions,
    transnormer_rms_norm,
)
from transnormer_jax.papers.ops import cosformer_features, favor_features

# Those whose output is a matrix times the values, be it normalised afterwards.
MAPPED = ("softmax", "linear", "performer", "cosformer", "norm_t1", "norm_t2", "diag_t1", "diag_t2")
_NORMALISED = ("norm_t1", "norm_t2", "diag_t1")


class Caught(NamedTuple):
    """What passed through the attention of one layer.

    Attributes:
      q: [B, N, D], the projected queries, heads side by side.
      k: [B, N, D].
      v: [B, N, D].
      mixed: [B, N, D], what the output projection reads.
    """

    q: Float[Array, "B N D"]
    k: Float[Array, "B N D"]
    v: Float[Array, "B N D"]
    mixed: Float[Array, "B N D"]


def catch[T](
    function: Callable[[], T], nudges: Float[Array, "L B N D"] | None = None
) -> tuple[T, dict[int, dict[str, Array]]]:
    """Runs `function`, which applies a model, and returns its result and what passed through the attentions.

    Args:
      function: of no arguments.
      nudges: added to what the output projections read: the gradient with respect to them, at 0, is that of `mixed`.

    Returns:
      The result, and for each layer the fields of `Caught` by name; of a model that reads two sequences, the first.
    """
    caught: dict[int, dict[str, Array]] = {}

    def interceptor(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        path = context.module.path
        if context.method_name != "__call__" or path[-2:-1] != ("attention",) or path[-1] not in ("q", "k", "v", "out"):
            return call(*args, **kwargs)
        layer = next(int(name.removeprefix("layers_")) for name in path if name.startswith("layers_"))
        passed = caught.setdefault(layer, {})
        if path[-1] != "out":
            result = call(*args, **kwargs)
            passed.setdefault(path[-1], result)
            return result
        (mixed,) = args
        if nudges is not None:
            mixed = mixed + nudges[layer].astype(mixed.dtype)
        passed.setdefault("mixed", mixed)
        return call(mixed)

    with nn.intercept_methods(interceptor):
        return function(), caught


def check_mapped(config: Any) -> TransNormerConfig:
    """Returns the config; raises a `UserError` if an attention of the model has no N x N matrix, or there is none."""
    if not isinstance(config, TransNormerConfig) or config.custom_layers(parent=None):
        raise UserError(
            "attention matrices are read from a TransNormer or a baseline with reversible=False: take such a run."
        )
    for word in config.attentions:
        if word not in MAPPED:
            raise UserError(f"attention {word!r} has no N x N matrix here: take a run with {', '.join(MAPPED)}.")
    return config


def scores(
    config: TransNormerConfig, layer: int, params: Any, caught: Caught, where: TokenPositions
) -> Float[Array, "B H N N"]:
    """s_ij of the paper's appendix (arXiv 2210.10340): q_i . k_j / sqrt(K), or phi(q_i) . phi(k_j); float32.

    LRPE belongs to phi. Performer's queries are scaled row by row (`ops.favor_features`), which the weights do not see.
    """
    word, own = config.attentions[layer], _own_params(params, layer)
    shape = (*caught.q.shape[:2], config.num_heads, -1)
    q, k = (x.astype(jnp.float32).reshape(shape) for x in (caught.q, caught.k))
    if word in ("softmax", "diag_t1", "diag_t2"):
        q = q * q.shape[-1] ** -0.5
    elif word == "performer":
        q, k = (favor_features(x, own["directions"], is_query=x is q) for x in (q, k))
    elif word == "cosformer":
        q, k = (cosformer_features(x, where.position, config.max_length) for x in (q, k))
    else:
        phi = activation("elu" if word == "norm_t1" else "1+elu")
        q, k = phi(q), phi(k)
    if "householder" in own:
        place = where.position % config.block_size if word.startswith("diag") else where.position
        q, k = (reflect_and_rotate(x, own["theta_offset"], own["householder"], place) for x in (q, k))
    return jnp.einsum("bnhk,bmhk->bhnm", q, k)


def visible(config: TransNormerConfig, layer: int, segment_ids: Int[Array, "B N"]) -> Bool[Array, "B 1 N N"]:
    """Which tokens j a token i may see."""
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids != 0)[:, None]
    if config.causal:
        same &= jnp.tri(segment_ids.shape[1], dtype=bool)[None]
    if config.attentions[layer].startswith("diag"):
        block = positions(segment_ids).position // config.block_size
        same &= block[:, :, None] == block[:, None, :]
    return same[:, None]


def positions(segment_ids: Int[Array, "B N"]) -> TokenPositions:
    """The positions that a model gives its tokens."""
    return TokenPositions(token_positions(segment_ids, jnp.zeros(segment_ids.shape[0], jnp.int32)), segment_ids)


def matrix(word: str, s: Float[Array, "B H N N"], seen: Bool[Array, "B 1 N N"]) -> Float[Array, "B H N N"]:
    """The factor of each value: softmax(s), s / sum(s), relu(s) (diag_t1), or s itself (norm_t1, norm_t2)."""
    if word in ("softmax", "diag_t2"):
        s = jax.nn.softmax(jnp.where(seen, s, jnp.finfo(s.dtype).min), axis=-1)
    s = jnp.where(seen, jax.nn.relu(s) if word == "diag_t1" else s, 0)
    if word in ("linear", "performer", "cosformer"):
        s = s / (jnp.sum(s, axis=-1, keepdims=True) + 1e-6)
    return s


def mix(
    word: str, s: Float[Array, "B H N N"], seen: Bool[Array, "B 1 N N"], v: Float[Array, "B N D"]
) -> Float[Array, "B N D"]:
    """What the output projection reads: the matrix times the values, normalised where the attention does so."""
    values = v.astype(jnp.float32).reshape(*v.shape[:2], s.shape[1], -1)
    mixed = jnp.einsum("bhnm,bmhk->bnhk", matrix(word, s, seen), values).reshape(v.shape)
    return transnormer_rms_norm(mixed) if word in _NORMALISED else mixed


def distribution(word: str, s: Float[Array, "B H N N"], seen: Bool[Array, "B 1 N N"]) -> Float[Array, "B H N N"]:
    """p_ij, rows of sum 1: the matrix, or its absolute values over their sum where it is not normalised.

    A row of zeros (relu of scores that are all negative) stays one.
    """
    size = jnp.abs(matrix(word, s, seen))
    total = jnp.sum(size, axis=-1, keepdims=True)
    return size / jnp.where(total > 0, total, 1)


def _own_params(params: Any, layer: int) -> dict[str, Array]:
    """The parameters that the attention of a layer holds by itself, not in its projections."""
    found = flatten_dict(params).items()
    return {path[-1]: x[0] for path, x in found if path[-2:-1] == ("attention",) and f"layers_{layer}" in path}
