"""Sequence-length curriculum: the first steps cut their rows into shorter ones, and read as many tokens."""

import jax

from transnormer_jax.tasks import Batch
from transnormer_jax.training.config import Config


def row_length(config: Config, step: int) -> int:
    """Returns the tokens per row of a step, the first of which is 1."""
    return next((length for last_step, length in config.curriculum if step <= last_step), config.sequence_length)


def cut_rows(batch: Batch, length: int) -> Batch:
    """Returns a batch of arrays [B, N] as rows of `length` tokens, [B * N / length, length].

    A document that is cut begins again without memory, as where packing has cut it.
    """
    return jax.tree.map(lambda x: x.reshape(-1, length), batch)
