"""What every task is to the training loop."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Params = Any
"""Parameters: a tree of arrays, as Flax has it."""
Batch = Mapping[str, Array]
"""A batch: arrays by name, [B, ...] each; the docstring of a task says which, and of what dtype."""


class Sums(NamedTuple):
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
    def zero(cls) -> "Sums":
        """Nothing yet."""
        return cls(*[jnp.zeros((), jnp.float32)] * 4)


class Task(Protocol):
    """Initial parameters, and a batch to sums; the model inside is anything."""

    def init(self, key: Array) -> Params:
        """Parameters at initialisation, drawn by `key`, a random key."""

    def sums(self, params: Params, batch: Batch, key: Array | None = None) -> Sums:
        """Sums over the batch; with a key as in training, without one as in evaluation.

        Args:
          params: of the model.
          batch: arrays by name, [B, ...]; the docstring of the task says which.
          key: a random key, of dropout and hashes.

        Returns:
          float32 scalars.
        """

    def report(self, totals: Sums) -> dict[str, float]:
        """The metrics of an evaluation from its sums."""


def random_streams(key: Array | None) -> dict[str, Array]:
    """The keys that a model's modules ask for, none in evaluation."""
    if key is None:
        return {}
    dropout, hashes = jax.random.split(key)
    return {"dropout": dropout, "hash": hashes}
