"""Images byte by byte."""

import dataclasses
from typing import ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from transnormer_jax.data import Tokenizer
from transnormer_jax.papers.data import ImageRows
from transnormer_jax.papers.models import ImageModel
from transnormer_jax.papers.tasks.labelled import PositiveOptions, describe, open_examples, rows_to_read
from transnormer_jax.papers.tasks.mixture_of_logistics import likeliest_mean, mixture_of_logistics_nll
from transnormer_jax.tasks import TASKS, Batch, HeldOutRows, LossSums, Params, Task, TaskConfig, TrainingRows
from transnormer_jax.tasks.language_modelling import EVALUATION_SEED, require_model
from transnormer_jax.tasks.task import random_streams
from transnormer_jax.training import Config


@dataclasses.dataclass(frozen=True)
class ImagesConfig(PositiveOptions):
    """Options of the image model.

    Attributes:
      name: "images".
      num_mixtures: logistics per byte.
    """

    num_mixtures: int = 10


@TASKS.register("images")
@dataclasses.dataclass(frozen=True)
class AutoregressiveImages(Task):
    """A batch is `inputs`, `targets` (the bytes one later) and `segment_ids`, each [B, N] int32.

    Attributes:
      model: bytes to mixtures.
    """

    options: ClassVar[type[TaskConfig]] = ImagesConfig

    model: ImageModel

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """See `Task`."""
        assert isinstance(config.task, ImagesConfig), config.task
        return cls(ImageModel(require_model(config, causal=True), config.task.num_mixtures))

    def init(self, key: Array) -> Params:
        """Parameters at initialisation; see `Task`."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def loss_and_metrics(self, params: Params, batch: Batch, key: Array | None = None) -> LossSums:
        """Sums over the batch; a prediction is correct where the likeliest mean rounds to the byte. See `Task`."""
        mixtures: Array = self.model.apply({"params": params}, batch["inputs"], rngs=random_streams(key))  # type: ignore[assignment]
        weights = (batch["segment_ids"] != 0).astype(jnp.float32)
        loss = mixture_of_logistics_nll(mixtures, batch["targets"])
        correct = likeliest_mean(mixtures) == batch["targets"]
        count = jnp.sum(weights)
        return LossSums(jnp.sum(loss * weights), count, jnp.sum(correct * weights), count)

    def report(self, totals: LossSums) -> dict[str, float]:
        """Loss in nats per byte, bits per dimension (the same over ln 2), accuracy."""
        loss = float(totals.loss / totals.predictions)
        return {
            "loss": loss,
            "bits_per_dim": loss / float(np.log(2)),
            "accuracy": float(totals.correct / totals.predictions),
        }

    def training_rows(self, config: Config, tokenizer: Tokenizer) -> TrainingRows:
        """See `Task`."""
        examples = open_examples(config, tokenizer, config.data.train_split)
        return TrainingRows(ImageRows(examples, config.seed), len(examples), describe(config, examples))

    def held_out(self, config: Config, tokenizer: Tokenizer, split: str, max_tokens: int = 0) -> HeldOutRows:
        """See `Task`."""
        examples = open_examples(config, tokenizer, split)
        return HeldOutRows(ImageRows(examples, EVALUATION_SEED), rows_to_read(config, examples, max_tokens))
