"""Linear attention by its definition, in float64 and NumPy, with gradients; and the least bytes that it must move."""

import numpy as np

# Reads and writes per token and head, as (K's, V's): forward reads q, k, v and writes out; backward reads q, k, v,
# d_out and writes dq, dk, dv. At K = V = d in bfloat16 that is 8 d and 14 d bytes.
_MOVED = {"forward": (2, 2), "backward": (4, 3), "forward_backward": (6, 5)}


def least_bytes(computation: str, token_heads: int, key_dim: int, value_dim: int, itemsize: int) -> int:
    """Bytes of "forward", "backward" or both for B N H token heads, without states, positions and decays."""
    keys, values = _MOVED[computation]
    return token_heads * (keys * key_dim + values * value_dim) * itemsize


def definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, log_decay: np.ndarray) -> np.ndarray:
    """`attend` for q, k [B, N, H, K], v [B, N, H, V] and log_decay [H] or [B, N, H]; [B, N, H, V]."""
    decays = np.broadcast_to(log_decay, q.shape[:3])
    out = np.zeros_like(v)
    for row, head in np.ndindex(q.shape[0], q.shape[2]):
        at = (row, slice(None), head)
        out[at] = attend(q[at], k[at], v[at], decays[at], [q.shape[1]])
    return out


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, log_decay: float | np.ndarray, lengths: list[int]
) -> np.ndarray:
    """out_t = sum over s <= t of t's document of exp(c_t - c_s) (q_t . k_s) v_s, for one head.

    Args:
      q: [N, K], of any dtype.
      k: [N, K].
      v: [N, V].
      log_decay: one number, or [N]; c is its cumulative sum.
      lengths: tokens of each document of the row.
    """
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    log_decay = np.broadcast_to(log_decay, len(q))
    out = np.zeros_like(v)
    ends = np.cumsum(lengths)
    for document in map(slice, ends - lengths, ends):
        out[document] = _attend_document(q[document], k[document], v[document], log_decay[document])
    return out


def truth(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, d_out: np.ndarray, log_decay: float, lengths: list[int]
) -> dict[str, np.ndarray]:
    """Output and gradients of one head with a constant decay; arguments as those of `attend`, d_out [N, V]."""

    def backwards(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return attend(a[::-1], b[::-1], c[::-1], log_decay, lengths[::-1])[::-1]

    return {
        "out": attend(q, k, v, log_decay, lengths),
        "dq": attend(d_out, v, k, log_decay, lengths),
        "dk": backwards(v, d_out, q),
        "dv": backwards(k, q, d_out),
    }


def relative_rms(actual: np.ndarray, expected: np.ndarray) -> float:
    """RMS of the difference over RMS of the expected values."""
    difference = actual.astype(np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected**2)))


def _attend_document(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, log_decay: np.ndarray, chunk: int = 128
) -> np.ndarray:
    """By chunks: a row of 32,768 tokens has no N x N matrix."""
    state = np.zeros((k.shape[1], v.shape[1]))
    out = np.zeros_like(v)
    for start in range(0, len(q), chunk):
        here = slice(start, start + chunk)
        c = np.cumsum(log_decay[here].astype(np.float64))
        weights = np.tril(np.exp(np.minimum(c[:, None] - c, 0)))
        out[here] = (q[here] @ k[here].T * weights) @ v[here] + np.exp(c)[:, None] * (q[here] @ state)
        state = np.exp(c[-1]) * state + (np.exp(c[-1] - c)[:, None] * k[here]).T @ v[here]
    return out
