"""The schedules of TPU kernels: that they are counted right, and that the kernels keep within their bounds.

A dense matrix product is the measure: its FLOPs are known, so they say how long the matrix units must be busy.
"""

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from benchmarks import tpu_schedule
from benchmarks.tpu_compiler import (
    GENERATIONS,
    Compiled,
    Job,
    Kernel,
    compile_programs,
    copied_bytes,
    find_libtpu,
    libtpu_version,
)
from benchmarks.tpu_schedule import PROGRAMS, Program, Settings, program_job, rows_of
from tests import commands
from tests.benchmarks.runs import run_benchmark
from tests.benchmarks.schedules import SCHEDULE, replayed
from tests.commands import assert_fails
from transnormer_jax.errors import UserError

_TOKENS, _FEATURES = 1 << 17, 512


# The processes of the compiler import these by name.


def build_product(generation: str = "", rows: int = 512) -> Any:
    """x [2^17, 512] @ w [512, 512] in bfloat16, `rows` rows per step of the grid."""
    del generation

    def kernel(x_ref, w_ref, out_ref):
        out_ref[...] = jnp.dot(x_ref[...], w_ref[...], preferred_element_type=jnp.float32).astype(jnp.bfloat16)

    square = pl.BlockSpec((_FEATURES, _FEATURES), lambda i: (0, 0))
    tokens = pl.BlockSpec((rows, _FEATURES), lambda i: (i, 0))
    x, w = (jax.ShapeDtypeStruct((n, _FEATURES), jnp.bfloat16) for n in (_TOKENS, _FEATURES))
    call = pl.pallas_call(
        kernel,
        grid=(_TOKENS // rows,),
        in_specs=[tokens, square],
        out_specs=tokens,
        out_shape=x,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        name="product",
    )
    return call, (x, w)


def build_powers() -> Any:
    """x_n w^3 for blocks x_n [128, 128], and x_n w^4 for every fourth of them: a loop, and a condition."""

    def kernel(x_ref, w_ref, out_ref):
        def times_w(_: Any, x: jax.Array) -> jax.Array:
            return jnp.dot(x.astype(jnp.bfloat16), w_ref[...], preferred_element_type=jnp.float32)

        out_ref[...] = jax.lax.fori_loop(0, 3, times_w, x_ref[...])

        @pl.when(pl.program_id(1) == 3)
        def _():
            out_ref[...] = times_w(0, out_ref[...])

    x = jax.ShapeDtypeStruct((8 * 4 * 128, 128), jnp.float32)
    w = jax.ShapeDtypeStruct((128, 128), jnp.bfloat16)
    block = pl.BlockSpec((128, 128), lambda b, n: (4 * b + n, 0))
    call = pl.pallas_call(
        kernel,
        grid=(8, 4),
        in_specs=[block, pl.BlockSpec((128, 128), lambda b, n: (0, 0))],
        out_specs=block,
        out_shape=x,
        name="powers",
    )
    return call, (x, w)


def build_between_copies(transposed: bool) -> Any:
    """A kernel on [8, 4, 16384, 128] or on [8, 16384, 4 * 128], of what lies in HBM as the latter, 268 MB."""

    def kernel(x_ref, out_ref):
        out_ref[...] = 2 * x_ref[...]

    def function(x: jax.Array) -> jax.Array:
        if transposed:
            x = jnp.swapaxes(x.reshape(8, 16384, 4, 128), 1, 2).reshape(32, 16384, 128)
        block = pl.BlockSpec((1, 512, x.shape[2]), lambda b, n: (b, n, 0))
        return pl.pallas_call(kernel, grid=(x.shape[0], 32), in_specs=[block], out_specs=block, out_shape=x)(x)

    return function, (jax.ShapeDtypeStruct((8, 16384, 512), jnp.float32),)


def build_too_large() -> Any:
    """A kernel with more scratch memory than any chip has."""

    def kernel(x_ref, out_ref, scratch_ref):
        scratch_ref[:8] = x_ref[...]
        out_ref[...] = scratch_ref[:8]

    x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    return pl.pallas_call(kernel, out_shape=x, scratch_shapes=[pltpu.VMEM((1 << 20, 128), jnp.float32)]), (x,)


def build_deadly() -> Any:
    os.abort()


def _job(generation: str, build: Callable[..., Any], **arguments: Any) -> Job:
    return Job(generation, f"{__name__}:{build.__name__}", arguments)


# Program, pass, generation, the largest ratio of schedule to HBM, and of bytes to the least that must move.
_BOUNDS = (
    ("forward", "forward", "v5e", 0.75, 1.05),
    ("forward", "forward", "v5p", 0.9, 1.05),
    ("forward", "forward", "v6e", 1.0, 1.05),
    ("forward_64", "forward", "v5e", 1.1, 1.05),
    ("training", "backward", "v5e", 1.1, 1.25),
)
_PROJECTIONS = Program(projections=True, training=True, heads=8)
_OTHER_SIZES = (("long_64_bfloat16", "v4"), ("long_192_bfloat16", "tpu7x"))

_MEASURED = ("v5e", "v5p")  # of one core and of two

_JOBS = {
    **{("product", name): _job(name, build_product) for name in _MEASURED},
    # One kind of delay slots each.
    **{("large blocks", name): _job(name, build_product, rows=1024) for name in ("v4", "v5e")},
    **{("powers", name): _job(name, build_powers) for name in ("v4", "v5e")},
    **{
        ("copies", transposed): _job("v5e", build_between_copies, transposed=transposed) for transposed in (True, False)
    },
    **{(program, name): program_job(name, PROGRAMS[program]) for program, _, name, _, _ in _BOUNDS},
    **{(program, name): program_job(name, PROGRAMS[program]) for program, name in _OTHER_SIZES},
    ("projections", "v5e"): program_job("v5e", _PROJECTIONS),
    ("too large", "v5e"): _job("v5e", build_too_large),
    # The compiler must be started again for what follows.
    ("deadly", "v5e"): _job("v5e", build_deadly),
    ("after", "v5e"): _job("v5e", build_between_copies, transposed=False),
}


@pytest.fixture(scope="module")
def compiled(libtpu) -> dict[tuple[str, Any], Compiled]:
    """Every program of these tests, each compiled once."""
    return dict(zip(_JOBS, compile_programs([*_JOBS.values()]), strict=True))


@pytest.mark.slow
def test_the_matrix_units_are_busy_for_as_long_as_the_flops_of_a_product_need(compiled):
    flops, x_bytes, w_bytes = 2 * _TOKENS * _FEATURES**2, 2 * _TOKENS * _FEATURES, 2 * _FEATURES**2
    for name in _MEASURED:
        generation = GENERATIONS[name]
        product = compiled["product", name]
        assert product.failed is None
        assert product.copied_bytes == {}
        (kernel,) = product.kernels
        assert len(kernel.cores) == generation.cores
        assert kernel.vmem_bytes < generation.info.vmem_capacity_bytes
        for core in kernel.cores:
            assert core.grid == (_TOKENS // 512 // generation.cores,)
            share = flops / generation.cores / core.cycles / generation.flops_per_cycle
            assert core.utilization["MATMUL"] == pytest.approx(share, rel=1e-9)
            assert 0.5 < share < 1
            assert core.written_bytes == x_bytes / generation.cores
            # Where there is room, XLA keeps w in the memory on the chip.
            assert core.read_bytes - core.written_bytes in (0, w_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4", "v5e"])
def test_empty_bundles_take_time(compiled, name):
    """Without them a product would be faster than the published peak."""
    (kernel,) = compiled["large blocks", name].kernels
    core = kernel.cores[0]
    assert core.utilization["MATMUL"] < 1
    assert core.utilization["MATMUL"] * core.cycles / core.issued > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4", "v5e"])
def test_loops_and_conditions_run_as_often_as_they_should(compiled, name):
    """32 steps of 3 products, and 8 more: as before, they are seen in the matrix units."""
    (kernel,) = compiled["powers", name].kernels
    first, *others = kernel.cores
    flops = 2 * 128**3 * (32 * 3 + 8)
    share = flops / first.cycles / GENERATIONS[name].flops_per_cycle
    assert first.utilization["MATMUL"] == pytest.approx(share, rel=1e-9)
    assert first.grid == (8, 4)
    assert first.written_bytes == 4 * 8 * 4 * 128 * 128
    assert first.unknown_branches == 0
    # One product in four steps is not part of the loop.
    assert 0.9 < first.loop_cycles * 32 / first.cycles < 1
    # This grid is not parallel.
    assert all(core.written_bytes == 0 and core.cycles < 100 for core in others)


@pytest.mark.slow
def test_copies_around_a_kernel_are_found(compiled):
    with_copy, without = compiled["copies", True], compiled["copies", False]
    assert without.failed is None
    assert without.copied_bytes == {}
    # How often it is copied, and how much of it within the memory on the chip, is for XLA to say.
    assert sum(with_copy.copied_bytes.values()) >= 4 * 8 * 16384 * 512


@pytest.mark.slow
def test_what_does_not_compile_says_why_and_the_next_is_compiled(compiled):
    too_large = compiled["too large", "v5e"]
    assert "vmem" in (too_large.failed or "")
    assert "the compiler died" in (compiled["deadly", "v5e"].failed or "")
    assert compiled["after", "v5e"].failed is None
    (row,) = rows_of("v5e", "large", None, too_large)
    assert row["failed"] == too_large.failed


@pytest.mark.slow
def test_a_run_writes_what_it_finds(compiled, tmp_path, monkeypatch):
    products = [compiled["product", "v5e"], compiled["product", "v5p"]]
    monkeypatch.setattr(tpu_schedule, "compile_programs", lambda jobs: products)
    build = f"{__name__}:build_product"
    settings = Settings(("v5e", "v5p"), build=build)
    summary, record = run_benchmark(tpu_schedule, settings, tmp_path / "schedule.json", plot=False)
    assert "libtpu" in record["environment"]
    assert record["generations"]["v5p"]["cores"] == 2
    assert record["generations"]["v5e"]["clock_hertz"] == pytest.approx(1.5e9, rel=0.01)
    e, p = record["rows"]
    assert (e["generation"], e["pass"], p["generation"]) == ("v5e", "forward", "v5p")
    assert e["bytes"] == 2 * 2 * _TOKENS * _FEATURES + 2 * _FEATURES**2
    assert e["hbm_ms"] == pytest.approx(1e3 * e["bytes"] / 820e9)
    assert e["schedule_ms"] == pytest.approx(1e3 * e["cycles"] / record["generations"]["v5e"]["clock_hertz"])
    assert e["kernels"][0]["name"].startswith("product")
    ratios = {row["generation"]: round(row["schedule_over_hbm"], 3) for row in record["rows"]}
    assert summary == {f"{build} forward": ratios}


def _rows(compiled: dict[tuple[str, Any], Compiled], name: str, program: Program, generation: str) -> list[dict]:
    found = compiled[name, generation]
    assert found.failed is None
    limit = GENERATIONS[generation].info.vmem_capacity_bytes
    assert all(kernel.vmem_bytes < limit for kernel in found.kernels)
    return [*rows_of(generation, "", program, found)]


@pytest.mark.slow
@pytest.mark.parametrize(("program", "role", "generation", "ratio", "over_least"), _BOUNDS)
def test_the_schedule_stays_within_its_bounds(compiled, program, role, generation, ratio, over_least):
    (row,) = [row for row in _rows(compiled, program, PROGRAMS[program], generation) if row["pass"] == role]
    assert row["schedule_over_hbm"] <= ratio
    assert 1 <= row["bytes_over_least"] <= over_least


@pytest.mark.slow
def test_nothing_is_copied_between_the_projections_and_the_kernels(compiled):
    rows = _rows(compiled, "projections", _PROJECTIONS, "v5e")
    assert [row["pass"] for row in rows] == ["forward", "backward"]
    assert rows[0]["copied_bytes"] == {}


@pytest.mark.slow
@pytest.mark.parametrize(("program", "generation"), _OTHER_SIZES)
def test_other_sizes_compile_for_other_generations(compiled, program, generation):
    rows = _rows(compiled, program, PROGRAMS[program], generation)
    assert [row["pass"] for row in rows] == ["forward", "backward"]


def test_transposed_calls_of_the_forward_kernel_belong_to_the_backward_pass():
    core = dataclasses.replace(replayed(SCHEDULE.replace("/*size_in_granules=*/%s6_s2", "7")), written_bytes=0)
    names = ("linear_attention.1", "transpose_jvp_linear_attention__.1", "linear_attention_backward.1")
    compiled = Compiled(tuple(Kernel(name, 1 << 20, (core,)) for name in names))
    forward, backward = rows_of("v5e", "training", PROGRAMS["training"], compiled)
    assert [kernel["name"] for kernel in forward["kernels"]] == [names[0]]
    assert [kernel["name"] for kernel in backward["kernels"]] == [*names[1:]]
    assert backward["cycles"] == 2 * forward["cycles"]
    assert backward["schedule_over_hbm"] == pytest.approx(forward["schedule_over_hbm"])
    (none,) = rows_of("v5e", "nothing", None, Compiled())
    assert none["failed"] == "it has no Pallas kernel"


_HLO = """
%only_moves (p.1: bf16[8,128]) -> bf16[128,8] {
  %p.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %transpose.1 = bf16[128,8]{1,0} transpose(%p.1), dimensions={1,0}
}

%computes (p.2: bf16[8,128]) -> bf16[8,128] {
  %p.2 = bf16[8,128]{1,0} parameter(0)
  %copy.9 = bf16[8,128]{0,1} copy(%p.2)
  ROOT %add.1 = bf16[8,128]{0,1} add(%copy.9, %copy.9)
}

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %moved = bf16[128,8]{1,0} fusion(%x), kind=kLoop, calls=%only_moves
  %parts = (bf16[8,64]{1,0:T(8,128)S(1)}, bf16[8,64]{1,0}) fusion(%x), kind=kLoop, calls=%only_moves
  %computed = bf16[8,128]{0,1} fusion(%x), kind=kLoop, calls=%computes
  %prefetch = (bf16[8,128]{1,0:T(8,128)S(1)}, bf16[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %elsewhere = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%y)
  %free = bf16[1024]{0} bitcast(%x)
  ROOT %copy.1 = bf16[8,128]{1,0} copy(%computed)
}
"""


def test_only_moves_within_hbm_are_copies():
    assert copied_bytes(_HLO) == {"moved": 2048, "parts": 1024, "elsewhere": 4096, "copy.1": 2048}


def test_a_missing_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/nowhere/libtpu.so")
    with pytest.raises(UserError, match=r"no TPU compiler at /nowhere/libtpu\.so: run `pip install .* libtpu`"):
        next(compile_programs([Job("v5e", f"{__name__}:build_product")]))


def test_the_compiler_is_found_beside_the_interpreter(monkeypatch, tmp_path):
    library = tmp_path / "libtpu" / "libtpu" / "libtpu.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (tmp_path / "libtpu" / "libtpu-1.2.3.dist-info").mkdir()
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert find_libtpu() == library
    assert libtpu_version() == "1.2.3"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generations": ("v5",)}, "unknown name 'v5' in generations"),
        ({"programs": ("trainin",)}, "unknown name 'trainin' in programs: did you mean 'training'"),
        ({"programs": ()}, "programs is empty"),
        ({"build": "module.function"}, "give module:function"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Settings(**settings)


@pytest.mark.slow
def test_a_bad_command_line_ends_in_one_sentence():
    assert_fails(commands.run("-m", "benchmarks.tpu_schedule", "--generations=v1"), "unknown name 'v1' in generations")


def test_bandwidths_are_those_that_are_published():
    """Of a chip, https://cloud.google.com/tpu/docs/v5p; jax's own table has another for it."""
    generation = GENERATIONS["v5p"]
    assert generation.cores * generation.hbm_bytes_per_second == pytest.approx(2765e9, rel=0.005)
