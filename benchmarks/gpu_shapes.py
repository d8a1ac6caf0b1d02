"""What `benchmarks.gpu` measures, in numbers that belong to no framework: shapes, least traffic, and the truth."""

import dataclasses

import numpy as np

from transnormer_jax.ops.decay import paper_log_decay

# Least reads and writes per token and head, as (K's, V's): forward reads q, k, v and writes out; backward reads
# q, k, v, d_out and writes dq, dk, dv. At K = V = d in bfloat16 that is 8 d and 14 d bytes.
_FORWARD = (2, 2)
_BACKWARD = (4, 3)

# The decay that flash-linear-attention builds into its lightning attention, so that one truth serves every contender.
# It spans all there is: head 0 forgets nothing, the last head almost all at each token.
LAYER, NUM_LAYERS = 12, 24

COMPUTATIONS = ("forward", "forward_backward")


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
        """The memory traffic that no implementation can avoid, bytes; states and decay are left out."""
        keys, values = _FORWARD if computation == "forward" else np.add(_FORWARD, _BACKWARD)
        itemsize = 4 if self.dtype == "float32" else 2
        per_token_head = int(keys) * self.key_dim + int(values) * self.value_dim
        return self.batch * self.heads * self.num_tokens * per_token_head * itemsize


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


def truth(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, d_out: np.ndarray, log_decay: float, lengths: list[int]
) -> dict[str, np.ndarray]:
    """Output and gradients of one head in float64; q, k [N, K], v, d_out [N, V], `lengths` those of its documents."""
    q, k, v, d_out = (x.astype(np.float64) for x in (q, k, v, d_out))

    def backwards(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return attend(a[::-1], b[::-1], c[::-1], log_decay, lengths[::-1])[::-1]

    return {
        "out": attend(q, k, v, log_decay, lengths),
        "dq": attend(d_out, v, k, log_decay, lengths),
        "dk": backwards(v, d_out, q),
        "dv": backwards(k, q, d_out),
    }


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, log_decay: float, lengths: list[int]) -> np.ndarray:
    """out_t = sum over s <= t of t's document of exp(log_decay (t - s)) (q_t . k_s) v_s, for one head, by chunks."""
    out = np.zeros_like(v)
    ends = np.cumsum(lengths)
    for document in map(slice, ends - lengths, ends):
        out[document] = _attend_document(q[document], k[document], v[document], log_decay)
    return out


def relative_rms(actual: np.ndarray, expected: np.ndarray) -> float:
    """RMS of the difference over RMS of the expected values."""
    difference = actual.astype(np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected**2)))


def _attend_document(q: np.ndarray, k: np.ndarray, v: np.ndarray, log_decay: float, chunk: int = 128) -> np.ndarray:
    state = np.zeros((k.shape[1], v.shape[1]))
    out = np.zeros_like(v)
    for start in range(0, len(q), chunk):
        block = slice(start, start + chunk)
        q_block, k_block, v_block = q[block], k[block], v[block]
        time = np.arange(len(q_block))
        distance = time[:, None] - time
        weights = np.where(distance >= 0, np.exp(log_decay * np.maximum(distance, 0)), 0.0)
        from_before = np.exp(log_decay * (time + 1))[:, None] * (q_block @ state)
        out[block] = (q_block @ k_block.T * weights) @ v_block + from_before
        to_end = np.exp(log_decay * (len(time) - 1 - time))[:, None]
        state = np.exp(log_decay * len(time)) * state + (to_end * k_block).T @ v_block
    return out
