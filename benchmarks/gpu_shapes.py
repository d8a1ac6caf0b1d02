"""What `benchmarks.gpu` measures, in numbers that belong to no framework: the shapes."""

import dataclasses

import numpy as np

from benchmarks.least_bytes import least_bytes
from transnormer_jax.ops.decay import paper_log_decay

# The decay that flash-linear-attention builds into its lightning attention, so that one truth serves every contender.
# It spans all there is: head 0 forgets nothing, the last head almost all at each token.
LAYER, NUM_LAYERS = 12, 24


@dataclasses.dataclass(frozen=True)
class Shape:
    """One problem: q, k [B, N, H, K], v [B, N, H, V].

    Attributes:
      name: for flags and tables.
      batch: rows B.
      heads: heads H.
      num_tokens: tokens N in a row.
      key_dim: features K of q and k.
      value_dim: features V of v.
      dtype: of q, k and v.
      documents: how many documents are packed into a row; 1 is no packing.
    """

    name: str
    batch: int
    heads: int
    num_tokens: int
    key_dim: int = 128
    value_dim: int = 128
    dtype: str = "bfloat16"
    documents: int = 1

    def __str__(self) -> str:
        packed = f", {self.documents} documents" if self.documents > 1 else ""
        return (
            f"{self.name}: B = {self.batch}, H = {self.heads}, N = {self.num_tokens}, "
            f"K = {self.key_dim}, V = {self.value_dim}, {self.dtype}{packed}"
        )

    @property
    def log_decay(self) -> np.ndarray:
        """[H] float32, the paper's decay of a middle layer."""
        return paper_log_decay(self.heads, NUM_LAYERS)[LAYER]

    @property
    def lengths(self) -> list[int]:
        """Tokens in each document of a row; all differ."""
        parts = np.arange(1, self.documents + 1)
        ends = np.rint(self.num_tokens * np.cumsum(parts) / np.sum(parts)).astype(int)
        return np.diff(ends, prepend=0).tolist()

    @property
    def segment_ids(self) -> np.ndarray | None:
        """[B, N] int32 from 1, or None where nothing is packed."""
        if self.documents == 1:
            return None
        return np.tile(np.repeat(np.arange(1, self.documents + 1, dtype=np.int32), self.lengths), (self.batch, 1))

    def least_bytes(self, computation: str) -> int:
        """The memory traffic that no implementation can avoid, bytes."""
        itemsize = 4 if self.dtype == "float32" else 2
        return least_bytes(
            computation, self.batch * self.heads * self.num_tokens, self.key_dim, self.value_dim, itemsize
        )


# In the order of their weight, in case the time runs out.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("wide", 8, 32, 8192),
        Shape("row_8k", 1, 16, 8192),
        Shape("head_64", 8, 32, 8192, 64, 64),
        Shape("row_2k", 1, 16, 2048),
        Shape("row_32k", 1, 16, 32768),
        # The shapes that flash-linear-attention publishes times for.
        Shape("fla_96_heads", 1, 96, 8192),
        Shape("fla_16_heads", 2, 16, 16384),
        Shape("fla_64_heads", 4, 64, 4096),
        Shape("lrpe", 8, 32, 8192, 128, 64),  # LRPE doubles the features of q and k
        Shape("packed", 1, 16, 32768, documents=12),
        Shape("row_8k_float32", 1, 16, 8192, dtype="float32"),
        Shape("tiny", 1, 2, 320, 64, 64, documents=2),  # for a look at the benchmark itself, on any device
    )
}
MEASURED = tuple(name for name in SHAPES if name != "tiny")
