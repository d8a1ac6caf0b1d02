"""Speech recognition by CTC."""

import dataclasses
from typing import Any, ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.errors import UserError
from transnormer_jax.papers.models import BiLSTMConfig, SpeechModel
from transnormer_jax.papers.tasks.ctc import ctc_loss, edit_distance, greedy_ctc_decode
from transnormer_jax.papers.tasks.labelled import ClassesConfig, LabelledTask
from transnormer_jax.tasks import TASKS, Batch, LossSums, Params, TaskConfig
from transnormer_jax.tasks.language_modelling import require_model
from transnormer_jax.tasks.task import random_streams
from transnormer_jax.training import Config


@dataclasses.dataclass(frozen=True)
class SpeechConfig(ClassesConfig):
    """Options of speech recognition.

    Attributes:
      name: "speech".
      num_classes: phones, the blank not counted.
      num_features: features per frame.
      frames_per_token: frames that form one token of the model.
    """

    num_features: int = 13
    frames_per_token: int = 1


@TASKS.register("speech")
@dataclasses.dataclass(frozen=True)
class SpeechRecognition(LabelledTask):
    """A batch is `inputs` [B, N, F] float32, `segment_ids` [B, N] and `labels` [B, U] int32, 0 being padding.

    Attributes:
      model: frames to logits.
      num_features: F.
      frames_per_token: that many frames, side by side, are one token of the model (Sak et al. 2015); N is a multiple.
    """

    options: ClassVar[type[TaskConfig]] = SpeechConfig
    has_blank: ClassVar[bool] = True

    model: SpeechModel
    num_features: int
    frames_per_token: int = 1

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """See `Task`."""
        options, model = config.task, config.model
        assert isinstance(options, SpeechConfig), options
        kind = model if isinstance(model, BiLSTMConfig) else require_model(config)
        return cls(SpeechModel(kind, options.num_classes), options.num_features, options.frames_per_token)

    def init(self, key: Array) -> Params:
        """Parameters at initialisation; see `Task`."""
        frames = jnp.zeros((1, 1, self.num_features * self.frames_per_token))
        return self.model.init(key, frames, jnp.ones((1, 1), jnp.int32))["params"]

    def loss_and_metrics(self, params: Params, batch: Batch, key: Array | None = None) -> LossSums:
        """Sums over the batch: a prediction is a label, and `correct` is labels less edits of the greedy path.

        For the arguments see `Task`.
        """
        frames, segment_ids = stack_frames(batch["inputs"], batch["segment_ids"], self.frames_per_token)
        logits: Any = self.model.apply({"params": params}, frames, segment_ids, rngs=random_streams(key))
        real, labels = segment_ids != 0, batch["labels"]
        loss = ctc_loss(logits, real, labels)
        lengths = jnp.sum(labels != 0, axis=1)
        decoded, is_label = greedy_ctc_decode(logits, real)
        edits = edit_distance(decoded, jnp.sum(is_label, axis=1), labels, lengths)
        count = jnp.sum(lengths).astype(jnp.float32)
        return LossSums(jnp.sum(loss), count, count - jnp.sum(edits), jnp.sum(real).astype(jnp.float32))

    def report(self, totals: LossSums) -> dict[str, float]:
        """CTC loss in nats per label, and the label (phone) error rate: edits over labels."""
        return {
            "loss": float(totals.loss / totals.predictions),
            "error_rate": float(1 - totals.correct / totals.predictions),
            "labels": int(totals.predictions),
        }


def stack_frames(
    frames: Float[Array, "B N F"], segment_ids: Int[Array, "B N"], count: int
) -> tuple[Float[Array, "B N/count F*count"], Int[Array, "B N/count"]]:
    """Puts `count` frames side by side; a token is real if its first frame is."""
    batch, length, features = frames.shape
    if length % count:
        raise UserError(f"sequence_length={length} must be a multiple of config.task.frames_per_token={count}.")
    frames = jnp.where(segment_ids[..., None] != 0, frames, 0)
    return frames.reshape(batch, length // count, features * count), segment_ids[:, ::count]
