"""The output and the state at the other end of the row."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transnormer_jax.ops.hardware import target_hardware
from transnormer_jax.ops.linear_attention.decay import states_between
from transnormer_jax.ops.linear_attention.operands import Operands
from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.triton.blocks import choose_blocks
from transnormer_jax.ops.linear_attention.triton.launch import compute_capability, launch
from transnormer_jax.ops.linear_attention.triton.parts import cut


def forward(
    operands: Operands,
    *,
    chunk_size: int | None,
    save: bool,
) -> tuple[Float[Array, "B N H V"], Float[Array, "B H K V"], None]:
    """Linear attention; `Backend` explains the arguments.

    Products are accumulated in float32, and float32 arrays are multiplied as such, without tensor cores. `chunk_size`
    is not used: the chunk is the one that fits the registers (`blocks.py`).
    """
    del chunk_size, save
    return *sweep_rows(operands, reverse=False), None


def sweep_rows(
    operands: Operands,
    *,
    reverse: bool,
) -> tuple[Float[Array, "B N H V"], Float[Array, "B H K V"]]:
    """Output and final state; with `reverse`, time runs from the last token to the first."""
    from transnormer_jax.ops.linear_attention.triton.kernel import sweep  # needs the package triton

    q, k, v, log_decay, state, segments = operands
    batch, num_tokens, num_heads, key_dim = q.shape
    value_dim = v.shape[3]
    capability = compute_capability(target_hardware())
    blocks = choose_blocks(key_dim, value_dim, q.dtype, capability)
    value_blocks = -(-value_dim // blocks.value)
    cuts = cut(num_tokens, blocks.chunk, batch * num_heads * value_blocks, num_heads * max(key_dim, value_dim))

    def run(entering: Array, num_parts: int, first_part: int, outputs: list[jax.ShapeDtypeStruct]) -> list[Array]:
        writes_output = len(outputs) == 2
        return launch(
            sweep,
            [
                *(q, k, v),
                *decays(log_decay, blocks.chunk),
                entering,
                *places(segments),
                *(num_tokens, cuts.tokens, num_parts, first_part, value_dim),
                *(() if writes_output else (q,)),  # in the output's place
            ],
            outputs,
            programs=batch * num_parts * num_heads * value_blocks,
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
            compute_capability=capability,
            constants={
                "HEADS": num_heads,
                "K": key_dim,
                "V": value_dim,
                "BLOCK_K": blocks.key,
                "BLOCK_V": blocks.value,
                "CHUNK": blocks.chunk,
                "REVERSE": reverse,
                "DOCUMENTS": segments is not None,
                "OUTPUT": writes_output,
            },
        )

    entering = state[:, :, None]
    if cuts.parts > 1:
        # The part that the state leaves last writes to no other.
        written_type = jax.ShapeDtypeStruct((*state.shape[:2], cuts.parts - 1, *state.shape[2:]), jnp.float32)
        [written] = run(entering, cuts.parts - 1, int(reverse), [written_type])
        borders = np.minimum(np.arange(cuts.parts + 1) * cuts.tokens, num_tokens)
        entering = states_between(written, state, log_decay, segments, borders, reverse=reverse)
    out_types = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (v, state)]
    out, last_state = run(entering, cuts.parts, 0, out_types)
    return out, last_state


def decays(log_decay: Float[Array, " H"], chunk: int) -> tuple[Float[Array, " H"], Float[Array, "H S"]]:
    """The logarithm to the base 2 of each head's decay, and what a chunk adds to its state, by the number of steps.

    expm1(log_decay * steps) for 0 to `chunk` steps, and -1 where another document starts; see decay.py.
    """
    fade = jnp.expm1(log_decay[:, None] * jnp.arange(chunk + 1)[None])
    return log_decay * math.log2(math.e), jnp.pad(fade, ((0, 0), (0, 1)), constant_values=-1.0)


def places(segments: Segments | None) -> tuple[Int[Array, "_ _"], Int[Array, "_ _"]]:
    """Positions and runs; without documents the kernels do not read them."""
    nowhere = jnp.zeros((1, 1), jnp.int32)
    return (nowhere, nowhere) if segments is None else (segments.position, segments.segment_index)
