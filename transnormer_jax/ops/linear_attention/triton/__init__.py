"""Linear attention on NVIDIA GPUs from Ampere on, by Triton kernels through jax-triton."""

import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.hardware import Hardware, target_hardware
from transnormer_jax.ops.linear_attention import sweeps
from transnormer_jax.ops.linear_attention.operands import Gradients, Operands, Problem
from transnormer_jax.ops.linear_attention.triton.blocks import Blocks, choose_blocks, choose_gradient_blocks
from transnormer_jax.ops.linear_attention.triton.launch import compute_capability, launch, what_is_missing

_AMPERE = 80
_CAPACITY = 264  # two programs on each of the 132 multiprocessors of an H100 or H200
# Inside a split the kernel counts elements in 32 bits, and tokens in float32.
_MOST_ELEMENTS = 2**31
_MOST_TOKENS = 2**24


def unsupported_reason(problem: Problem, hardware: Hardware) -> str | None:
    """Why this backend cannot run the problem on the hardware, as half a sentence; None where it can."""
    here = jax.devices()[0].device_kind
    if hardware.kind != here:
        return f"it compiles only for the device of this machine, a {here}, not for a {hardware.kind}"
    if compute_capability(hardware) < _AMPERE:
        return f"it needs an NVIDIA GPU of compute capability 8.0 or more, and this is a {here}"
    return sweeps.unsupported_problem(problem) or what_is_missing(hardware)


def forward(operands: Operands, **_: Any) -> tuple[Float[Array, "B N H V"], Float[Array, "B H K V"], None]:
    """Linear attention with float32 sums; float32 arrays are multiplied without tensor cores.

    `chunk_size` is not used: the chunk is the one that fits the registers (`blocks.py`).
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
    """Three sweeps, two of them fused where two states fit the registers and rows are not split."""
    del saved
    q, k, v = operands[:3]
    blocks = choose_gradient_blocks(k.shape[3], v.shape[3], q.dtype, compute_capability(target_hardware()))
    fused = None
    if blocks is not None and split(operands.problem, blocks)[0] == 1:

        def fused(*_: Operands) -> list[Array]:
            outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v, d_state)]
            return _launch("sweep_gradients", operands, blocks, (q, k, v, d_out), d_state, (), outputs)

    return sweeps.gradients_by_sweeps(sweep, operands, d_out, d_state, decay_gradient=decay_gradient, fused=fused)


def sweep(operands: Operands, *, reverse: bool) -> tuple[Float[Array, "B N H V"], Float[Array, "B H K V"]]:
    """Output and final state; with `reverse`, time runs from the last token to the first."""
    q, k, v, _, state, _ = operands
    blocks = choose_blocks(k.shape[3], v.shape[3], q.dtype, compute_capability(target_hardware()))
    splits, tokens = split(operands.problem, blocks)
    run = functools.partial(_launch, "sweep", operands, blocks, (q, k, v))

    def kv_sums() -> Array:
        shape = *state.shape[:2], splits - 1, *state.shape[2:]
        sizes = tokens, splits - 1, int(reverse)
        [kv_sums] = run(state, sizes, [jax.ShapeDtypeStruct(shape, jnp.float32)], REVERSE=reverse, OUTPUT=False)
        return kv_sums

    states = sweeps.split_states(operands, splits, tokens, kv_sums, reverse=reverse)
    outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (v, state)]
    out, last = run(states, (tokens, splits, 0), outputs, REVERSE=reverse, OUTPUT=True)
    return out, last


def split(problem: Problem, blocks: Blocks) -> tuple[int, int]:
    """Number of splits of a row, and tokens of each."""
    batch, num_tokens, num_heads, key_dim, value_dim = problem[:5]
    stride = num_heads * max(key_dim, value_dim)
    longest = min(_MOST_ELEMENTS // stride, _MOST_TOKENS) - blocks.chunk
    programs = batch * num_heads * -(-value_dim // blocks.value)
    return sweeps.split_row(num_tokens, blocks.chunk, programs, _CAPACITY, longest)


def _launch(
    name: str,
    operands: Operands,
    blocks: Blocks,
    tokens: Sequence[Array],
    state: Array,
    sizes: Sequence[int],
    outputs: list[jax.ShapeDtypeStruct],
    **constants: bool,
) -> list[Array]:
    """Launches a kernel of `kernels.py`, whose arguments and constants are in this order."""
    kernels = importlib.import_module(f"{__name__}.kernels")  # needs the package triton
    batch, num_tokens, num_heads, key_dim, value_dim = operands.problem[:5]
    log_decay, segments = operands.log_decay, operands.segments
    # expm1 of the decay of 0 to `chunk` steps, and -1 where another document starts.
    chunk_decay = jnp.expm1(log_decay[:, None] * jnp.arange(blocks.chunk + 1)[None])
    chunk_decay = jnp.pad(chunk_decay, ((0, 0), (0, 1)), constant_values=-1.0)
    not_read = jnp.zeros((1, 1), jnp.int32)
    positions = (not_read, not_read) if segments is None else segments
    splits = sizes[1] if sizes else 1
    return launch(
        getattr(kernels, name),
        [
            *(*tokens, log_decay * math.log2(math.e), chunk_decay, state, *positions),
            *(num_tokens, *sizes, value_dim),
            *(() if len(outputs) > 1 else tokens[:1]),  # in the output's place
        ],
        outputs,
        programs=batch * splits * num_heads * -(-value_dim // blocks.value),
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
        compute_capability=compute_capability(target_hardware()),
        constants={
            "HEADS": num_heads,
            "K": key_dim,
            "V": value_dim,
            "BLOCK_K": blocks.key,
            "BLOCK_V": blocks.value,
            "CHUNK": blocks.chunk,
            "DOCUMENTS": segments is not None,
            **constants,
        },
    )
