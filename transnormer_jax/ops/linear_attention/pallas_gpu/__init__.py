"""Linear attention on Hopper GPUs: one Mosaic GPU kernel, which reads and writes each token once.

The kernel is `sweep.py`. Where B * H is too small to fill the GPU, the rows are cut into parts that are swept at the
same time, and a first pass over k and v finds the states between them. The gradient is the three calls of
`primitive.py`, two of them in one launch.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from transnormer_jax.ops.hardware import Hardware, interpret_mode
from transnormer_jax.ops.linear_attention.backends import Problem
from transnormer_jax.ops.linear_attention.pallas_gpu.places import chunk_places, part_fades
from transnormer_jax.ops.linear_attention.pallas_gpu.plan import COLUMNS, Plan, make_plan
from transnormer_jax.ops.linear_attention.pallas_gpu.sweep import Operands, sweep, sweep_states
from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.weights import pass_on

_ROW_TILE = 8  # Mosaic's copies of tiled arrays want a multiple of this many rows
_HOPPER = re.compile(r"\bG?H(20|100|200|800)\b")


def refusal(problem: Problem, hardware: Hardware) -> str | None:
    """Why this backend cannot run the problem on the hardware, as half a sentence; None where it can."""
    hopper = hardware.platform == "gpu" and _HOPPER.search(hardware.kind)
    if not hopper and not (hardware.platform == "cpu" and interpret_mode()):
        return f"it needs an NVIDIA GPU of compute capability 9.0, and this is a {hardware.kind}"
    if problem.dtype == jnp.float32:
        return "it multiplies in 16 bits, and the arrays are float32"
    dims = problem.key_dim, problem.value_dim  # the gradient exchanges them
    if max(dims) > 256:
        return f"it takes K and V up to 256, and they are {dims[0]} and {dims[1]}"
    return None


def attend(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, " H"],
    state: Float[Array, "B H K V"],
    segments: Segments | None,
    *,
    reverse: bool,
    chunk_size: int | None,
) -> tuple[Float[Array, "B N H V"], Float[Array, "B H K V"]]:
    """Linear attention of bfloat16 or float16 arrays; see `primitive.py` for the contract of a backend.

    Accumulates in float32. `chunk_size` is not used: a chunk is 64 tokens, the height of a wgmma tile. Rows of a
    multiple of 8 tokens with K and V of a multiple of 64 are read where they lie; others are padded first.
    """
    del chunk_size
    num_tokens, key_dim, value_dim = k.shape[1], k.shape[3], v.shape[3]
    q, k, v, state = _pad_tokens(q), _pad_tokens(k), _pad_tokens(v), _pad(state, (1, 1, COLUMNS, COLUMNS))
    plan = make_plan(k.shape, v.shape[3], num_tokens)
    places = None if segments is None else chunk_places(segments, plan)
    states = _states_of_parts(k, v, log_decay, state, segments, places, plan, reverse=reverse)
    (out,), left = sweep(
        [Operands(q, k, v, states)], log_decay, places, plan, reverse=reverse, interpret=_interpreter()
    )
    return out[:, :num_tokens, :, :value_dim], left[:, :, 0, :key_dim, :value_dim]


def gradients(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, " H"],
    state: Float[Array, "B H K V"],
    segments: Segments | None,
    saved: None,
    d_out: Float[Array, "B N H V"],
    d_state: Float[Array, "B H K V"],
    *,
    reverse: bool,
    chunk_size: int | None,
) -> tuple[Float[Array, "B N H K"], Float[Array, "B N H K"], Float[Array, "B N H V"], Float[Array, "B H K V"]]:
    """Gradients of q, k, v and the state: the three calls of `primitive.py`, two of them in one launch where K = V.

    dk and dv read the same q and dout in the same order, and the states of one are those of the other, transposed.
    """
    del saved
    attend_to = functools.partial(attend, chunk_size=chunk_size)
    dq, _ = attend_to(d_out, v, k, log_decay, _transpose(state), segments, reverse=reverse)
    if k.shape != v.shape:
        dk, _ = attend_to(v, d_out, q, log_decay, _transpose(d_state), segments, reverse=not reverse)
        dv, d_initial = attend_to(k, q, d_out, log_decay, d_state, segments, reverse=not reverse)
        return dq, dk, dv, d_initial

    num_tokens, head_dim = k.shape[1], k.shape[3]
    q, k, v, d_out = _pad_tokens(q), _pad_tokens(k), _pad_tokens(v), _pad_tokens(d_out)
    d_state = _pad(d_state, (1, 1, COLUMNS, COLUMNS))
    plan = make_plan(k.shape, v.shape[3], num_tokens, problems=2)
    places = None if segments is None else chunk_places(segments, plan)
    states = _states_of_parts(q, d_out, log_decay, d_state, segments, places, plan, reverse=not reverse)
    sweeps = [Operands(v, d_out, q, _transpose(states)), Operands(k, q, d_out, states)]
    (dk, dv), left = sweep(sweeps, log_decay, places, plan, reverse=not reverse, interpret=_interpreter())
    dk, dv = (x[:, :num_tokens, :, :head_dim] for x in (dk, dv))
    return dq, dk, dv, left[:, :, 0, :head_dim, :head_dim]


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
    written = sweep_states(k, v, log_decay, places, plan, reverse=reverse, interpret=_interpreter())
    return _entering_states(part_fades(log_decay, segments, plan), state, written, reverse=reverse)


def _entering_states(
    fades: Float[Array, " P #B H"], state: Float[Array, "B H K V"], written: Float[Array, "B H Q K V"], *, reverse: bool
) -> Float[Array, "B H P K V"]:
    """The state that each part starts from: that of the part before it, faded, and what that part wrote."""
    states = [state]
    for part in range(written.shape[2]):
        index = -1 - part if reverse else part
        states.append(pass_on(states[-1], fades[index][..., None, None], written[:, :, index]))
    return jnp.stack(states[::-1] if reverse else states, axis=2)
