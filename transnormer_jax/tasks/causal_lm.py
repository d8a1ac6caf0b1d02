"""Language modelling: predict the next token of every document, or the ones that are hidden."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from transnormer_jax.errors import UserError
from transnormer_jax.models import Cache, TransNormer, TransNormerLLM
from transnormer_jax.tasks.task import Batch, Params, Sums, random_streams

# Logits that exist at one time, in numbers: at a vocabulary of 64,000 this is 1,024 tokens and 256 MB.
_MAX_LOGITS = 2**26


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Predicts each token from those before it.

    A batch is `inputs`, `targets` and `segment_ids`, each [B, N] int32; targets count where the id is not 0, or where
    `mask`, if there is one, is not 0.
    """

    model: TransNormerLLM | TransNormer

    def init(self, key: Array) -> Params:
        """Parameters at initialisation."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def sums(self, params: Params, batch: Batch, key: Array | None = None) -> Sums:
        """Sums over the batch, each row read from nothing."""
        return self._sums(params, batch, None, key)[0]

    def sums_from(self, params: Params, batch: Batch, cache: Cache) -> tuple[Sums, Cache]:
        """Sums over the batch, each row going on from the cache, and the cache after it."""
        return self._sums(params, batch, cache, None)

    def report(self, totals: Sums) -> dict[str, float]:
        """Loss in nats per token, perplexity per token, accuracy."""
        loss = float(totals.loss / totals.predictions)
        return {
            "loss": loss,
            "perplexity": float(np.exp(loss)),
            "accuracy": float(totals.correct / totals.predictions),
            "tokens": int(totals.predictions),
        }

    def _sums(self, params: Params, batch: Batch, cache: Cache | None, key: Array | None) -> tuple[Sums, Any]:
        variables = {"params": params}
        hidden: Any
        after: Any
        hidden, after = self.model.apply(
            variables,
            batch["inputs"],
            segment_ids=batch["segment_ids"],
            cache=cache,
            method="hidden",
            rngs=random_streams(key),
        )

        def unembed(hidden: Array) -> Any:
            return self.model.apply(variables, hidden, method="unembed")

        real = (batch["segment_ids"] != 0).astype(jnp.float32)
        weights = (batch["mask"] != 0).astype(jnp.float32) if "mask" in batch else real
        vocab_size = self.model.config.vocab_size
        sums = cross_entropy_sums(unembed, hidden, batch["targets"], weights, vocab_size)
        return sums._replace(tokens=jnp.sum(real)), after


@dataclasses.dataclass(frozen=True)
class MaskedLM(CausalLM):
    """Predicts the tokens that are hidden, from both sides: `mask` in the batch says which they are.

    RoBERTa's objective, in which TransNormer is a bidirectional language model (arXiv 2210.10340, section 5.1).
    """

    def __post_init__(self) -> None:
        """Raises UserError for a model that sees one side only."""
        if getattr(self.model.config, "causal", True):
            raise UserError("task 'masked_lm' needs a model that sees both sides: set config.model.causal=False.")


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
        count = jnp.sum(weights)
        return Sums(jnp.sum(loss * weights), count, jnp.sum(correct * weights), count)

    batch, length = targets.shape
    slices = _num_slices(length, batch * length * vocab_size)
    if slices == 1:
        return slice_sums(hidden, targets, weights)

    # Token i goes to slice i % slices: each then lies on all devices that hold a part of the row.
    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(batch, length // slices, slices, *x.shape[2:]), 2, 0)

    def add(total: Sums, one: tuple[Array, ...]) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, total, jax.checkpoint(slice_sums)(*one)), None

    return jax.lax.scan(add, Sums.zero(), (split(hidden), split(targets), split(weights)))[0]


def _num_slices(length: int, num_logits: int) -> int:
    """The fewest equal slices of the sequence whose logits stay within the bound (one token each, at the least)."""
    return next(n for n in range(1, length + 1) if length % n == 0 and (num_logits // n <= _MAX_LOGITS or n == length))
