"""The memory traffic that no implementation of linear attention can avoid."""

# Reads and writes per token and head, as (K's, V's): forward reads q, k, v and writes out; backward reads q, k, v,
# d_out and writes dq, dk, dv. At K = V = d in bfloat16 that is 8 d and 14 d bytes.
_MOVED = {"forward": (2, 2), "backward": (4, 3), "forward_backward": (6, 5)}


def least_bytes(computation: str, token_heads: int, key_dim: int, value_dim: int, itemsize: int) -> int:
    """Bytes of "forward", "backward" or both for B N H token heads; states, places and decays are left out."""
    keys, values = _MOVED[computation]
    return token_heads * (keys * key_dim + values * value_dim) * itemsize
