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
from transnormer_jax.ops.linear_attention.pallas_tpu import backward, forward, layout, unsupported_reason
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import Problem, choose_layout
from transnormer_jax.ops.linear_attention.segments import find_segments

_CONSTANT = "constant"
_GATES = "gates"  # log-uniform from 1e-3 to 1
_STRONG = "strong gates"  # 5% of the steps at the floor


class Case(NamedTuple):
    """One row of a table: shapes and what else is given."""

    shape: tuple[int, int, int, int, int]  # B, N, H, K, V
    decay: str = _CONSTANT
    documents: bool = False
    key_heads: int | None = None
    dtype: Any = jnp.float32
    max_segments: int | None = None
    chunk_size: int | None = None
    block_bytes: int = 2**20


CASES = {
    "one_head_fills_a_register": Case((1, 150, 2, 128, 128)),
    "two_heads_share": Case((1, 150, 4, 64, 64), documents=True),
    "four_heads_share": Case((1, 60, 8, 32, 32)),
    "values_share": Case((1, 90, 2, 128, 64), _GATES),
    "across_registers": Case((1, 60, 2, 192, 96), documents=True),
    "several_registers": Case((1, 60, 1, 256, 192)),
    "more_heads_than_a_block": Case((1, 40, 48, 64, 64), _GATES),
    "blocks": Case((2, 70, 2, 16, 24), documents=True, chunk_size=16, block_bytes=4096),
    "blocks_gates": Case((2, 70, 2, 16, 24), _GATES, documents=True, chunk_size=16, block_bytes=4096),
    "strong_gates": Case((1, 150, 3, 16, 24), _STRONG, documents=True),
    "grouped_heads": Case((1, 40, 4, 128, 128), _GATES, documents=True, key_heads=2),
    "grouped_heads_share_values": Case((1, 40, 8, 128, 64), key_heads=2),
    "grouped_heads_repeated": Case((1, 40, 4, 32, 64), _GATES, key_heads=2),
    "bfloat16": Case((1, 150, 4, 64, 64), dtype=jnp.bfloat16),
    "bfloat16_documents": Case((1, 150, 2, 128, 128), documents=True, dtype=jnp.bfloat16),
    "bfloat16_gates_and_documents": Case((1, 150, 4, 64, 64), _GATES, documents=True, dtype=jnp.bfloat16),
}

# Documents end inside chunks and between them; some slots are not used.
STATES_PER_DOCUMENT = {
    "blocks": Case((2, 70, 2, 16, 24), documents=True, max_segments=6, chunk_size=16, block_bytes=8192),
    "gates": Case((1, 90, 4, 64, 64), _GATES, documents=True, max_segments=4, chunk_size=32),
    "grouped_heads": Case((1, 60, 4, 128, 128), documents=True, max_segments=5, key_heads=2),
    "bfloat16": Case((1, 90, 4, 64, 64), documents=True, max_segments=6, chunk_size=32, dtype=jnp.bfloat16),
}


@pytest.fixture(autouse=True)
def block_size(request, monkeypatch):
    """Small blocks, so that a short row has several of them."""
    case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")
    if case:
        monkeypatch.setattr(layout, "_GENERATIONS", [layout.Generation("", 128, 1024, case.block_bytes, 2**25)] * 2)


@pytest.mark.parametrize("case", STATES_PER_DOCUMENT.values(), ids=STATES_PER_DOCUMENT)
def test_every_document_has_an_initial_and_a_final_state(case: Case):
    inputs = make_inputs(case)
    segments = find_segments(jnp.asarray(inputs["ids"]))
    assert len(np.unique(inputs["ids"])) > 2
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


def make_inputs(case: Case) -> dict[str, np.ndarray]:
    """Random operands and cotangents; padding is zero and takes no step, as a backend is promised."""
    rng = np.random.default_rng(sum(case.shape))
    b, n, h, k, v = case.shape
    ids = packed_ids(rng, b, n) if case.documents else np.ones((b, n), np.int32)
    real = (ids != 0)[..., None, None]

    def tokens(heads: int, size: int) -> np.ndarray:
        return np.asarray(jnp.where(real, jnp.asarray(rng.standard_normal((b, n, heads, size)), case.dtype), 0))

    log_decay = -np.geomspace(0.7, 1e-5, h)
    if case.decay != _CONSTANT:
        log_decay = -np.exp(rng.uniform(np.log(1e-3), 0, (b, n, h)))
        if case.decay == _STRONG:
            log_decay = np.where(rng.uniform(size=log_decay.shape) < 0.05, -120.0, log_decay)
        log_decay = np.where(real[..., 0], log_decay, 0)
    state = (b, h, k, v) if case.max_segments is None else (b, case.max_segments, h, k, v)
    return {
        "q": tokens(case.key_heads or h, k),
        "k": tokens(case.key_heads or h, k),
        "v": tokens(h, v),
        "log_decay": log_decay.astype(np.float32),
        "state": rng.standard_normal(state).astype(np.float32),
        "ids": ids,
        "d_out": tokens(h, v),
        "d_state": rng.standard_normal(state).astype(np.float32),
    }


def apply(case: Case, inputs: Any) -> list[Any]:
    """Outputs and gradients of the kernels."""

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

    log_decay = jnp.broadcast_to(log_decay if log_decay.ndim == 3 else log_decay[None, None], (*ids.shape, v.shape[2]))
    tokens = [jnp.moveaxis(x, 1, 0) for x in (q, k, v, log_decay)]
    carry, out = jax.lax.scan(step, (states[:, 0], jnp.zeros_like(index[0]), states), (*tokens, index, (ids != 0).T))
    ends = carry[2]
    return jnp.moveaxis(out, 0, 1), ends if own_states else ends[:, 0]


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"])
@pytest.mark.parametrize("head_dim", [32, 64, 128, 192, 256])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_blocks_fill_registers_and_fit(kind: str, head_dim: int, dtype: Any):
    problem = Problem(8, 8192, 32, head_dim, head_dim, dtype, key_heads=32, decay_per_token=True)
    chosen = choose_layout(problem, Hardware("tpu", kind), documents=True, chunk_size=None)
    assert chosen.heads * head_dim % 128 == 0
    assert 32 % chosen.heads == 0
    assert chosen.vmem_needed() <= chosen.vmem_bytes
    assert unsupported_reason(problem, Hardware("tpu", kind)) is None


def test_a_block_has_all_heads_of_its_keys():
    problem = Problem(8, 8192, 32, 128, 128, jnp.bfloat16, key_heads=2)
    chosen = choose_layout(problem, Hardware("tpu", "TPU7x"), documents=False, chunk_size=None)
    assert chosen.heads == chosen.heads_per_key == 16


def test_chunks_fill_registers():
    problem = Problem(1, 8192, 4, 64, 64, jnp.bfloat16, key_heads=4)
    tpu = Hardware("tpu", "TPU v4")
    with pytest.raises(UserError, match="chunk_size is 100: on a TPU give a multiple of 128"):
        choose_layout(problem, tpu, documents=False, chunk_size=100)
    assert choose_layout(problem, tpu, documents=False, chunk_size=256).chunk == 256


def test_what_is_not_supported_says_why():
    tpu = Hardware("tpu", "TPU v6 lite")
    problem = Problem(1, 8192, 4, 128, 128, jnp.bfloat16, key_heads=4, max_segments=16)
    assert unsupported_reason(problem, tpu) is None
    assert "float16" in (unsupported_reason(problem._replace(dtype=jnp.float16), tpu) or "")
    assert unsupported_reason(problem, Hardware("cpu", "cpu")) == "it needs a TPU, and this is a cpu"
    many = unsupported_reason(problem._replace(max_segments=1000), tpu)
    assert many == "1 heads of 128 x 128 need 252 MiB of vector memory, and a kernel may use 56 MiB"
    assert "vector memory" in (unsupported_reason(problem._replace(key_dim=4096, value_dim=4096), tpu) or "")
