"""The TPU kernels: emulated on the CPU they equal the definition, alone and on a mesh of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from tests.ops.definition import CASES, Case, define, make_inputs, relative_rms
from tests.ops.emulation import assert_equals_definition
from tests.ops.test_linear_attention import apply, apply_with_gradients
from transnormer_jax.errors import UserError
from transnormer_jax.ops import linear_attention
from transnormer_jax.ops.hardware import Hardware, interpret_kernels
from transnormer_jax.ops.linear_attention import Problem
from transnormer_jax.ops.linear_attention.pallas_tpu import refusal
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import choose_layout

# The ways in which heads share the lanes of a register.
HEAD_CASES = [
    Case("one_head_fills_a_register", (1, 270, 2, 128, 128), [-0.5, -1e-5], initial_state=True),
    Case("two_heads_share", (1, 270, 4, 64, 64), [-0.5, -0.1, -0.01, -1e-5], segments=True, initial_state=True),
    Case("values_share", (1, 150, 2, 128, 64), [-0.5, -1e-5], initial_state=True),
    Case("four_heads_share", (1, 100, 8, 32, 32), list(np.linspace(-1, -1e-5, 8))),
    Case("odd_heads", (1, 90, 3, 64, 64), [-0.5, -0.1, -1e-3]),
    Case("across_registers", (1, 90, 2, 192, 96), [-0.5, -1e-3], segments=True),
    Case("several_registers", (1, 90, 1, 256, 192), [-1e-3]),
    Case("three_blocks", (1, 1100, 2, 128, 128), [-0.5, -1e-5], segments=True, initial_state=True),
    Case("more_heads_than_a_block", (1, 40, 24, 64, 64), list(np.linspace(-1, -1e-5, 24))),
]


@pytest.mark.parametrize("case", [*CASES, *HEAD_CASES], ids=lambda case: case.name)
def test_float32_equals_definition(case: Case):
    # This emulator fills memory with NaN, rows beyond the end of an array included, and moves blocks as a TPU does.
    assert_equals_definition("pallas_tpu", case, jnp.float32, 5e-6, pltpu.InterpretParams())


@pytest.mark.parametrize("case", [CASES[-1], *HEAD_CASES[:2]], ids=lambda case: case.name)
def test_bfloat16_equals_definition(case: Case):
    assert_equals_definition("pallas_tpu", case, jnp.bfloat16, 5e-3)


@pytest.mark.parametrize("segments", [False, True])
def test_both_directions(segments: bool):
    # Without causality the row is swept in both directions, and so are its gradients.
    case = Case("", (1, 40, 2, 64, 64), None, segments=segments, initial_state=True)
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


def test_eight_devices_equal_one():
    mesh = jax.make_mesh((2, 2, 2), ("data", "tensor", "other"), axis_types=(AxisType.Auto,) * 3)
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
@pytest.mark.parametrize("head_dim", [64, 128, 192, 256])
def test_blocks_fill_registers_and_fit(kind: str, head_dim: int):
    for dtype in (jnp.bfloat16, jnp.float32):
        problem = Problem(8, 8192, 32, head_dim, head_dim, dtype)
        layout = choose_layout(problem, Hardware("tpu", kind), reverse=False, chunk_size=None)
        lanes = layout.heads * head_dim
        assert lanes % 128 == 0
        assert 32 % layout.heads == 0
        arrays = 14 * layout.block * lanes * jnp.dtype(dtype).itemsize  # seven, twice
        states = (layout.chunks + 5) * head_dim * lanes * 4
        assert arrays + states < layout.vmem_bytes


def test_chunks_fill_registers():
    problem = Problem(1, 8192, 4, 64, 64, jnp.bfloat16)
    with pytest.raises(UserError, match="chunk_size is 100: on a TPU give a multiple of 128"):
        choose_layout(problem, Hardware("tpu", "TPU v4"), reverse=False, chunk_size=100)
    assert choose_layout(problem, Hardware("tpu", "TPU v4"), reverse=False, chunk_size=256).chunk == 256


def test_refusals():
    half = Problem(1, 8, 1, 8, 8, jnp.float16)
    assert "float16" in refusal(half, Hardware("tpu", "TPU v4"))
    assert refusal(half._replace(dtype=jnp.bfloat16), Hardware("tpu", "TPU v4")) is None
    q = jnp.zeros((1, 4, 1, 8))
    with pytest.raises(UserError, match=r"'pallas_tpu' cannot be used here: it needs a TPU, and this is a cpu; take"):
        linear_attention(q, q, q, backend="pallas_tpu")


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
