"""Language modelling: predict the next token of every document, or the ones that are hidden."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from transnormer_jax.errors import UserError
from transnormer_jax.models import Cache, LanguageModel
from transnormer_jax.tasks.cross_entropy import cross_entropy_sums
from transnormer_jax.tasks.task import Batch, Params, Sums, random_streams


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """Predicts tokens: what causal and masked language modelling have in common; `CausalLM` says what a batch is.

    Attributes:
      model: tokens to logits.
    """

    model: LanguageModel

    def init(self, key: Array) -> Params:
        """Parameters at initialisation; see `Task`."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def sums(self, params: Params, batch: Batch, key: Array | None = None) -> Sums:
        """Sums over the batch, each row read from nothing; see `Task`."""
        return self._sums(params, batch, None, key)[0]

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

        def unembed(readout: Params, hidden: Array) -> Any:
            # Back to the parameters' own type: the gradients of slices add up in it.
            wide = jax.tree.map(lambda x, like: x.astype(like.dtype), readout, {name: params[name] for name in readout})
            return self.model.apply({"params": wide}, hidden, method="unembed")

        real = (batch["segment_ids"] != 0).astype(jnp.float32)
        weights = (batch["mask"] != 0).astype(jnp.float32) if "mask" in batch else real
        vocab_size = self.model.config.vocab_size
        sums = cross_entropy_sums(unembed, self._readout(params), hidden, batch["targets"], weights, vocab_size)
        return sums._replace(tokens=jnp.sum(real)), after

    def _readout(self, params: Params) -> Params:
        """What follows the layers, matrices in the type of the computation: half as many bytes to gather."""
        dtype = self.model.config.dtype
        rest = {name: x for name, x in params.items() if name.startswith(("embedding", "head"))}
        return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, rest)


@dataclasses.dataclass(frozen=True)
class CausalLM(LanguageModelling):
    """Predicts each token from those before it.

    A batch is `inputs`, `targets` and `segment_ids`, each [B, N] int32; targets count where the id is not 0, or where
    `mask`, if there is one, is not 0.
    """

    def sums_from(self, params: Params, batch: Batch, cache: Cache) -> tuple[Sums, Cache]:
        """Sums of `params` over the `batch`, each row going on from `cache`, and the cache after it."""
        return self._sums(params, batch, cache, None)


@dataclasses.dataclass(frozen=True)
class MaskedLM(LanguageModelling):
    """Predicts the tokens that are hidden, from both sides: `mask` in the batch says which they are.

    RoBERTa's objective, in which TransNormer is a bidirectional language model (arXiv 2210.10340, section 5.1).
    """

    def __post_init__(self) -> None:
        """Raises UserError for a model that sees one side only."""
        if getattr(self.model.config, "causal", True):
            raise UserError("task 'masked_lm' needs a model that sees both sides: set config.model.causal=False.")
