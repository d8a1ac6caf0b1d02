"""Speech recognition by CTC."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from transnormer_jax.models import SpeechModel
from transnormer_jax.tasks.ctc import ctc_loss, edit_distance, greedy_ctc_decode
from transnormer_jax.tasks.task import Batch, Params, Sums, random_streams


@dataclasses.dataclass(frozen=True)
class SpeechRecognition:
    """A batch is `inputs` [B, N, F] float32, `segment_ids` [B, N] and `labels` [B, U] int32, 0 being padding."""

    model: SpeechModel
    num_features: int

    def init(self, key: Array) -> Params:
        """Parameters at initialisation."""
        frames = jnp.zeros((1, 1, self.num_features))
        return self.model.init(key, frames, jnp.ones((1, 1), jnp.int32))["params"]

    def sums(self, params: Params, batch: Batch, key: Array | None = None) -> Sums:
        """Sums over the batch: a prediction is a label, and `correct` is labels less edits of the greedy path."""
        variables = {"params": params}
        logits: Array = self.model.apply(variables, batch["inputs"], batch["segment_ids"], rngs=random_streams(key))  # type: ignore[assignment]
        real, labels = batch["segment_ids"] != 0, batch["labels"]
        loss = ctc_loss(logits, real, labels)
        lengths = jnp.sum(labels != 0, axis=1)
        decoded, is_label = greedy_ctc_decode(logits, real)
        edits = edit_distance(decoded, jnp.sum(is_label, axis=1), labels, lengths)
        count = jnp.sum(lengths).astype(jnp.float32)
        return Sums(jnp.sum(loss), count, count - jnp.sum(edits), jnp.sum(real).astype(jnp.float32))

    def report(self, totals: Sums) -> dict[str, float]:
        """CTC loss in nats per label, and the label (phone) error rate: edits over labels."""
        return {
            "loss": float(totals.loss / totals.predictions),
            "error_rate": float(1 - totals.correct / totals.predictions),
            "labels": int(totals.predictions),
        }
