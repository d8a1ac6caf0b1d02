"""Classification of one sequence, or of two."""

import dataclasses

import jax.numpy as jnp
import optax
from jaxtyping import Array

from transnormer_jax.models import DualEncoder, SequenceClassifier
from transnormer_jax.tasks.task import Batch, Params, Sums, random_streams


@dataclasses.dataclass(frozen=True)
class Classification:
    """A batch is `inputs` and `segment_ids` [B, N] int32 and `label` [B] int32; a row of padding alone does not count.

    For a `DualEncoder` there are `inputs_b` and `segment_ids_b` as well.

    Attributes:
      model: one sequence or two to logits.
    """

    model: SequenceClassifier | DualEncoder

    def init(self, key: Array) -> Params:
        """Parameters at initialisation; see `Task`."""
        token = jnp.zeros((1, 1), jnp.int32)
        inputs = (token, token) * (2 if isinstance(self.model, DualEncoder) else 1)
        return self.model.init(key, *inputs)["params"]

    def sums(self, params: Params, batch: Batch, key: Array | None = None) -> Sums:
        """Sums over the batch: one prediction a row. See `Task`."""
        names = ["inputs", "segment_ids"]
        if isinstance(self.model, DualEncoder):
            names += ["inputs_b", "segment_ids_b"]
        logits: Array = self.model.apply({"params": params}, *(batch[name] for name in names), rngs=random_streams(key))  # type: ignore[assignment]
        weights = jnp.any(batch["segment_ids"] != 0, axis=1).astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        tokens = sum(jnp.sum(batch[name] != 0) for name in names if name.startswith("segment_ids"))
        return Sums(
            jnp.sum(loss * weights), jnp.sum(weights), jnp.sum(correct * weights), jnp.asarray(tokens, jnp.float32)
        )

    def report(self, totals: Sums) -> dict[str, float]:
        """Loss in nats per example, and accuracy."""
        return {
            "loss": float(totals.loss / totals.predictions),
            "accuracy": float(totals.correct / totals.predictions),
            "examples": int(totals.predictions),
        }
