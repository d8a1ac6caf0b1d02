"""The interface of a task: its model, its rows and its loss; and the registry of tasks."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.data import Rows, TokenizedDocuments, Tokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.registry import Registry

if TYPE_CHECKING:
    from transnormer_jax.training.config import Config

Params = Any
"""Parameters: a tree of arrays, as Flax has it."""
Batch = Mapping[str, Array]
"""A batch: arrays by name, [B, ...] each; the docstring of a task says which, and of what dtype."""


class LossSums(NamedTuple):
    """Sums over a batch, float32 scalars: divide once, after adding up micro-batches, hosts and windows.

    Attributes:
      loss: of the predictions, in nats.
      predictions: how many count.
      correct: how many of these are right.
      tokens: of the model that were read, padding not counted.
    """

    loss: Float[Array, ""]
    predictions: Float[Array, ""]
    correct: Float[Array, ""]
    tokens: Float[Array, ""]

    @classmethod
    def zero(cls) -> "LossSums":
        """Nothing yet."""
        return cls(*[jnp.zeros((), jnp.float32)] * 4)


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What the model is trained for.

    A task with its own options has a subclass with more fields: see `Task.options`.

    Attributes:
      name: "causal_lm", "supervised_lm" (fine-tuning on conversations), "masked_lm", or another registered one.
    """

    name: str = "causal_lm"


def _no_metrics(rows: int) -> dict[str, float]:
    """The consumption of a single source, which the number of steps tells."""
    del rows
    return {}


class TrainingRows(NamedTuple):
    """What a run is trained on.

    Attributes:
      rows: the source of all batches.
      per_epoch: how many of them hold all the data once.
      description: of the data, in words.
      consumption: number of rows read -> tokens and epochs of every source of a mixture.
    """

    rows: Rows
    per_epoch: int
    description: str
    consumption: Callable[[int], dict[str, float]] = _no_metrics


class HeldOutRows(NamedTuple):
    """What a run is evaluated on: rows that are each read by themselves.

    Attributes:
      rows: of the split.
      num_rows: how many of them are read.
      num_bytes: UTF-8 bytes of the text that the rows hold, for bits per byte; 0 if it is not text.
      text_lost: share of them that the tokenizer loses.
    """

    rows: Rows
    num_rows: int
    num_bytes: int = 0
    text_lost: float = 0.0


class Task(abc.ABC):
    """What a run trains a model for.

    Class attributes:
      options: the type of `config.task`.
      mixes_sources: `config.data.mixture` may name several datasets.
      cuts_rows: `config.curriculum` may cut rows into shorter ones.
      reads_data: `config.data` names a dataset; otherwise rows are generated on the fly.
    """

    options: ClassVar[type[TaskConfig]] = TaskConfig
    mixes_sources: ClassVar[bool] = False
    cuts_rows: ClassVar[bool] = False
    reads_data: ClassVar[bool] = True

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: "Config") -> Self:
        """The task with the model of a configuration.

        Raises:
          UserError: the architecture cannot do the task.
        """

    @abc.abstractmethod
    def init(self, key: Array) -> Params:
        """Parameters at initialisation, drawn by `key`, a random key."""

    @abc.abstractmethod
    def loss_and_metrics(self, params: Params, batch: Batch, key: Array | None = None) -> LossSums:
        """Sums over the batch; with a key as in training, without one as in evaluation.

        Args:
          batch: arrays by name, [B, ...]; the docstring of the task says which.
          key: a random key, of dropout and hashes.

        Returns:
          float32 scalars.
        """

    @abc.abstractmethod
    def report(self, totals: LossSums) -> dict[str, float]:
        """The metrics of an evaluation from its sums."""

    @abc.abstractmethod
    def training_rows(self, config: "Config", tokenizer: Tokenizer) -> TrainingRows:
        """Opens the training split.

        Returns:
          Rows without end.

        Raises:
          UserError: the dataset does not fit the task or the model.
        """

    @abc.abstractmethod
    def held_out(
        self, config: "Config", tokenizer: Tokenizer, split: str, max_tokens: int = 0
    ) -> HeldOutRows | TokenizedDocuments:
        """Opens a held-out split.

        Args:
          split: a TFDS split.
          max_tokens: about how many tokens of it are wanted, from all over it; 0 means all.

        Returns:
          Rows; or documents, which are evaluated with the state carried from window to window, by a `CausalLM`.

        Raises:
          UserError: as `training_rows`.
        """


TASKS = Registry[type[Task]]("task")
"""The classes of the tasks, by the names that `config.task.name` may have."""


def check_vocabulary(config: "Config", size: int) -> None:
    """Raises UserError if the data has more tokens than the model."""
    ours = getattr(config.model, "vocab_size", size)
    if size > ours:
        raise UserError(
            f"the data has {size} different tokens, config.model.vocab_size={ours}: set it to {size} or more."
        )


def random_streams(key: Array | None) -> dict[str, Array]:
    """The keys that a model's modules ask for, none in evaluation."""
    if key is None:
        return {}
    dropout, hashes = jax.random.split(key)
    return {"dropout": dropout, "hash": hashes}
