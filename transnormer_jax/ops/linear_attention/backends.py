"""The one registry of backends: their names, and which one "auto" takes."""

import functools
from collections.abc import Callable

import jax

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.ops.linear_attention.associative_scan import associative_scan
from transnormer_jax.ops.linear_attention.chunked import chunked, quadratic
from transnormer_jax.ops.linear_attention.recurrent import recurrent

BACKENDS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    "recurrent": recurrent,
    "quadratic": quadratic,
    "associative_scan": associative_scan,
    "chunked": chunked,
    "chunked_associative_scan": functools.partial(chunked, parallel_carry=True),
}


def resolve_backend(backend: str, *, num_tokens: int, head_dim: int, chunk_size: int | None = None) -> tuple[str, int]:
    """Returns the backend and the chunk size (tokens) that a call would use.

    "auto" takes one masked matrix where the row fits in one chunk (a decoding step is such a row), else chunks. A chunk
    has about as many tokens as a head has features, so that the work inside chunks and the states weigh the same.

    Args:
      backend: a name in `BACKENDS`, or "auto".
      num_tokens: N.
      head_dim: the larger of K and V.
      chunk_size: tokens per chunk, or None.

    Raises:
      UserError: the name is unknown, or the chunk size is not positive.
    """
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size is {chunk_size}: give a positive number of tokens, or None for the default.")
    chunk_size = chunk_size or (64 if head_dim <= 64 else 128)
    if backend == "auto":
        return ("quadratic" if num_tokens <= chunk_size else "chunked"), chunk_size
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}: {did_you_mean(backend, ['auto', *BACKENDS])}")
    return backend, chunk_size
