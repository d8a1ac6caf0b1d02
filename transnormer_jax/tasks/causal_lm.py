"""Causal language modelling: predict the next token of every document."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from transnormer_jax.models import Cache, TransNormerLLM

Params = Any
Batch = Mapping[str, Array]

# Logits that exist at one time, in numbers: at a vocabulary of 64,000 this is 1,024 tokens and 256 MB.
_MAX_LOGITS = 2**26


class Sums(NamedTuple):
    """Sums over predicted tokens, float32 scalars: divide once, after adding up micro-batches, hosts and windows."""

    loss: Float[Array, ""]  # nats
    tokens: Float[Array, ""]
    correct: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """A batch is `inputs`, `targets` and `segment_ids`, each [B, N] int32; targets count where the id is not 0."""

    model: TransNormerLLM

    def init(self, key: Array) -> Params:
        """Parameters at initialisation."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def sums(self, params: Params, batch: Batch) -> Sums:
        """Sums over the batch, each row read from nothing."""
        return self._sums(params, batch, None)[0]

    def sums_from(self, params: Params, batch: Batch, cache: Cache) -> tuple[Sums, Cache]:
        """Sums over the batch, each row going on from the cache, and the cache after it."""
        return self._sums(params, batch, cache)

    def _sums(self, params: Params, batch: Batch, cache: Cache | None) -> tuple[Sums, Any]:
        variables = {"params": params}
        hidden: Any
        after: Any
        hidden, after = self.model.apply(
            variables, batch["inputs"], segment_ids=batch["segment_ids"], cache=cache, method="hidden"
        )

        def unembed(hidden: Array) -> Any:
            return self.model.apply(variables, hidden, method="unembed")

        weights = (batch["segment_ids"] != 0).astype(jnp.float32)
        vocab_size = self.model.config.vocab_size
        return cross_entropy_sums(unembed, hidden, batch["targets"], weights, vocab_size), after


def cross_entropy_sums(
    unembed: Callable[[Array], Array],
    hidden: Float[Array, "B N D"],
    targets: Array,
    weights: Float[Array, "B N"],
    vocab_size: int,
) -> Sums:
    """Cross-entropy of `unembed(hidden)` [B, N, V] with targets [B, N], by slices of the sequence.

    The logits of a slice are made again in the backward pass, so that all of them never exist at one time.
    """

    def slice_sums(hidden: Array, targets: Array, weights: Array) -> Sums:
        logits = unembed(hidden)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        correct = jnp.argmax(logits, axis=-1) == targets
        return Sums(jnp.sum(loss * weights), jnp.sum(weights), jnp.sum(correct * weights))

    batch, length = targets.shape
    slices = _num_slices(length, batch * length * vocab_size)
    if slices == 1:
        return slice_sums(hidden, targets, weights)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(batch, slices, length // slices, *x.shape[2:]), 1, 0)

    def add(total: Sums, one: tuple[Array, ...]) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, total, jax.checkpoint(slice_sums)(*one)), None

    zero = Sums(*[jnp.zeros(())] * 3)
    return jax.lax.scan(add, zero, (split(hidden), split(targets), split(weights)))[0]


def _num_slices(length: int, num_logits: int) -> int:
    """The fewest equal slices of the sequence whose logits stay within the bound (one token each, at the least)."""
    return next(n for n in range(1, length + 1) if length % n == 0 and (num_logits // n <= _MAX_LOGITS or n == length))
