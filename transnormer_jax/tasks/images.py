"""Images byte by byte."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from transnormer_jax.models import ImageModel
from transnormer_jax.tasks.mixture_of_logistics import likeliest_mean, mixture_of_logistics_nll
from transnormer_jax.tasks.task import Batch, Params, Sums, random_streams


@dataclasses.dataclass(frozen=True)
class AutoregressiveImages:
    """A batch is `inputs`, `targets` (the bytes one later) and `segment_ids`, each [B, N] int32.

    Attributes:
      model: bytes to mixtures.
    """

    model: ImageModel

    def init(self, key: Array) -> Params:
        """Parameters at initialisation; see `Task`."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def sums(self, params: Params, batch: Batch, key: Array | None = None) -> Sums:
        """Sums over the batch; a prediction is correct where the likeliest mean rounds to the byte. See `Task`."""
        mixtures: Array = self.model.apply({"params": params}, batch["inputs"], rngs=random_streams(key))  # type: ignore[assignment]
        weights = (batch["segment_ids"] != 0).astype(jnp.float32)
        loss = mixture_of_logistics_nll(mixtures, batch["targets"])
        correct = likeliest_mean(mixtures) == batch["targets"]
        count = jnp.sum(weights)
        return Sums(jnp.sum(loss * weights), count, jnp.sum(correct * weights), count)

    def report(self, totals: Sums) -> dict[str, float]:
        """Loss in nats per byte, bits per dimension (the same over ln 2), accuracy."""
        loss = float(totals.loss / totals.predictions)
        return {
            "loss": loss,
            "bits_per_dim": loss / float(np.log(2)),
            "accuracy": float(totals.correct / totals.predictions),
        }
