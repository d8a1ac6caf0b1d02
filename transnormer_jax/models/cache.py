"""What a TransNormerLLM remembers of the tokens it has read: a state of constant size, however many they were."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Cache(NamedTuple):
    """The memory of B sequences.

    Attributes:
      position: [B] int32, number of tokens read.
      states: for each run of layers with equal state shapes, [layers, B, H, K, V] float32 (2K with LRPE).
    """

    position: Int[Array, " B"]
    states: tuple[Float[Array, "layers B H K V"], ...]
