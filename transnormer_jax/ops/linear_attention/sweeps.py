"""Code that the GPU kernels share: supported calls, rows split among programs, gradients as sweeps.

A program sweeps over a row in either direction of time, with the state in registers. Where there are too few heads to
fill the GPU, rows are split. A first launch finds what each split adds to the state, from keys and values alone, and a
second one sweeps over all splits at the same time. That is half as many bytes again, by many more programs.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transnormer_jax.ops.linear_attention.chunked import step_gradient
from transnormer_jax.ops.linear_attention.decay import scan_states
from transnormer_jax.ops.linear_attention.operands import Gradients, Operands, Problem

_SHORTEST = 512  # a shorter split would not repay the first launch


def unsupported_problem(problem: Problem) -> str | None:
    """Why the kernels do not support the problem, as half a sentence; None if they do."""
    if max(problem.key_dim, problem.value_dim) > 256:
        return f"it takes K and V up to 256, and they are {problem.key_dim} and {problem.value_dim}"
    if problem.decay_per_token or problem.max_segments or problem.heads_per_key > 1:
        return "it takes one constant decay per head, one state per row, and as many heads of q and k as of v"
    return None


def split_row(num_tokens: int, chunk: int, programs: int, capacity: int, longest: int | None = None) -> tuple[int, int]:
    """Number of splits of a row, and tokens of each of them, in whole chunks; the last split may be shorter.

    `programs` is how many there are without splitting, `capacity` how many run at the same time on the GPU, and
    `longest` how many tokens one split may have.
    """
    chunks, splits = -(-num_tokens // chunk), 1
    while 2 * splits * programs <= capacity and chunks * chunk >= 2 * splits * _SHORTEST:
        splits *= 2
    chunks = -(-chunks // splits)
    if longest is not None:
        chunks = min(chunks, longest // chunk)
    return -(-num_tokens // (chunks * chunk)), chunks * chunk


def split_states(
    operands: Operands, splits: int, tokens: int, kv_sums: Callable[[], Float[Array, "B H _ K V"]], *, reverse: bool
) -> Float[Array, "B H P K V"]:
    """The state before each of P splits of `tokens` tokens.

    `kv_sums()` is what the splits add to the state, without that of the last one of the sweep, in the order of the row.
    """
    _, k, _, log_decay, state, segments = operands
    if splits == 1:
        return state[:, :, None]
    borders = np.minimum(np.arange(splits + 1) * tokens, k.shape[1])
    if segments is None:
        steps, same = jnp.diff(borders)[None], jnp.ones((1, splits), bool)
    else:
        position, index = (jnp.pad(x, ((0, 0), (1, 0)))[:, borders] for x in segments)
        steps, same = jnp.diff(position, axis=1), jnp.diff(index, axis=1) == 0
    exponent = steps[..., None].astype(jnp.float32) * log_decay[None, None]
    chunk_decay = jnp.expm1(jnp.where(same[..., None], exponent, -jnp.inf))
    chunk_decay = chunk_decay[:, 1:] if reverse else chunk_decay[:, :-1]
    before, after = scan_states(state, chunk_decay, jnp.moveaxis(kv_sums(), 2, 1), reverse=reverse)
    states = [after[:, :1], before] if reverse else [before, after[:, -1:]]
    return jnp.moveaxis(jnp.concatenate(states, axis=1), 1, 2)


def gradients_by_sweeps(
    sweep: Callable[..., tuple[Array, Array]],
    operands: Operands,
    d_out: Float[Array, "B N H V"],
    d_state: Float[Array, "B H K V"],
    *,
    decay_gradient: bool,
    fused: Callable[[Operands, Operands], Any] | None = None,
) -> Gradients:
    """The gradients as three sweeps, in the manner of arXiv 2405.17381, Algorithm 6.

    Output and final state are linear in each of q, k, v and the state, and the transpose of a sweep is a sweep in the
    other direction. Those for dk and dv read the same q and d_out; `fused`, if given, makes both of them.
    """
    q, k, v, _, state, _ = operands
    d_steps = step_gradient(operands, d_out, d_state) if decay_gradient else None
    dq, _ = sweep(operands._replace(q=d_out, k=v, v=k, state=transpose(state)), reverse=False)
    for_dk = operands._replace(q=v, k=d_out, v=q, state=transpose(d_state))
    for_dv = operands._replace(q=k, k=q, v=d_out, state=d_state)
    if fused is not None:
        dk, dv, d_initial = fused(for_dk, for_dv)
    else:
        dk, _ = sweep(for_dk, reverse=True)
        dv, d_initial = sweep(for_dv, reverse=True)
    return Gradients(dq, dk, dv, d_steps, d_initial)


def transpose(states: Float[Array, "*B K V"]) -> Float[Array, "*B V K"]:
    """Exchanges keys and values."""
    return jnp.swapaxes(states, -1, -2)
