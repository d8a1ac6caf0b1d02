"""The definition of linear attention in float64, token by token, and its gradients: what every backend must equal."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    """One row of the table: shapes, log decay per head (None: no decay), and what else is given."""

    name: str
    shape: tuple[int, int, int, int, int]  # B, N, H, K, V
    log_decay: Sequence[float] | None
    segments: bool = False
    initial_state: bool = False


# Cases of one shape are one program: compiling takes longer than running.
CASES = [
    Case("one_token", (2, 1, 2, 8, 8), [-0.7, -1e-5], initial_state=True),
    Case("no_decay", (2, 128, 2, 16, 16), None),
    Case("ragged", (2, 150, 3, 16, 24), [-0.7, -0.05, -1e-5]),
    Case("strong", (2, 150, 3, 16, 24), [-30.0, -3.0, -0.3], initial_state=True),
    Case("segments", (2, 150, 3, 16, 24), [-0.5, -0.01, -1e-5], segments=True),
    Case("all", (2, 150, 3, 16, 24), [-2.0, -0.03, -1e-5], segments=True, initial_state=True),
]


class Inputs(NamedTuple):
    """Operands and cotangents of a case, NumPy."""

    q: Any
    k: Any
    v: Any
    log_decay: Any
    initial_state: Any
    segment_ids: Any
    d_out: Any
    d_state: Any


def make_inputs(case: Case, dtype: Any = jnp.float32) -> Inputs:
    """Random operands, rounded to `dtype`, so that the definition sees what the backend sees."""
    rng = np.random.default_rng(sum(case.shape))
    b, n, h, k, v = case.shape

    def normal(*shape: int) -> np.ndarray:
        return np.asarray(jnp.asarray(rng.standard_normal(shape), dtype))

    return Inputs(
        normal(b, n, h, k),
        normal(b, n, h, k),
        normal(b, n, h, v),
        None if case.log_decay is None else np.array(case.log_decay, np.float32),
        rng.standard_normal((b, h, k, v)).astype(np.float32) if case.initial_state else None,
        packed_ids(rng, b, n) if case.segments else None,
        normal(b, n, h, v),
        rng.standard_normal((b, h, k, v)).astype(np.float32),
    )


def packed_ids(rng: np.random.Generator, batch: int, length: int) -> np.ndarray:
    """Rows of several documents with padding on the left, in the middle of a document, and on the right."""
    ids = np.sort(rng.integers(1, 5, (batch, length)), axis=1).astype(np.int32)
    ids[:, :7] = 0
    ids[:, length // 2 : length // 2 + 3] = 0
    ids[0, -20:] = 0
    return ids


def define(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Output and final state, float64."""
    return _define(inputs)[0]


def define_gradients(inputs: Inputs) -> dict[str, np.ndarray]:
    """Gradients of <out, d_out> + <state, d_state>, float64."""
    return dict(zip(("q", "k", "v", "log_decay", "initial_state"), _define(inputs)[1], strict=True))


def relative_rms(actual: Any, expected: np.ndarray) -> float:
    """RMS of the difference over RMS of the expected values."""
    difference = np.asarray(actual, np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected**2)))


def _define(inputs: Inputs) -> Any:
    b, n, h, k = inputs.q.shape
    log_decay = np.zeros(h) if inputs.log_decay is None else inputs.log_decay
    state = np.zeros((b, h, k, inputs.v.shape[-1])) if inputs.initial_state is None else inputs.initial_state
    ids = np.ones((b, n), np.int32) if inputs.segment_ids is None else inputs.segment_ids
    operands = (inputs.q, inputs.k, inputs.v, log_decay, state, inputs.d_out, inputs.d_state)
    with jax.enable_x64(True):
        return jax.device_get(_outputs_and_gradients(*[np.asarray(x, np.float64) for x in operands], ids))


@jax.jit
def _outputs_and_gradients(q, k, v, log_decay, state, d_out, d_state, segment_ids):
    outputs, pull_back = jax.vjp(lambda *operands: _recurrence(*operands, segment_ids), q, k, v, log_decay, state)
    return outputs, pull_back((d_out, d_state))


def _recurrence(q, k, v, log_decay, state, segment_ids):
    """S <- exp(log_decay) S + k v^T; S <- 0 first where another document begins; padding (id 0) does nothing."""

    def step(carry, token):
        state, last_id = carry
        q_t, k_t, v_t, id_t = token
        restart = (id_t != 0) & (last_id != 0) & (id_t != last_id)
        kept = jnp.where(restart[:, None, None, None], 0.0, state)
        new = jnp.exp(log_decay)[None, :, None, None] * kept + k_t[..., :, None] * v_t[..., None, :]
        real = (id_t != 0)[:, None, None, None]
        state = jnp.where(real, new, state)
        out = jnp.where(real[..., 0], jnp.sum(q_t[..., :, None] * state, axis=-2), 0.0)
        return (state, jnp.where(id_t != 0, id_t, last_id)), out

    tokens = [jnp.moveaxis(x, 1, 0) for x in (q, k, v, segment_ids)]
    (state, _), out = jax.lax.scan(step, (state, jnp.zeros_like(segment_ids[:, 0])), tuple(tokens))
    return jnp.moveaxis(out, 0, 1), state
