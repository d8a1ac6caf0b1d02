"""The Mosaic GPU kernel: emulated on the CPU it equals the definition, and it lowers for a GPU."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from tests.ops.definition import CASES, Case, define, make_inputs, parametrize, relative_rms
from tests.ops.emulation import assert_equals_definition
from tests.ops.test_linear_attention import apply
from transnormer_jax.errors import UserError
from transnormer_jax.ops import linear_attention
from transnormer_jax.ops.hardware import Hardware, interpret_kernels
from transnormer_jax.ops.linear_attention import Problem, pallas_gpu, sweeps
from transnormer_jax.ops.linear_attention.operands import Operands
from transnormer_jax.ops.linear_attention.pallas_gpu import make_plan, sweep, unsupported_reason
from transnormer_jax.ops.linear_attention.segments import Segments

LARGE_CASES = [
    Case("head_per_warpgroup", (1, 200, 2, 64, 64), [-0.3, -1e-5], segments=True, initial_state=True),
    Case("columns_per_warpgroup", (1, 131, 2, 128, 128), [-30.0, -1e-3], initial_state=True),
    Case("twice_as_many_key_features", (1, 150, 2, 128, 64), [-2.0, -0.004], segments=True),
    Case("no_decay", (1, 128, 1, 64, 192), None),
]


@pytest.mark.slow
@parametrize([CASES[0], CASES[5], *LARGE_CASES], quick=[CASES[5]])
def test_equals_definition(case: Case):
    assert_equals_definition("pallas_gpu", case, jnp.bfloat16, 5e-3)


@pytest.mark.slow
def test_splits_equal_the_whole(monkeypatch: pytest.MonkeyPatch):
    case = Case("", (1, 310, 1, 64, 64), [-1e-3], segments=True, initial_state=True)
    monkeypatch.setattr(sweeps, "_SHORTEST", 64)
    plan = make_plan(case.shape[:4], 64, 310, reverse=False, problems=1)
    assert (plan.splits, plan.chunks) == (3, 2)  # the last chunk is empty
    assert_equals_definition("pallas_gpu", case, jnp.bfloat16, 5e-3)


@pytest.mark.slow
def test_float16_equals_definition():
    inputs = make_inputs(LARGE_CASES[0], jnp.float16)
    with interpret_kernels():
        out, state = apply(inputs, "pallas_gpu")
    expected_out, expected_state = define(inputs)
    assert out.dtype == jnp.float16
    assert relative_rms(out, expected_out) <= 1e-3
    assert relative_rms(state, expected_state) <= 1e-3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(plgpu.InterpretGPUParams, "on_race"), reason="the emulator of jax 0.11 only prints")
def test_no_race_between_warpgroups():
    # The emulator orders accesses to memory by the kernel's barriers and fences alone, and raises where that leaves two
    # of them unordered. The gradients are a forward sweep, and two reverse ones in one launch.
    q, k, v, d_out = jax.random.normal(jax.random.key(0), (4, 1, 330, 1, 128), jnp.bfloat16)
    segments = Segments(jnp.arange(1, 331)[None], jnp.arange(330)[None] // 100)
    state = jnp.ones((1, 1, 128, 128))
    operands = Operands(q, k, v, -0.1 * jnp.ones(1), state, segments)
    with interpret_kernels(plgpu.InterpretGPUParams(detect_races=True, on_race="raise")):
        grads = pallas_gpu.backward(operands, None, d_out, state, decay_gradient=False, chunk_size=None)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in grads if x is not None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key_dim", "value_dim", "reverse", "segmented"),
    [
        *((128, 128, reverse, segmented) for reverse in (False, True) for segmented in (False, True)),
        (64, 64, False, True),
        (128, 64, True, True),
        (64, 128, False, False),
        (192, 192, True, True),
        (256, 64, False, True),
    ],
)
def test_lowers_for_a_gpu(key_dim: int, value_dim: int, reverse: bool, segmented: bool):
    text = _lowered(Problem(1, 2048, 4, key_dim, value_dim, jnp.bfloat16), reverse, segmented)
    assert text.count("mosaic_gpu") >= 2  # the row is split: the states between splits, then the sweep
    # The kernels take the arrays as they lie: tokens are neither transposed nor padded nor copied.
    assert not re.search(r"stablehlo\.(transpose|pad|concatenate|copy).*bf16", text)


def _lowered(problem: Problem, reverse: bool, segmented: bool) -> str:
    batch, num_tokens, num_heads, key_dim, value_dim, dtype = problem[:6]

    def shape(*sizes: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    qk = shape(batch, num_tokens, num_heads, key_dim, dtype=dtype)
    v = shape(batch, num_tokens, num_heads, value_dim, dtype=dtype)
    state = shape(batch, num_heads, key_dim, value_dim)
    segments = Segments(*[shape(batch, num_tokens, dtype=jnp.int32)] * 2) if segmented else None

    operands = Operands(qk, qk, v, shape(num_heads), state, segments)
    traced = jax.jit(functools.partial(sweep, reverse=reverse)).trace(operands)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("shape", "splits"),
    [((8, 8192, 32, 128), 1), ((1, 8192, 16, 128), 8), ((1, 1024, 1, 128), 2), ((1, 1000, 1, 128), 2)],
)
def test_splits_fill_the_machine(shape: tuple[int, ...], splits: int):
    plan = make_plan(shape, 128, shape[1], reverse=False, problems=1)
    assert plan.splits == splits
    assert plan.splits * plan.chunks * 64 >= shape[1]


@pytest.mark.slow
def test_what_it_refuses():
    hopper = Hardware("gpu", "NVIDIA H200")
    problem = Problem(1, 128, 2, 64, 64, jnp.bfloat16)
    for kind in ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA GH200 480GB"):
        assert unsupported_reason(problem, Hardware("gpu", kind)) is None
    for kind in ("NVIDIA A100-SXM4-80GB", "NVIDIA GB200", "NVIDIA B200"):
        assert "compute capability 9.0" in unsupported_reason(problem, Hardware("gpu", kind))
    assert "float32" in unsupported_reason(problem._replace(dtype=jnp.float32), hopper)
    for new in ({"decay_per_token": True}, {"max_segments": 2}, {"key_heads": 1}):
        assert "one constant decay per head" in unsupported_reason(problem._replace(**new), hopper)
    assert "up to 256" in unsupported_reason(problem._replace(value_dim=320), hopper)
    with interpret_kernels():
        assert unsupported_reason(problem, Hardware("cpu", "cpu")) is None
    q = jnp.zeros((1, 4, 2, 64), jnp.bfloat16)
    with pytest.raises(UserError, match=r"compute capability 9\.0, and this is a cpu"):
        linear_attention(q, q, q, backend="pallas_gpu")
