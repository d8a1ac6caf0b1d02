"""Linear attention on Hopper GPUs: one Mosaic GPU kernel, which reads and writes each token once."""

import re
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.hardware import Hardware, interpret_mode
from transnormer_jax.ops.linear_attention.operands import Gradients, Operands, Problem
from transnormer_jax.ops.linear_attention.pallas_gpu.kernel import CHUNK, COLUMNS, Plan, Sweep, launch
from transnormer_jax.ops.linear_attention.pallas_gpu.weights import chunk_positions
from transnormer_jax.ops.linear_attention.sweeps import (
    gradients_by_sweeps,
    split_row,
    split_states,
    transpose,
    unsupported_problem,
)

_ROW_TILE = 8  # Mosaic's copies of tiled arrays want a multiple of this many rows
_HOPPER = re.compile(r"\bG?H(20|100|200|800)\b")
_MULTIPROCESSORS = 132  # of an H100 SXM and of an H200
_SHARED_MEMORY = 227 * 1024 - 1024  # bytes a block may use at compute capability 9.0, less what barriers take
_MAX_STAGES = 4


def unsupported_reason(problem: Problem, hardware: Hardware) -> str | None:
    """Why this backend cannot run the problem on the hardware, as half a sentence; None where it can."""
    hopper = hardware.platform == "gpu" and _HOPPER.search(hardware.kind)
    if not hopper and not (hardware.platform == "cpu" and interpret_mode()):
        return f"it needs an NVIDIA GPU of compute capability 9.0, and this is a {hardware.kind}"
    if problem.dtype == jnp.float32:
        return "it multiplies in 16 bits, and the arrays are float32"
    return unsupported_problem(problem)


def forward(operands: Operands, **_: Any) -> tuple[Float[Array, "B N H V"], Float[Array, "B H K V"], None]:
    """Linear attention with float32 sums.

    `chunk_size` is not used: a chunk is 64 tokens, the height of a wgmma tile. Rows that are not a multiple of 8 tokens
    with K and V of a multiple of 64 are padded first.
    """
    return *sweep(operands, reverse=False), None


def backward(
    operands: Operands,
    saved: None,
    d_out: Float[Array, "B N H V"],
    d_state: Float[Array, "B H K V"],
    *,
    decay_gradient: bool,
    **_: Any,
) -> Gradients:
    """Three sweeps, two of them in one launch where K = V: they have the same states but for a transpose."""
    del saved

    def fused(*problems: Operands) -> tuple[Array, Array, Array]:
        (dk, dv), d_initial = _sweep_all(problems, reverse=True)
        return dk, dv, d_initial

    square = operands.k.shape == operands.v.shape
    options: dict[str, Any] = {"decay_gradient": decay_gradient, "fused": fused if square else None}
    return gradients_by_sweeps(sweep, operands, d_out, d_state, **options)


def sweep(operands: Operands, *, reverse: bool) -> tuple[Float[Array, "B N H V"], Float[Array, "B H K V"]]:
    """Output and final state; with `reverse`, time runs from the last token to the first."""
    (out,), last = _sweep_all([operands], reverse=reverse)
    return out, last


def _sweep_all(problems: Any, *, reverse: bool) -> tuple[list[Array], Array]:
    """The outputs of problems of one shape, and the final state of the last; the other has its transpose."""
    *_, operands = problems
    num_tokens, key_dim, value_dim = operands.v.shape[1], operands.k.shape[3], operands.v.shape[3]
    sweeps = [Sweep(*(_pad(x, 1, _ROW_TILE, 1, COLUMNS) for x in problem[:3])) for problem in problems]
    operands = operands._replace(state=_pad(operands.state, 1, 1, COLUMNS, COLUMNS))
    _, k, v, _ = sweeps[-1]
    plan = make_plan(k.shape, v.shape[3], num_tokens, reverse=reverse, problems=len(problems))
    positions = None
    if operands.segments is not None:
        positions = chunk_positions(operands.segments, plan.splits * plan.chunks)

    def kv_sums() -> Array:
        return launch([Sweep(None, k, v)], operands.log_decay, positions, plan)[1]

    states = split_states(operands, plan.splits, plan.chunks * CHUNK, kv_sums, reverse=reverse)
    sweeps = [*(x._replace(states=transpose(states)) for x in sweeps[:-1]), sweeps[-1]._replace(states=states)]
    outs, last = launch(sweeps, operands.log_decay, positions, plan)
    return [out[:, :num_tokens, :, :value_dim] for out in outs], last[:, :, 0, :key_dim, :value_dim]


def _pad(x: Array, *multiples: int) -> Array:
    """Zeros at the end of each axis, up to a multiple."""
    padding = [(0, -size % multiple) for size, multiple in zip(x.shape, multiples, strict=True)]
    return jnp.pad(x, padding) if any(end for _, end in padding) else x


def make_plan(key_shape: tuple[int, ...], value_dim: int, num_tokens: int, *, reverse: bool, problems: int) -> Plan:
    """The plan of a launch of `problems` calls with k [B, _, H, K], K and V multiples of 64, and rows of N tokens."""
    batch, _, num_heads, key_dim = key_shape
    if value_dim % (2 * COLUMNS) == 0 and key_dim <= 192:
        warpgroups, heads = 2, 1
    elif value_dim == COLUMNS and num_heads % 2 == 0 and key_dim <= 128:
        warpgroups, heads = 2, 2
    else:
        warpgroups, heads = 1, 1
    # In bytes: q, k, v and positions of a stage; then the state, the scaled values and the output.
    tile = CHUNK * COLUMNS * 2
    per_stage = 2 * heads * CHUNK * key_dim * 2 + warpgroups * tile + 4 * CHUNK * 4
    stages = (_SHARED_MEMORY - warpgroups * (key_dim * COLUMNS * 2 + 2 * tile)) // per_stage
    blocks = problems * batch * num_heads * value_dim // (COLUMNS * warpgroups)
    splits, tokens = split_row(num_tokens, CHUNK, blocks, _MULTIPROCESSORS)
    return Plan(num_tokens, warpgroups, heads, min(stages, _MAX_STAGES), splits, tokens // CHUNK, reverse)
