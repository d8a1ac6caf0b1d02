"""LSH attention: queries meet the keys that fall near them in a random hash (Reformer, arXiv 2001.04451, section 2).

One projection serves as queries and keys. Each round hashes all tokens to buckets and sorts them by bucket; a chunk of
sorted tokens attends to itself and to the chunk before it.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.errors import UserError
from transnormer_jax.ops.linear_attention.segments import distinct_ids
from transnormer_jax.ops.precision import wide_type

_LARGEST_FACTOR = 128


def bucket_factors(num_buckets: int) -> tuple[int, ...]:
    """Cuts a large number of buckets into two even factors, b1 b2 >= b, hashed one after the other (arXiv 2001.04451).

    >>> bucket_factors(64), bucket_factors(512)
    ((64,), (32, 16))

    Raises:
      UserError: the number is odd or below 2: a hash and its opposite are two buckets.
    """
    if num_buckets < 2 or num_buckets % 2:
        raise UserError(f"num_buckets is {num_buckets}: give an even number, since a rotation makes buckets in pairs.")
    if num_buckets <= _LARGEST_FACTOR:
        return (num_buckets,)
    first = 2 ** math.ceil(math.log2(num_buckets) / 2)
    return first, 2 * -(-num_buckets // (2 * first))


def lsh_hash(
    x: Float[Array, "B N H K"],
    rotations: Float[Array, "#H K rounds S"],
    factors: tuple[int, ...] | None = None,
) -> Int[Array, "B H rounds N"]:
    """The bucket argmax [xR, -xR] of each token in each round (arXiv 2001.04451, section 2).

    Args:
      x: [B, N, H, K] tokens.
      rotations: R ~ N(0, 1), [H or 1, K, rounds, S]; S is half the sum of the factors.
      factors: the numbers of buckets (b1, b2, ...) whose product is the number of buckets; the hash is h1 + b1 h2 + ...
        None: one factor, 2 S.

    Returns:
      int32 [B, H, rounds, N], from 0 to the product of the factors less 1. It has no gradient.
    """
    x, rotations = jax.lax.stop_gradient((x, rotations))
    dtype = wide_type(x)
    heads = (x.shape[2], *rotations.shape[1:])
    rotated = jnp.einsum("bnhk,hkrs->bhrns", x.astype(dtype), jnp.broadcast_to(rotations, heads).astype(dtype))
    buckets = jnp.zeros(rotated.shape[:-1], jnp.int32)
    start, stride = 0, 1
    for factor in factors or (2 * rotations.shape[-1],):
        part = rotated[..., start : start + factor // 2]
        buckets += stride * jnp.argmax(jnp.concatenate([part, -part], axis=-1), axis=-1).astype(jnp.int32)
        start, stride = start + factor // 2, stride * factor
    return buckets


def lsh_attention(
    qk: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    rotations: Float[Array, "#H K rounds S"],
    *,
    chunk_size: int,
    causal: bool,
    factors: tuple[int, ...] | None = None,
    segment_ids: Int[Array, "B N"] | None = None,
) -> Float[Array, "B N H V"]:
    """Attention among tokens of like hash (arXiv 2001.04451, section 2): `lsh_hash`, then `attend_in_buckets`.

    Each document of a packed row has buckets of its own, so that none takes another's places in a chunk. Padding sorts
    behind all of them, as in the Hugging Face implementation.

    With `causal`, no token attends to a later one, but later tokens still have an effect: they are sorted too, so they
    move the borders of chunks, and these decide which earlier tokens meet.

    Args:
      qk: [B, N, H, K], queries, and keys once they are normalised.
      v: [B, N, H, V] values.
      rotations: [H or 1, K, rounds, S], drawn from N(0, 1); S is half the sum of the factors.
      chunk_size: tokens per chunk; N need not be a multiple.
      causal: a token sees only tokens before it, and of these only those that meet it in a chunk.
      factors: of the number of buckets, see `bucket_factors`. None: one factor, 2 S.
      segment_ids: [B, N] int32, the documents of packed rows, which do not see each other; 0 is padding.

    Returns:
      [B, N, H, V] in v's dtype; scores, weights and sums are float32 at least.
    """
    if segment_ids is not None:
        segment_ids = distinct_ids(segment_ids)
        qk, v = (jnp.where((segment_ids != 0)[..., None, None], x, 0) for x in (qk, v))
    buckets = lsh_hash(qk, rotations, factors)
    if segment_ids is not None:
        num_buckets = math.prod(factors or (2 * rotations.shape[-1],))
        ids = segment_ids[:, None, None, :]
        buckets = jnp.where(ids != 0, buckets + num_buckets * ids, jnp.iinfo(buckets.dtype).max)
    return attend_in_buckets(qk, v, buckets, chunk_size=chunk_size, causal=causal, segment_ids=segment_ids)


def attend_in_buckets(
    qk: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    buckets: Int[Array, "B H rounds N"],
    *,
    chunk_size: int,
    causal: bool,
    segment_ids: Int[Array, "B N"] | None = None,
    scale: float = 1.0,
    eps: float = 1e-6,
    within_buckets: bool = False,
) -> Float[Array, "B N H V"]:
    """Softmax attention over the pairs that meet in a chunk, in all rounds together (arXiv 2001.04451, eq. 2 to 6).

    In each round tokens are sorted by (bucket, position) and cut into chunks. A chunk sees itself and the one before,
    in the cyclic order of all rounds laid end to end. Scores are scale q_i k_j with k = q / |q|; a pair that meets in
    several rounds counts in each, as in the authors' code. A token sees itself only if it meets no other in any round,
    and its output is then v exactly, in any precision.

    Weights are summed over rounds before the one division, which is the paper's combination by logsumexp (eq. 6).
    Time and memory are O(rounds N chunk_size). No gradient goes through the sorting.

    Args:
      qk: [B, N, H, K], queries, and keys once they are normalised.
      v: [B, N, H, V] values.
      buckets: [B, H, rounds, N] int32, of any values.
      chunk_size: tokens per chunk; N need not be a multiple.
      causal: a token sees only tokens before it, and of these only those that meet it in a chunk.
      segment_ids: [B, N] int32, the documents of packed rows, which do not see each other; 0 is padding.
      scale: factor on the scores: 1 as in the authors' code, where keys have length 1; others use 1 / sqrt(K).
      eps: added to the mean square of a key before the root; positive.
      within_buckets: a token sees only its own bucket, not all of its chunks, as in one of the golden files.

    Returns:
      [B, N, H, V] in v's dtype; scores, weights and sums are float32.
    """
    length = qk.shape[1]
    chunk_size = min(chunk_size, length)
    segment_ids = None if segment_ids is None else distinct_ids(segment_ids)
    if missing := -length % chunk_size:
        # The filling sorts behind everything, and is padding.
        segment_ids = jnp.ones(qk.shape[:2], jnp.int32) if segment_ids is None else segment_ids
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, missing)))
        qk, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (qk, v))
        last = jnp.iinfo(buckets.dtype).max
        buckets = jnp.pad(buckets, ((0, 0), (0, 0), (0, 0), (0, missing)), constant_values=last)
    order = jnp.argsort(buckets, axis=-1, stable=True)  # the token at each place; [B, H, rounds, N]
    place = jnp.argsort(order, axis=-1)  # the place of each token

    def sort(x: Array) -> Array:
        """[B, N, H, K] to [B, H, chunks of all rounds, C, K]."""
        x = jnp.broadcast_to(jnp.swapaxes(x, 1, 2)[:, :, None], (*order.shape, x.shape[-1]))
        return _chunks(_permute(x, order, place), chunk_size)

    dtype = wide_type(qk)
    with jax.named_scope("lsh_sort"):
        queries, values = sort(qk), _with_previous(sort(v))
        keys = _with_previous(_unit_length(queries, eps))
    with jax.named_scope("lsh_scores"):
        scores = scale * jnp.einsum("bhgik,bhgjk->bhgij", queries, keys, preferred_element_type=dtype)
        allowed = _allowed(order, chunk_size, causal, segment_ids)
        if within_buckets:
            allowed &= _same_bucket(order, chunk_size, buckets)
        scores = jnp.where(allowed, scores, -jnp.inf)
        top = jax.lax.stop_gradient(scores.max(axis=-1))  # -inf where a token meets no other
        weights = jnp.exp(scores - _finite(top)[..., None])
    with jax.named_scope("lsh_values"):
        weighted = jnp.einsum("bhgij,bhgjv->bhgiv", weights.astype(v.dtype), values, preferred_element_type=dtype)
        sums = jnp.concatenate([weighted, weights.sum(axis=-1, keepdims=True)], axis=-1)
    with jax.named_scope("lsh_combine"):
        sums = _permute(sums.reshape(*order.shape, -1), place, order)
        top = jnp.take_along_axis(top.reshape(order.shape), place, axis=-1)
        highest = top.max(axis=2, keepdims=True)
        total = (sums * jnp.exp(top - _finite(highest))[..., None]).sum(axis=2)
        alone, total = (jnp.swapaxes(x, 1, 2) for x in (jnp.isneginf(highest[:, :, 0, :, None]), total))
        out = total[..., :-1] / jnp.where(alone, 1, total[..., -1:])
    return jnp.where(alone, v, out.astype(v.dtype))[:, :length]


@jax.custom_vjp
def _permute(x: Array, index: Array, inverse: Array) -> Array:
    """Puts [B, H, rounds, N, K] in the order of `index` [B, H, rounds, N].

    The gradient is the inverse permutation, a gather, where autodiff would scatter. It has none for the order itself.
    """
    del inverse
    return jnp.take_along_axis(x, index[..., None], axis=-2)


def _permute_forward(x: Array, index: Array, inverse: Array) -> tuple[Array, tuple[Array, Array]]:
    return _permute(x, index, inverse), (index, inverse)


def _permute_backward(orders: tuple[Array, Array], d_out: Array) -> tuple[Array, None, None]:
    index, inverse = orders
    return _permute(d_out, inverse, index), None, None


_permute.defvjp(_permute_forward, _permute_backward)


def _chunks(x: Array, chunk_size: int) -> Array:
    """[B, H, rounds, N, ...] to [B, H, chunks of all rounds, C, ...]."""
    return x.reshape(*x.shape[:2], -1, chunk_size, *x.shape[4:])


def _with_previous(chunks: Array) -> Array:
    """[B, H, chunks, C, ...] to [B, H, chunks, 2 C, ...]: each chunk, then the one before it, cyclically."""
    return jnp.concatenate([chunks, jnp.roll(chunks, 1, axis=2)], axis=3)


def _unit_length(x: Array, eps: float) -> Array:
    wide = x.astype(wide_type(x))
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + eps) / math.sqrt(x.shape[-1])).astype(x.dtype)


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isneginf(x), 0, x)


def _pairs(of_place: Array, chunk_size: int) -> tuple[Array, Array]:
    """Of [B, H, rounds, N, ...]: of queries, [B, H, chunks, C, 1, ...], and of keys, [B, H, chunks, 1, 2 C, ...]."""
    chunks = _chunks(of_place, chunk_size)
    return jnp.expand_dims(chunks, 4), jnp.expand_dims(_with_previous(chunks), 3)


def _allowed(order: Array, chunk_size: int, causal: bool, segment_ids: Array | None) -> Array:
    """Which keys a query may see, itself never: [B, H, chunks, C, 2 C] bool."""
    i, j = _pairs(order, chunk_size)
    allowed = j < i if causal else j != i
    if segment_ids is not None:
        ids = jnp.broadcast_to(segment_ids[:, None, None, :], order.shape)
        i, j = _pairs(jnp.take_along_axis(ids, order, axis=-1), chunk_size)
        allowed &= (i == j) & (j != 0)
    return allowed


def _same_bucket(order: Array, chunk_size: int, buckets: Array) -> Array:
    """Which pairs fell in one bucket of one round: [B, H, chunks, C, 2 C] bool."""
    i, j = _pairs(jnp.take_along_axis(buckets, order, axis=-1), chunk_size)
    rounds = jax.lax.broadcasted_iota(jnp.int32, order.shape, 2)
    i_round, j_round = _pairs(rounds, chunk_size)
    return (i == j) & (i_round == j_round)
