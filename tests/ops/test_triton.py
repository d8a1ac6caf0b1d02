"""The Triton kernel: interpreted on the CPU it equals the definition, and it compiles for GPUs without spilling."""

import functools
import importlib
import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.definition import CASES, Case, define, make_inputs, parametrize, relative_rms
from tests.ops.emulation import assert_equals_definition
from tests.ops.test_linear_attention import apply_with_gradients
from transnormer_jax.errors import UserError
from transnormer_jax.ops import linear_attention
from transnormer_jax.ops.hardware import Hardware, interpret_kernels
from transnormer_jax.ops.linear_attention import Problem, sweeps
from transnormer_jax.ops.linear_attention.operands import Operands
from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.triton import split, sweep, unsupported_reason
from transnormer_jax.ops.linear_attention.triton.blocks import Blocks, choose_blocks, choose_gradient_blocks
from transnormer_jax.ops.linear_attention.triton.launch import launch, what_is_missing

TRITON = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "0"
needs_triton = pytest.mark.skipif(TRITON == "0", reason="needs the package triton: pip install triton")
needs_interpreter = pytest.mark.skipif(
    tuple(map(int, TRITON.split(".")[:2])) < (3, 8),
    reason="needs triton 3.8 or newer: the interpreter of older ones fails with NumPy 2.4",
)

TWO_VALUE_BLOCKS = Case("two_value_blocks", (1, 70, 1, 128, 80), [-0.02], segments=True, initial_state=True)


@pytest.fixture(autouse=True)
def _one_policy_of_fused_multiply_add(monkeypatch):
    # Triton 3.9 warns that its default will change.
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.mark.slow
@needs_interpreter
@parametrize([CASES[0], CASES[3], CASES[5]], quick=[CASES[0]])
def test_float32_equals_definition(case: Case):
    assert_equals_definition("triton", case, jnp.float32, 2e-6)


@pytest.mark.slow
@needs_interpreter
def test_splits_equal_the_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sweeps, "_SHORTEST", 64)
    assert split(Problem(2, 210, 2, 16, 16), choose_blocks(16, 16, jnp.float32, 90)) == (2, 112)
    # Two heads: the gradient of a single decay may happen to cancel.
    case = Case("two_splits", (2, 210, 2, 16, 16), [-0.2, -1e-3], segments=True, initial_state=True)
    assert_equals_definition("triton", case, jnp.float32, 2e-6)


@pytest.mark.slow
@needs_interpreter
@pytest.mark.parametrize(
    ("case", "dtype"), [(TWO_VALUE_BLOCKS, jnp.bfloat16), (CASES[0], jnp.float16)], ids=["bfloat16", "float16"]
)
def test_half_precision_equals_definition(case: Case, dtype):
    assert_equals_definition("triton", case, dtype, 5e-3)


@pytest.mark.slow
@needs_interpreter
def test_gradients_that_are_not_fused():
    case = Case("not_fused", (1, 40, 1, 80, 16), [-0.1], segments=True, initial_state=True)
    assert_equals_definition("triton", case, jnp.bfloat16, 5e-3)


@pytest.mark.parametrize("num_tokens", [1, 511, 8192, 8200, 131072, 3_000_000])
@pytest.mark.parametrize("programs", [1, 32, 132, 133, 512])
def test_splits_cover_the_row_and_fill_the_gpu(num_tokens: int, programs: int):
    problem = Problem(programs, num_tokens, 1, 64, 4096, jnp.bfloat16)
    splits, tokens = split(problem, Blocks(64, 64, 4096, 4, 2))
    assert (splits - 1) * tokens < num_tokens <= splits * tokens
    assert tokens % 64 == 0
    # The offset of the last token of the last chunk, in 32 bits.
    assert (tokens + 64) * 4096 <= 2**31
    if num_tokens <= 500_000:
        assert splits == 1 or splits * programs <= 264
        assert splits == 1 or tokens >= 512
    if num_tokens == 131072:
        assert splits * programs > 132 or tokens < 1024


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("compute_capability", "key_dim", "value_dim", "documents"),
    [
        *((90, *sizes, True) for sizes in ((64, 64), (128, 128), (128, 64), (64, 128))),
        (90, 128, 128, False),  # documents take registers on top
        *((80, *sizes, True) for sizes in ((64, 64), (128, 128))),
    ],
)
def test_registers_do_not_spill(tmp_path, compute_capability: int, key_dim: int, value_dim: int, documents: bool):
    from transnormer_jax.ops.linear_attention.triton import kernels

    # Forward and reverse: with K and V exchanged, these are the three calls of the gradient.
    blocks = choose_blocks(key_dim, value_dim, jnp.bfloat16, compute_capability)
    for reverse in (False, True):
        for output in (False, True):
            constants = {"K": key_dim, "V": value_dim, "REVERSE": reverse, "DOCUMENTS": documents, "OUTPUT": output}
            (tmp_path / "cubin").write_bytes(machine_code(kernels.sweep, compute_capability, blocks, constants))
            usage = resource_usage(tmp_path / "cubin")
            assert usage["STACK"] == 0, (constants, usage)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(("compute_capability", "documents"), [(80, True), (90, True), (90, False)])
def test_registers_of_the_gradient_do_not_spill(tmp_path, compute_capability: int, documents: bool):
    from transnormer_jax.ops.linear_attention.triton.kernels import sweep_gradients

    blocks = choose_gradient_blocks(64, 64, jnp.bfloat16, compute_capability)
    constants = {"K": 64, "V": 64, "DOCUMENTS": documents}
    (tmp_path / "cubin").write_bytes(machine_code(sweep_gradients, compute_capability, blocks, constants))
    assert resource_usage(tmp_path / "cubin")["STACK"] == 0


def machine_code(kernel, compute_capability: int, blocks: Blocks, constants: dict[str, int]) -> bytes:
    """Machine code of the kernel for bfloat16 arrays of 32 heads."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = constants | {"HEADS": 32, "BLOCK_K": blocks.key, "BLOCK_V": blocks.value, "CHUNK": blocks.chunk}

    def type_of(name: str) -> str:
        if name in constants:
            return "constexpr"
        if not name.endswith("_ptr"):
            return "i32"
        if name in ("position_ptr", "index_ptr"):
            return "*i32"
        return "*fp32" if "state" in name or "decay" in name else "*bf16"

    signature = {p.name: type_of(p.name) for p in kernel.params}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", compute_capability, 32),
        options={"num_warps": blocks.num_warps, "num_stages": blocks.num_stages},
    )
    # In bytes, what two programs may have on a multiprocessor of an H100, and one on any GPU from Ampere on.
    assert compiled.metadata.shared <= (227 * 1024 // 2 if compute_capability == 90 else 99 * 1024)
    return compiled.asm["cubin"]


def resource_usage(cubin: pathlib.Path) -> dict[str, int]:
    """What a program takes: registers (REG), bytes of stack, where spilled registers go (STACK), and more."""
    from triton.backends import nvidia

    cuobjdump = pathlib.Path(*nvidia.__path__, "bin", "cuobjdump")
    listing = subprocess.run([cuobjdump, "-res-usage", cubin], capture_output=True, check=True, text=True).stdout
    return {name: int(count) for name, count in re.findall(r"(\w+):(\d+)", listing)}


@pytest.mark.parametrize(("old", "keyword"), [(True, "out_shape"), (False, "out_type")])
def test_launch_speaks_to_either_version_of_jax_triton(monkeypatch, old: bool, keyword: str):
    calls = []

    # The signatures of jax-triton 0.3.1 and 0.4.1.
    def triton_call_0_3(*args, kernel, out_shape, grid, num_warps=None, num_stages=None, **metaparams):
        calls.append(("out_shape", args, out_shape, grid, metaparams))
        return list(args[:1])

    def triton_call_0_4(*args, kernel, out_type=None, grid, num_warps=None, num_stages=None, **kwargs):
        calls.append(("out_type", args, out_type, grid, kwargs))
        return list(args[:1])

    module = types.ModuleType("jax_triton")
    module.triton_call = triton_call_0_3 if old else triton_call_0_4
    monkeypatch.setitem(sys.modules, "jax_triton", module)
    x, out = jnp.zeros(3), jax.ShapeDtypeStruct((2,), jnp.float32)
    settings = {"programs": 7, "num_warps": 4, "num_stages": 2, "compute_capability": 90, "constants": {"K": 64}}
    [result] = launch(None, [x, 5], [out], **settings)
    assert result is x
    assert calls == [(keyword, (x, 5), [out], (7,), {"K": 64, "compute_capability": 90})]


@pytest.mark.skipif(
    importlib.util.find_spec("jax_triton") is None or importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="needs the packages jax-triton and jax-cuda13-plugin: in a clone, pip install -e '.[cuda]'",
)
@pytest.mark.parametrize(("batch", "kernels"), [(8, 1), (1, 2)])
@pytest.mark.parametrize("reverse", [False, True])
def test_lowers_for_a_gpu(monkeypatch, batch: int, kernels: int, reverse: bool):
    module = importlib.import_module("transnormer_jax.ops.linear_attention.triton")
    monkeypatch.setattr(module, "compute_capability", lambda hardware: 90)
    tokens = jax.ShapeDtypeStruct((batch, 2048, 16, 128), jnp.bfloat16)
    log_decay = jax.ShapeDtypeStruct((16,), jnp.float32)
    state = jax.ShapeDtypeStruct((batch, 16, 128, 128), jnp.float32)
    segments = Segments(*[jax.ShapeDtypeStruct((batch, 2048), jnp.int32)] * 2)
    function = jax.jit(functools.partial(sweep, reverse=reverse))
    operands = Operands(tokens, tokens, tokens, log_decay, state, segments)
    lowered = function.trace(operands).lower(lowering_platforms=("cuda",))
    assert len(re.findall(r"custom_call @triton_kernel_call", lowered.as_text())) == kernels


def test_refusals_say_why():
    problem = Problem(1, 64, 2, 64, 64, jnp.bfloat16)
    here = Hardware("cpu", "cpu")
    assert "compute capability 8.0 or more, and this is a cpu" in unsupported_reason(problem, here)
    assert "compiles only for the device of this machine, a cpu, not for a NVIDIA H200" in unsupported_reason(
        problem, Hardware("gpu", "NVIDIA H200")
    )
    x = jnp.zeros((1, 4, 2, 8))
    with pytest.raises(UserError, match="backend 'triton' cannot be used here: it needs an NVIDIA GPU"):
        linear_attention(x, x, x, backend="triton")


@needs_triton
def test_refuses_heads_that_are_too_wide():
    with interpret_kernels():
        assert unsupported_reason(Problem(1, 64, 2, 256, 64), Hardware("cpu", "cpu")) is None
        per_token = Problem(1, 64, 2, 64, 64, decay_per_token=True)
        assert "one constant decay per head" in unsupported_reason(per_token, Hardware("cpu", "cpu"))
        assert "K and V up to 256, and they are 64 and 272" in unsupported_reason(
            Problem(1, 64, 2, 64, 272), Hardware("cpu", "cpu")
        )


def test_says_which_package_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with interpret_kernels():
        words = unsupported_reason(Problem(1, 1, 1, 8, 8), Hardware("cpu", "cpu"))
        assert "it needs the package triton: in a clone, pip install -e '.[cuda]'" in words


def test_says_which_version_works(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.4.1")
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    assert "pip install jax-triton==0.3.1" in what_is_missing(Hardware("gpu", "NVIDIA H200"))
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    assert what_is_missing(Hardware("gpu", "NVIDIA H200")) is None


@pytest.mark.slow
@needs_interpreter
def test_rubbish_in_padding_is_invisible():
    # Weights of tokens outside the row are zero, not infinite: a strong decay would show it.
    inputs = make_inputs(Case("padding", (1, 40, 1, 16, 16), [-80.0]), jnp.bfloat16)
    ids = np.zeros((1, 40), np.int32)
    ids[:, 15:30] = 1
    inputs = inputs._replace(segment_ids=ids)
    with interpret_kernels():
        (out, state), grads = apply_with_gradients(inputs, "triton")
    assert np.isfinite(np.asarray(out, np.float32)).all()
    assert not np.asarray(out)[ids == 0].any()
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads.values())
    expected_out, expected_state = define(inputs)
    assert relative_rms(out, expected_out) <= 5e-3
    assert relative_rms(state, expected_state) <= 5e-3
