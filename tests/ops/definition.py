"""The definition of linear attention in float64, token by token, and its gradients: what every backend must equal."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest


class Steps(NamedTuple):
    """Log decays drawn for each token and head: log-uniform sizes, and a share of steps of one strong size."""

    low: float
    high: float
    share: float = 0.0
    strong: float = 0.0


class Case(NamedTuple):
    """One row of the table: shapes, log decay (per head, drawn per token, or None), and what else is given."""

    name: str
    shape: tuple[int, int, int, int, int]  # B, N, H, K, V
    log_decay: Sequence[float] | Steps | None
    segments: bool = False
    initial_state: bool = False
    key_heads: int | None = None
    max_segments: int | None = None


# Cases of one shape are one program: compiling takes longer than running.
CASES = [
    Case("one_token", (2, 1, 2, 8, 8), [-0.7, -1e-5], initial_state=True),
    Case("no_decay", (2, 128, 2, 16, 16), None),
    Case("ragged", (2, 150, 3, 16, 24), [-0.7, -0.05, -1e-5]),
    Case("strong", (2, 150, 3, 16, 24), [-30.0, -3.0, -0.3], initial_state=True),
    Case("segments", (2, 150, 3, 16, 24), [-0.5, -0.01, -1e-5], segments=True),
    Case("all", (2, 150, 3, 16, 24), [-2.0, -0.03, -1e-5], segments=True, initial_state=True),
]
ALL = CASES[-1]
PER_TOKEN = Case("per_token", (2, 150, 3, 16, 24), Steps(1e-5, 1.0), initial_state=True)
TOKEN_CASES = [
    PER_TOKEN,
    PER_TOKEN._replace(name="per_token_segments", segments=True),
    PER_TOKEN._replace(name="all_strong", log_decay=Steps(1e4, 1e4)),
    PER_TOKEN._replace(name="some_strong", log_decay=Steps(1e-3, 1.0, share=0.05, strong=1e4)),
    PER_TOKEN._replace(name="some_forget", log_decay=Steps(1e-3, 1.0, share=0.05, strong=np.inf), segments=True),
    PER_TOKEN._replace(name="half_strong", log_decay=Steps(1e-4, 1e-2, share=0.5, strong=1e4)),
]
DOCUMENT_CASES = [
    ALL._replace(name="documents", max_segments=7),
    PER_TOKEN._replace(name="per_token_documents", max_segments=7, segments=True),
]
GROUPED_CASES = [
    Case("grouped", (2, 150, 6, 16, 24), np.linspace(-2, -1e-4, 6).tolist(), True, True, key_heads=2),
    Case("grouped_documents", (2, 150, 6, 16, 24), Steps(1e-3, 1.0), True, True, key_heads=1, max_segments=7),
]


def parametrize(cases: Sequence[Case], quick: Sequence[Case] = ()) -> pytest.MarkDecorator:
    """`cases` as parameters "case"; those that are not among `quick` are slow."""
    params = [pytest.param(one, id=one.name, marks=() if one in quick else pytest.mark.slow) for one in cases]
    return pytest.mark.parametrize("case", params)


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
    g = case.key_heads or h
    state_shape = (b, h, k, v) if case.max_segments is None else (b, case.max_segments, h, k, v)

    def normal(*shape: int) -> np.ndarray:
        return np.asarray(jnp.asarray(rng.standard_normal(shape), dtype))

    q, keys, values = normal(b, n, g, k), normal(b, n, g, k), normal(b, n, h, v)
    log_decay: Any = case.log_decay
    if isinstance(log_decay, Steps):
        sizes = np.exp(rng.uniform(np.log(log_decay.low), np.log(log_decay.high), (b, n, h)))
        log_decay = -np.where(rng.random((b, n, h)) < log_decay.share, log_decay.strong, sizes)
    return Inputs(
        q,
        keys,
        values,
        None if log_decay is None else np.asarray(log_decay, np.float32),
        rng.standard_normal(state_shape).astype(np.float32) if case.initial_state else None,
        packed_ids(rng, b, n) if case.segments else None,
        normal(b, n, h, v),
        rng.standard_normal(state_shape).astype(np.float32),
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
    b, n, h, _ = inputs.v.shape
    log_decay = np.zeros(h) if inputs.log_decay is None else inputs.log_decay
    state = np.zeros(inputs.d_state.shape) if inputs.initial_state is None else inputs.initial_state
    ids = np.ones((b, n), np.int32) if inputs.segment_ids is None else inputs.segment_ids
    operands = (inputs.q, inputs.k, inputs.v, log_decay, state, inputs.d_out, inputs.d_state)
    with jax.enable_x64(True):
        return jax.device_get(_outputs_and_gradients(*[np.asarray(x, np.float64) for x in operands], ids))


@jax.jit
def _outputs_and_gradients(q, k, v, log_decay, state, d_out, d_state, segment_ids):
    outputs, pull_back = jax.vjp(lambda *operands: _recurrence(*operands, segment_ids), q, k, v, log_decay, state)
    return outputs, pull_back((d_out, d_state))


def _recurrence(q, k, v, log_decay, state, segment_ids):
    """S <- exp(log_decay) S + k v^T; another document starts from its own state, or from 0; padding does nothing."""
    rows, repeats = jnp.arange(len(q)), v.shape[2] // q.shape[2]
    by_document = state.ndim == 5
    initial = state if by_document else jnp.zeros_like(state)[:, None]
    log_decay = jnp.maximum(jnp.broadcast_to(log_decay, v.shape[:3]), -1e3)  # of -inf, autodiff makes NaN

    def step(carry, token):
        state, finals, last_id, index = carry
        q_t, k_t, v_t, g_t, id_t = token
        restart = (id_t != 0) & (last_id != 0) & (id_t != last_id)
        index = index + restart
        slot = index if by_document else jnp.zeros_like(index)
        kept = jnp.where(restart[:, None, None, None], initial[rows, slot], state)
        q_t, k_t = (jnp.repeat(x, repeats, axis=1) for x in (q_t, k_t))
        new = jnp.exp(g_t)[..., None, None] * kept + k_t[..., :, None] * v_t[..., None, :]
        real = (id_t != 0)[:, None, None, None]
        state = jnp.where(real, new, state)
        out = jnp.where(real[..., 0], jnp.sum(q_t[..., :, None] * state, axis=-2), 0.0)
        return (state, finals.at[rows, slot].set(state), jnp.where(id_t != 0, id_t, last_id), index), out

    tokens = [jnp.moveaxis(x, 1, 0) for x in (q, k, v, log_decay, segment_ids)]
    zeros = jnp.zeros_like(segment_ids[:, 0])
    carry = (initial[:, 0] if by_document else state, initial, zeros, zeros)
    (last, finals, _, _), out = jax.lax.scan(step, carry, tuple(tokens))
    return jnp.moveaxis(out, 0, 1), finals if by_document else last
