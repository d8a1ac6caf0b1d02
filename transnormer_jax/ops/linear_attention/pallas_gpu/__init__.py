"""Linear attention on Hopper GPUs: one Mosaic GPU kernel, which reads and writes each token once.

The kernel is `sweep.py`. Where B * H is too small to fill the GPU, the rows are cut into parts that are swept at the
same time, and a first pass over k and v finds the states between them. The gradient is three sweeps, two of
them in one launch.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from transnormer_jax.ops.hardware import Hardware, interpret_mode
from transnormer_jax.ops.linear_attention.chunked import step_gradient
from transnormer_jax.ops.linear_attention.decay import states_between
from transnormer_jax.ops.linear_attention.operands import Gradients, Operands, Problem, unless_plain
from transnormer_jax.ops.linear_attention.pallas_gpu.places import chunk_places
from transnormer_jax.ops.linear_attention.pallas_gpu.plan import CHUNK, COLUMNS, Plan, make_plan
from transnormer_jax.ops.linear_attention.pallas_gpu.sweep import Sweep, sweep, sweep_states
from transnormer_jax.ops.linear_attention.segments import Segments

_ROW_TILE = 8  # Mosaic's copies of tiled arrays want a multiple of this many rows
_HOPPER = re.compile(r"\bG?H(20|100|200|800)\b")


def unsupported_reason(problem: Problem, hardware: Hardware) -> str | None:
    """Why this backend cannot run the problem on the hardware, as half a sentence; None where it can."""
    hopper = hardware.platform == "gpu" and _HOPPER.search(hardware.kind)
    if not hopper and not (hardware.platform == "cpu" and interpret_mode()):
        return f"it needs an NVIDIA GPU of compute capability 9.0, and this is a {hardware.kind}"
    if problem.dtype == jnp.float32:
        return "it multiplies in 16 bits, and the arrays are float32"
    dims = problem.key_dim, problem.value_dim  # the gradient exchanges them
    if max(dims) > 256:
        return f"it takes K and V up to 256, and they are {dims[0]} and {dims[1]}"
    return unless_plain(problem)


def forward(
    operands: Operands,
    *,
    chunk_size: int | None,
    save: bool,
) -> tuple[Float[Array, "B N H V"], Float[Array, "B H K V"], None]:
    """Linear attention of bfloat16 or float16 arrays; `Backend` explains the arguments.

    Accumulates in float32. `chunk_size` is not used: a chunk is 64 tokens, the height of a wgmma tile. Rows of a
    multiple of 8 tokens with K and V of a multiple of 64 are read where they lie; others are padded first.
    """
    del chunk_size, save
    return *sweep_rows(operands, reverse=False), None


def sweep_rows(
    operands: Operands,
    *,
    reverse: bool,
) -> tuple[Float[Array, "B N H V"], Float[Array, "B H K V"]]:
    """Output and final state; with `reverse`, time runs from the last token to the first."""
    q, k, v, log_decay, state, segments = operands
    num_tokens, key_dim, value_dim = k.shape[1], k.shape[3], v.shape[3]
    q, k, v, state = _pad_tokens(q), _pad_tokens(k), _pad_tokens(v), _pad(state, (1, 1, COLUMNS, COLUMNS))
    plan = make_plan(k.shape, v.shape[3], num_tokens)
    places = None if segments is None else chunk_places(segments, plan)
    states = _states_of_parts(k, v, log_decay, state, segments, places, plan, reverse=reverse)
    (out,), left = sweep([Sweep(q, k, v, states)], log_decay, places, plan, reverse=reverse, interpret=_interpreter())
    return out[:, :num_tokens, :, :value_dim], left[:, :, 0, :key_dim, :value_dim]


def backward(
    operands: Operands,
    saved: None,
    d_out: Float[Array, "B N H V"],
    d_state: Float[Array, "B H K V"],
    *,
    decay_gradient: bool,
    chunk_size: int | None,
) -> Gradients:
    """Gradients of q, k, v and the state by three sweeps, two of them in one launch where K = V.

    Output and final state are linear in each of q, k, v and the state, and the transpose of a sweep is a sweep in the
    other direction (in the manner of arXiv 2405.17381, Algorithm 6). dk and dv read the same q and dout in the same
    order, and the states of one are those of the other, transposed.
    """
    del saved, chunk_size
    d_steps = step_gradient(operands, d_out, d_state) if decay_gradient else None
    q, k, v, log_decay, state, segments = operands
    dq, _ = sweep_rows(Operands(d_out, v, k, log_decay, _transpose(state), segments), reverse=False)
    if k.shape != v.shape:
        dk, _ = sweep_rows(Operands(v, d_out, q, log_decay, _transpose(d_state), segments), reverse=True)
        dv, d_initial = sweep_rows(Operands(k, q, d_out, log_decay, d_state, segments), reverse=True)
        return Gradients(dq, dk, dv, d_steps, d_initial)

    num_tokens, head_dim = k.shape[1], k.shape[3]
    q, k, v, d_out = _pad_tokens(q), _pad_tokens(k), _pad_tokens(v), _pad_tokens(d_out)
    d_state = _pad(d_state, (1, 1, COLUMNS, COLUMNS))
    plan = make_plan(k.shape, v.shape[3], num_tokens, problems=2)
    places = None if segments is None else chunk_places(segments, plan)
    states = _states_of_parts(q, d_out, log_decay, d_state, segments, places, plan, reverse=True)
    sweeps = [Sweep(v, d_out, q, _transpose(states)), Sweep(k, q, d_out, states)]
    (dk, dv), left = sweep(sweeps, log_decay, places, plan, reverse=True, interpret=_interpreter())
    dk, dv = (x[:, :num_tokens, :, :head_dim] for x in (dk, dv))
    return Gradients(dq, dk, dv, d_steps, left[:, :, 0, :head_dim, :head_dim])


def _transpose(states: Float[Array, "*B K V"]) -> Float[Array, "*B V K"]:
    return jnp.swapaxes(states, -1, -2)


def _interpreter() -> Any:
    mode: Any = interpret_mode()
    return plgpu.InterpretGPUParams() if mode and not isinstance(mode, plgpu.InterpretGPUParams) else mode


def _pad_tokens(x: Float[Array, "B N H K"]) -> Float[Array, "B _ H _"]:
    return _pad(x, (1, _ROW_TILE, 1, COLUMNS))


def _pad(x: Array, multiples: Sequence[int]) -> Array:
    """Zeros at the end of each axis, up to a multiple."""
    padding = [(0, -size % multiple) for size, multiple in zip(x.shape, multiples, strict=True)]
    return jnp.pad(x, padding) if any(end for _, end in padding) else x


def _states_of_parts(
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, " H"],
    state: Float[Array, "B H K V"],
    segments: Segments | None,
    places: Int[Array, "B M 4 C"] | None,
    plan: Plan,
    *,
    reverse: bool,
) -> Float[Array, "B H P K V"]:
    """The state that each part of a row starts from."""
    if plan.parts == 1:
        return state[:, :, None]
    kv_sums = sweep_states(k, v, log_decay, places, plan, reverse=reverse, interpret=_interpreter())
    borders = np.minimum(np.arange(plan.parts + 1) * plan.chunks * CHUNK, plan.num_tokens)
    return states_between(kv_sums, state, log_decay, segments, borders, reverse=reverse)
