"""What linear attention is, in float64 and NumPy: all heads by the definition, or one head by chunks with gradients."""

import numpy as np


def definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, log_decay: np.ndarray) -> np.ndarray:
    """out_t = sum over s <= t of exp(c_t - c_s) (q_t . k_s) v_s; q, k, v, out [B, N, H, K], log_decay [H] or [B, N, H].

    c_t is the sum of the log decays of the tokens up to t.
    """
    c = np.moveaxis(np.cumsum(np.broadcast_to(log_decay, q.shape[:3]), axis=1), 1, 2)  # [B, H, N]
    weights = np.tril(np.exp(np.minimum(c[..., :, None] - c[..., None, :], 0)))
    return np.einsum("bhts,bshv->bthv", weights * np.einsum("bthk,bshk->bhts", q, k), v)


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
