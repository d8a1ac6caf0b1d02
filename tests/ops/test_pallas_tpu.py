"""The TPU kernels, emulated on the CPU, equal the recurrence in float64."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from tests.ops.definition import packed_ids, relative_rms
from transnormer_jax.errors import UserError
from transnormer_jax.ops.hardware import Hardware, interpret_kernels
from transnormer_jax.ops.linear_attention.pallas_tpu import backward, forward, unsupported_reason
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import Problem, choose_layout
from transnormer_jax.ops.linear_attention.segments import find_segments

_CONSTANT = "constant"
_GATES = "gates"  # log-uniform from 1e-3 to 1
_STRONG = "strong gates"  # 5% of the steps at the floor


class Case(NamedTuple):
    shape: tuple[int, int, int, int, int]  # B, N, H, K, V
    decay: str = _CONSTANT
    documents: bool = False
    key_heads: int | None = None
    dtype: Any = jnp.float32
    max_segments: int | None = None
    chunk_size: int | None = None


CASES = {
    "one_head_fills_a_register": Case((1, 270, 2, 128, 128)),
    "two_heads_share": Case((1, 270, 4, 64, 64), documents=True),
    "two_heads_share_gates": Case((1, 150, 4, 64, 64), _GATES),
    "gates": Case((2, 270, 2, 128, 128), _GATES),
    "gates_and_documents": Case((2, 150, 2, 16, 24), _GATES, documents=True, chunk_size=16),
    "strong_gates_and_documents": Case((1, 150, 3, 16, 24), _STRONG, documents=True, chunk_size=32),
    "values_share": Case((1, 150, 2, 128, 64), _GATES),
    "four_heads_share": Case((1, 100, 8, 32, 32)),
    "across_registers": Case((1, 90, 2, 192, 96), documents=True),
    "several_registers": Case((1, 90, 1, 256, 192)),
    "three_blocks": Case((1, 80, 2, 128, 128), documents=True, chunk_size=16),
    "more_heads_than_a_block": Case((1, 40, 24, 64, 64), _GATES),
    "grouped_heads": Case((1, 150, 8, 128, 128), _GATES, documents=True, key_heads=2),
    "grouped_heads_share_values": Case((1, 90, 8, 128, 64), _GATES, key_heads=2),
    "grouped_heads_repeated": Case((1, 90, 4, 32, 64), _GATES, key_heads=2),
    "bfloat16": Case((1, 270, 4, 64, 64), dtype=jnp.bfloat16),
    "bfloat16_documents": Case((1, 150, 2, 128, 128), documents=True, dtype=jnp.bfloat16),
    "bfloat16_gates_and_documents": Case((1, 150, 4, 64, 64), _GATES, documents=True, dtype=jnp.bfloat16),
}


# Documents end inside chunks and between them; some slots are not used.
STATES_PER_DOCUMENT = {
    "constant": Case((2, 150, 3, 16, 24), documents=True, max_segments=6, chunk_size=16),
    "gates": Case((1, 150, 4, 64, 64), _GATES, documents=True, max_segments=4, chunk_size=48),
    "grouped_heads": Case((1, 150, 4, 128, 128), documents=True, max_segments=5, key_heads=2),
    "bfloat16": Case((1, 150, 4, 64, 64), documents=True, max_segments=6, chunk_size=32, dtype=jnp.bfloat16),
}


@pytest.mark.parametrize("case", STATES_PER_DOCUMENT.values(), ids=STATES_PER_DOCUMENT)
def test_every_document_has_an_initial_and_a_final_state(case: Case):
    inputs = make_inputs(case)
    segments = find_segments(jnp.asarray(inputs["ids"]))
    with interpret_kernels(pltpu.InterpretParams()):
        run = functools.partial(forward, chunk_size=case.chunk_size, save=False)
        operands = [inputs[name] for name in ("q", "k", "v", "log_decay", "state")]
        out, states, _ = jax.jit(run)(*operands, segments)
    bound = 5e-3 if case.dtype == jnp.bfloat16 else 2e-6
    expected_out, expected_states, *_ = define(inputs)
    assert relative_rms(out, expected_out) <= bound
    assert relative_rms(states, expected_states) <= bound


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernels_equal_the_recurrence(case: Case):
    inputs = make_inputs(case)
    names = "out", "state", "dq", "dk", "dv", "d_log_decay", "d_initial_state"
    bounds = [2e-6, 2e-6, 5e-6, 5e-6, 5e-6, 2e-5, 5e-6]
    if case.decay == _STRONG:
        bounds = [2e-5] * 7
    if case.dtype == jnp.bfloat16:
        bounds = [5e-3] * 5 + [2e-2, 5e-3]
    expected = define(inputs)
    # This emulator fills memory with NaN, rows beyond the end of an array included, and moves blocks as a TPU does.
    with interpret_kernels(pltpu.InterpretParams()):
        actual = apply(case, inputs)
    errors = {name: relative_rms(a, np.asarray(b)) for name, a, b in zip(names, actual, expected, strict=True)}
    assert all(error <= bound for error, bound in zip(errors.values(), bounds, strict=True)), errors


def make_inputs(case: Case) -> dict[str, np.ndarray | None]:
    rng = np.random.default_rng(sum(case.shape))
    b, n, h, k, v = case.shape

    def normal(*shape: int) -> np.ndarray:
        return np.asarray(jnp.asarray(rng.standard_normal(shape), case.dtype))

    log_decay = -np.geomspace(0.7, 1e-5, h)
    if case.decay != _CONSTANT:
        log_decay = -np.exp(rng.uniform(np.log(1e-3), 0, (b, n, h)))
    if case.decay == _STRONG:
        log_decay = np.where(rng.uniform(size=(b, n, h)) < 0.05, -120.0, log_decay)
    ids = packed_ids(rng, b, n) if case.documents else np.ones((b, n), np.int32)
    state = (b, h, k, v) if case.max_segments is None else (b, case.max_segments, h, k, v)
    real = (ids != 0)[..., None, None]
    return {
        "q": np.where(real, normal(b, n, case.key_heads or h, k), 0),
        "k": np.where(real, normal(b, n, case.key_heads or h, k), 0),
        "v": np.where(real, normal(b, n, h, v), 0),
        "log_decay": np.where(real[..., 0], log_decay, 0) if log_decay.ndim == 3 else log_decay.astype(np.float32),
        "state": rng.standard_normal(state).astype(np.float32),
        "ids": ids,
        "d_out": np.where(real, normal(b, n, h, v), 0),
        "d_state": rng.standard_normal(state).astype(np.float32),
    } | ({"log_decay": np.where(real[..., 0], log_decay, 0).astype(np.float32)} if log_decay.ndim == 3 else {})


def apply(case: Case, inputs: Any) -> list[Any]:
    @jax.jit
    def run(q, k, v, log_decay, state, ids, d_out, d_state):
        segments = find_segments(ids) if case.documents else None
        out, final_state, saved = forward(q, k, v, log_decay, state, segments, chunk_size=case.chunk_size, save=True)
        dq, dk, dv, d_steps, d_initial_state = backward(
            q,
            k,
            v,
            log_decay,
            segments,
            final_state,
            saved,
            d_out,
            d_state,
            chunk_size=case.chunk_size,
            decay_gradient=True,
        )
        index = find_segments(ids)[1]
        starts = jnp.diff(index, axis=1, prepend=0) > 0
        d_steps = jnp.where((starts | (ids == 0))[..., None], 0, d_steps)
        return out, final_state, dq, dk, dv, d_steps if log_decay.ndim == 3 else d_steps.sum((0, 1)), d_initial_state

    return run(*inputs.values())


def define(inputs: Any) -> list[Any]:
    """Outputs and gradients of the recurrence in float64."""
    with jax.enable_x64(True):
        operands = {name: np.asarray(x, np.float64) for name, x in inputs.items() if name != "ids"}
        d_out, d_state = operands.pop("d_out"), operands.pop("d_state")
        return jax.device_get(_outputs_and_gradients(*operands.values(), inputs["ids"], d_out, d_state))


@jax.jit
def _outputs_and_gradients(q, k, v, log_decay, state, ids, d_out, d_state):
    outputs, pull_back = jax.vjp(lambda *x: _recurrence(*x, ids), q, k, v, log_decay, state)
    return *outputs, *pull_back((d_out, d_state))


def _recurrence(q, k, v, log_decay, states, ids):
    """S <- exp(log_decay) S + k v^T, from 0 or a state of its own where a document begins; padding does nothing."""
    own_states = states.ndim == 5
    states = states if own_states else jnp.stack([states, jnp.zeros_like(states)], 1)
    index = jnp.moveaxis(find_segments(ids)[1], 1, 0)
    rows = jnp.arange(ids.shape[0])
    q, k = (jnp.repeat(x, v.shape[2] // q.shape[2], axis=2) for x in (q, k))

    def step(carry, token):
        state, last, ends = carry
        q, k, v, log_decay, index, real = token
        starts = index != last
        state = jnp.where(starts[:, None, None, None], states[rows, index if own_states else 1], state)
        new = jnp.exp(log_decay)[..., None, None] * state + k[..., None] * v[..., None, :]
        state = jnp.where(real[:, None, None, None], new, state)
        ends = ends.at[rows, index if own_states else 0].set(state)
        return (state, index, ends), jnp.einsum("bhk,bhkv->bhv", q, state)

    log_decay = (
        log_decay + jnp.zeros((*ids.shape, v.shape[2]))
        if log_decay.ndim == 3
        else jnp.broadcast_to(log_decay, (*ids.shape, v.shape[2]))
    )
    tokens = [jnp.moveaxis(x, 1, 0) for x in (q, k, v, log_decay)]
    carry, out = jax.lax.scan(step, (states[:, 0], jnp.zeros_like(index[0]), states), (*tokens, index, (ids != 0).T))
    ends = carry[2]
    return jnp.moveaxis(out, 0, 1), ends if own_states else ends[:, 0]
