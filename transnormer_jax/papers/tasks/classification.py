"""Classification of one sequence, or of two."""

import dataclasses
from typing import ClassVar, Self

import jax.numpy as jnp
import optax
from jaxtyping import Array

from transnormer_jax.papers.models import DualEncoder, SequenceClassifier
from transnormer_jax.papers.tasks.labelled import ClassesConfig, LabelledTask
from transnormer_jax.tasks import TASKS, Batch, LossSums, Params
from transnormer_jax.tasks.language_modelling import require_model
from transnormer_jax.tasks.task import random_streams
from transnormer_jax.training import Config


@TASKS.register("classification")
@dataclasses.dataclass(frozen=True)
class Classification(LabelledTask):
    """A batch is `inputs` and `segment_ids` [B, N] int32 and `label` [B] int32; a row of padding alone does not count.

    Attributes:
      model: one sequence or two to logits.
    """

    model: SequenceClassifier | DualEncoder
    encoder: ClassVar[type[SequenceClassifier] | type[DualEncoder]] = SequenceClassifier

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """See `Task`."""
        assert isinstance(config.task, ClassesConfig), config.task
        return cls(cls.encoder(require_model(config), config.task.num_classes))

    def init(self, key: Array) -> Params:
        """Parameters at initialisation; see `Task`."""
        token = jnp.zeros((1, 1), jnp.int32)
        inputs = (token, token) * (2 if self.pair_apart else 1)
        return self.model.init(key, *inputs)["params"]

    def loss_and_metrics(self, params: Params, batch: Batch, key: Array | None = None) -> LossSums:
        """Sums over the batch: one prediction a row. See `Task`."""
        names = ["inputs", "segment_ids"]
        if self.pair_apart:
            names += ["inputs_b", "segment_ids_b"]
        logits: Array = self.model.apply({"params": params}, *(batch[name] for name in names), rngs=random_streams(key))  # type: ignore[assignment]
        weights = jnp.any(batch["segment_ids"] != 0, axis=1).astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        tokens = sum(jnp.sum(batch[name] != 0) for name in names if name.startswith("segment_ids"))
        return LossSums(
            jnp.sum(loss * weights), jnp.sum(weights), jnp.sum(correct * weights), jnp.asarray(tokens, jnp.float32)
        )

    def report(self, totals: LossSums) -> dict[str, float]:
        """Loss in nats per example, and accuracy."""
        return {
            "loss": float(totals.loss / totals.predictions),
            "accuracy": float(totals.correct / totals.predictions),
            "examples": int(totals.predictions),
        }


@TASKS.register("retrieval")
@dataclasses.dataclass(frozen=True)
class Retrieval(Classification):
    """Classification of a pair: the batch has `inputs_b` and `segment_ids_b` as well."""

    pair_apart: ClassVar[bool] = True
    encoder: ClassVar[type[SequenceClassifier] | type[DualEncoder]] = DualEncoder
