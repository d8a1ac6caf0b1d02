"""The positions and segment ids of tokens, as every token mixer receives them."""

from typing import NamedTuple

from jaxtyping import Array, Int


class TokenPositions(NamedTuple):
    """Positions and documents of the tokens of a batch.

    Attributes:
      position: [B, N] or [1, N] int32, how many tokens of the same document came before.
      segment_ids: [B, N] int32, the documents of packed rows; 0 is padding. None: each row is one document.
    """

    position: Int[Array, "#B N"]
    segment_ids: Int[Array, "B N"] | None = None
