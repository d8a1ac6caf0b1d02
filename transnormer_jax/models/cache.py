"""What a model remembers of the tokens it has read."""

from typing import Any, NamedTuple

from jaxtyping import Array, Int


class Cache(NamedTuple):
    """The memory of B sequences.

    Attributes:
      position: [B] int32, number of tokens read.
      states: of a TransNormerLLM, one for each run of layers with equal state shapes, [layers, B, H, K, V] float32 (2K
        with LRPE): of constant size, however many tokens were read. Of a TransNormer, one for each layer, by its
        attention: a state of constant size, the tokens of a block, or for softmax all of them.
    """

    position: Int[Array, " B"]
    states: tuple[Any, ...]
