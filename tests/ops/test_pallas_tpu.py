"""The TPU kernels: emulated on the CPU they equal the definition, alone and on a mesh of devices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from tests.ops import test_linear_attention
from tests.ops.definition import CASES, TOKEN_CASES, Case, Steps, define, make_inputs, parametrize, relative_rms
from tests.ops.test_linear_attention import FLOAT32, apply, apply_with_gradients
from transnormer_jax.errors import UserError
from transnormer_jax.ops import linear_attention
from transnormer_jax.ops.hardware import Hardware, interpret_kernels
from transnormer_jax.ops.linear_attention import Problem
from transnormer_jax.ops.linear_attention.pallas_tpu import layout, unsupported_reason
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import choose_layout

_GATES = Steps(1e-3, 1.0)

# The ways in which heads share the lanes of a register, and key heads their queries and keys.
HEAD_CASES = [
    Case("one_head_fills_a_register", (1, 140, 2, 128, 128), [-30.0, -1e-5], initial_state=True),
    Case("two_heads_share", (1, 140, 4, 64, 64), [-0.5, -0.1, -0.01, -1e-5], segments=True, initial_state=True),
    Case("four_heads_share", (1, 60, 8, 32, 32), list(np.linspace(-1, -1e-5, 8))),
    Case("values_share", (1, 90, 2, 128, 64), Steps(1e-3, 1.0, share=0.05, strong=1e4), initial_state=True),
    Case("across_registers", (1, 60, 2, 192, 96), [-0.5, -1e-3], segments=True),
    Case("more_heads_than_a_block", (1, 40, 48, 64, 64), _GATES),
    Case("grouped", (1, 40, 4, 128, 128), Steps(1e-4, 1e-2, share=0.5, strong=1e4), True, True, key_heads=2),
    Case("grouped_values_share", (1, 40, 8, 128, 64), [-0.5] * 8, initial_state=True, key_heads=2),
    Case("grouped_repeated", (1, 40, 4, 32, 64), _GATES, key_heads=2),
]
# Several blocks of two chunks of 16 tokens; documents that end in chunks and between them, and slots without any.
BLOCK_CASES = [
    Case("gates", (3, 71, 2, 16, 24), _GATES, segments=True, initial_state=True),
    Case("states", (3, 72, 2, 16, 24), [-0.5, -1e-5], segments=True, initial_state=True, max_segments=6),
    Case("states_gates", (1, 73, 4, 64, 64), _GATES, segments=True, initial_state=True, max_segments=4),
    Case("states_grouped", (1, 74, 4, 128, 128), _GATES, True, True, key_heads=2, max_segments=5),
]


def assert_equals_definition(case: Case, dtype: Any, bounds: dict[str, float]) -> None:
    """In an emulator that fills memory with NaN, rows beyond an array's end included, and moves blocks as a TPU."""
    with interpret_kernels(pltpu.InterpretParams()):
        test_linear_attention.assert_equals_definition(make_inputs(case, dtype), "pallas_tpu", bounds)


@parametrize([CASES[0], *CASES[4:], TOKEN_CASES[1], TOKEN_CASES[4], *HEAD_CASES], quick=[CASES[-1], TOKEN_CASES[1]])
def test_float32_equals_definition(case: Case):
    assert_equals_definition(case, jnp.float32, FLOAT32)


@pytest.mark.slow
@parametrize(BLOCK_CASES)
def test_blocks_equal_the_definition(case: Case, monkeypatch):
    _, _, heads, key_dim, value_dim = case.shape
    block_bytes = 2 * 16 * heads * max(key_dim, value_dim) * 4
    monkeypatch.setattr(layout, "_GENERATIONS", [layout.Generation("", 16, 1024, block_bytes, 2**25)] * 2)
    assert_equals_definition(case, jnp.float32, FLOAT32)


@pytest.mark.slow
@parametrize([TOKEN_CASES[1], HEAD_CASES[1], BLOCK_CASES[1]])
def test_bfloat16_equals_definition(case: Case):
    assert_equals_definition(case, jnp.bfloat16, {"all": 5e-3, "log_decay": 2e-2})


@pytest.mark.slow
def test_both_directions():
    # Without causality the row is swept in both directions, and so are its gradients.
    case = Case("", (1, 40, 2, 64, 64), None, segments=True, initial_state=True)
    inputs = jax.tree.map(jnp.asarray, make_inputs(case))

    def results(backend: str, chunk_size: int | None):
        def attend(q, k, v, state):
            return linear_attention(
                q,
                k,
                v,
                initial_state=state,
                segment_ids=inputs.segment_ids,
                causal=False,
                backend=backend,
                chunk_size=chunk_size,
            )

        @jax.jit
        def outputs_and_gradients(*operands):
            outputs, pull_back = jax.vjp(attend, *operands)
            return outputs, pull_back((inputs.d_out, inputs.d_state))

        return outputs_and_gradients(*inputs[:3], inputs.initial_state)

    with interpret_kernels():
        actual = results("pallas_tpu", 16)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(results("chunked", None)), strict=True):
        assert relative_rms(a, np.asarray(b, np.float64)) <= 5e-6


@pytest.mark.slow
def test_gradient_of_gradient():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 20, 2, 4))
    log_decay = jnp.array([-0.3, -1e-3])

    def curvature(backend: str):
        def loss(q, k, v, log_decay):
            return jnp.sum(linear_attention(q, k, v, log_decay, backend=backend)[0] ** 2)

        def norm(*operands):
            return sum(jnp.sum(g**2) for g in jax.grad(loss, argnums=(0, 1, 2, 3))(*operands))

        return jax.jit(jax.grad(norm, argnums=(0, 1, 2, 3)))(q, k, v, log_decay)

    with interpret_kernels():
        actual = curvature("pallas_tpu")
    for a, b in zip(actual, curvature("chunked"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


@pytest.mark.slow
def test_eight_devices_equal_one():
    mesh = jax.make_mesh((2, 2, 2), ("data", "tensor", "fsdp"), axis_types=(AxisType.Auto,) * 3)
    inputs = make_inputs(Case("", (2, 40, 4, 8, 8), [-0.5, -0.1, -0.01, -1e-5], segments=True, initial_state=True))
    with interpret_kernels():
        _, one = apply_with_gradients(inputs, "pallas_tpu")
        with jax.set_mesh(mesh):
            _, eight = apply_with_gradients(inputs, "pallas_tpu")
    assert eight["q"].sharding.spec[:3] == ("data", None, "tensor")
    for name in one:
        assert relative_rms(eight[name], np.asarray(one[name], np.float64)) <= 1e-6, name


def test_rows_that_do_not_divide_are_computed_everywhere():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    inputs = make_inputs(Case("", (3, 20, 2, 8, 8), [-0.5, -1e-5]))
    with interpret_kernels(), jax.set_mesh(mesh):
        out, _ = apply(inputs, "pallas_tpu")
    assert relative_rms(out, define(inputs)[0]) <= 2e-6


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"])
@pytest.mark.parametrize("head_dim", [32, 64, 128, 192, 256])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_blocks_fill_registers_and_fit(kind: str, head_dim: int, dtype: Any):
    problem = Problem(8, 8192, 32, head_dim, head_dim, dtype, decay_per_token=True, packed=True)
    chosen = choose_layout(problem, Hardware("tpu", kind), chunk_size=None)
    assert chosen.heads * head_dim % 128 == 0
    assert 32 % chosen.heads == 0
    assert chosen.vmem_needed() <= chosen.vmem_bytes
    assert unsupported_reason(problem, Hardware("tpu", kind)) is None


def test_a_block_has_all_heads_of_its_keys():
    problem = Problem(8, 8192, 32, 128, 128, jnp.bfloat16, key_heads=2)
    chosen = choose_layout(problem, Hardware("tpu", "TPU7x"), chunk_size=None)
    assert chosen.heads == problem.heads_per_key == 16


def test_chunks_fill_registers():
    problem = Problem(1, 8192, 4, 64, 64, jnp.bfloat16)
    tpu = Hardware("tpu", "TPU v4")
    with pytest.raises(UserError, match="chunk_size is 100: on a TPU give a multiple of 128"):
        choose_layout(problem, tpu, chunk_size=100)
    assert choose_layout(problem, tpu, chunk_size=256).chunk == 256


def test_what_is_not_supported_says_why():
    tpu = Hardware("tpu", "TPU v6 lite")
    problem = Problem(1, 8192, 4, 128, 128, jnp.bfloat16, max_segments=16, packed=True)
    assert unsupported_reason(problem, tpu) is None
    assert "float16" in (unsupported_reason(problem._replace(dtype=jnp.float16), tpu) or "")
    assert unsupported_reason(problem, Hardware("cpu", "cpu")) == "it needs a TPU, and this is a cpu"
    many = unsupported_reason(problem._replace(max_segments=1000), tpu)
    assert many == "1 heads of 128 x 128 need 252 MiB of vector memory, and a kernel may use 56 MiB"
    assert "vector memory" in (unsupported_reason(problem._replace(key_dim=4096, value_dim=4096), tpu) or "")
    q = jnp.zeros((1, 4, 1, 8))
    with pytest.raises(UserError, match="'pallas_tpu' cannot be used here: it needs a TPU, and this is a cpu; take"):
        linear_attention(q, q, q, backend="pallas_tpu")


@pytest.mark.slow
def test_the_document_before_leaves_nothing_not_even_in_the_rounding():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 16, 1, 8))
    ids = (1 + jnp.arange(16) // 8)[None]
    k = jnp.where(ids[..., None, None] == 1, 1e4 * k, k)
    with interpret_kernels():
        attend = jax.jit(functools.partial(linear_attention, backend="pallas_tpu", chunk_size=4))
        out, state = attend(q, k, v, segment_ids=ids)
    alone, alone_state = jax.jit(linear_attention)(q[:, 8:], k[:, 8:], v[:, 8:])
    assert relative_rms(out[:, 8:], np.asarray(alone, np.float64)) <= 1e-6
    assert relative_rms(state, np.asarray(alone_state, np.float64)) <= 1e-6
