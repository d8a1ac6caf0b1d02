"""The kernel: one sweep over the chunks of a split of a row, the state in registers from the first chunk to the last.

A block has one warpgroup that copies and one or two that compute. The first asks the TMA unit for q, k and v of the
chunks ahead, straight from [B, N, H, K]; what is beyond the end of a row arrives as zeros. A computing warpgroup keeps
the state [K, 64] of one head and 64 value columns in registers, in float32, and does for each chunk

    out   = (q k^T * intra) v + q_decay * (q S)
    S    <- (S + chunk_decay * S) + k^T (k_decay * v)

as four wgmma products, with the weights of `weights.py`. A wgmma takes 16-bit operands: q k^T * intra, S and
k_decay * v are rounded as such, and nothing else is.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from transnormer_jax.ops.hardware import interpret_mode
from transnormer_jax.ops.linear_attention.pallas_gpu.weights import CHUNK, packed_weights, plain_weights

COLUMNS = 64  # value columns of a computing warpgroup: 64 float32 registers per thread hold a state of K = 128
# Of the 504 registers per thread of three warpgroups that start with 168 each.
_COPYING_REGISTERS, _COMPUTING_REGISTERS = 24, 240


class Plan(NamedTuple):
    """What is static about a launch."""

    num_tokens: int  # of a row; the arrays may be longer, and hold zeros there
    warpgroups: int  # that compute, of a block; each keeps the state of one head and `COLUMNS` value columns
    heads: int  # of a block. 2: each warpgroup has its own; 1: the warpgroups share q and k and split the columns
    stages: int  # chunks in flight or in use at a time
    splits: int  # of a row, swept at the same time
    chunks: int  # of a split; those beyond the end of the row are empty
    reverse: bool  # whether time runs from the last token to the first

    @property
    def columns(self) -> int:
        """Value columns per head of a block."""
        return COLUMNS * self.warpgroups // self.heads

    def chunk(self, split: Array, step: Array) -> Array:
        """Index within the row of the chunk of a step."""
        return split * self.chunks + (self.chunks - 1 - step if self.reverse else step)


class Sweep(NamedTuple):
    """One linear attention among those of a launch: [B, N, H, .] arrays and the state before each split."""

    q: Any  # None: what each split adds to the state is wanted
    k: Any
    v: Any
    states: Any = None  # [B, H, P, K, V]; None: zeros


class _Block(NamedTuple):
    """What a block works on."""

    problem: Array
    batch: Array
    split: Array
    head: Array  # the first of the block
    column: Array  # the first of the block


def launch(
    problems: Sequence[Sweep], log_decay: Float[Array, " H"], positions: Int[Array, "B M 4 C"] | None, plan: Plan
) -> list[Any]:
    """Sweeps every split; returns the output of each problem, and the final state of the last one, [B, H, 1, K, V].

    The problems have the same shapes. Two of them run side by side on neighbouring multiprocessors, so that what one
    reads of an array that they share, the other finds in the L2 cache. Without q, the state is what each split adds
    to it, except the last one of the sweep, in the order of the row.
    """
    q, k, v, _ = problems[0]
    (batch, _, num_heads, key_dim), value_dim, dtype = k.shape, v.shape[3], k.dtype
    blocks = num_heads // plan.heads, value_dim // plan.columns
    splits, first_split = (plan.splits - 1, int(plan.reverse)) if q is None else (plan.splits, 0)
    tiled = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)  # type: ignore[abstract]
    mode = interpret_mode()
    interpret = plgpu.InterpretGPUParams() if mode and not isinstance(mode, plgpu.InterpretGPUParams) else mode

    def buffer(*shape: int) -> Any:
        return plgpu.SMEM(shape, dtype, transforms=tiled)

    copies = plan.heads * (2 - (q is None)) + plan.warpgroups + (positions is not None)
    staged = {
        "q": None if q is None else buffer(plan.stages, plan.heads, CHUNK, key_dim),
        "k": buffer(plan.stages, plan.heads, CHUNK, key_dim),
        "v": buffer(plan.stages, plan.warpgroups, CHUNK, COLUMNS),
        "positions": None if positions is None else plgpu.SMEM((plan.stages, *positions.shape[2:]), jnp.int32),
    }
    scratch = {
        "staged": staged,
        "arrived": plgpu.Barrier(num_arrivals=copies, num_barriers=plan.stages),
        "consumed": plgpu.Barrier(num_arrivals=plan.warpgroups, num_barriers=plan.stages),
        "state_smem": None if q is None else buffer(plan.warpgroups, key_dim, COLUMNS),
        "v_smem": buffer(plan.warpgroups, CHUNK, COLUMNS),
        "out_smem": None if q is None else buffer(plan.warpgroups, CHUNK, COLUMNS),
    }

    def body(problems: Any, log_decay: Any, positions: Any, outs: Any, new_states: Any, /, **scratch: Any) -> None:
        index, column = jnp.divmod(lax.axis_index("block"), blocks[1])
        index, problem = jnp.divmod(index, len(problems))
        index, head = jnp.divmod(index, blocks[0])
        row, split = jnp.divmod(index, splits)
        block = _Block(problem, row, split + first_split, head * plan.heads, column * plan.columns)
        states = [p.states for p in problems]
        lax.cond(
            lax.axis_index("warpgroup") == plan.warpgroups,
            lambda: _copy(plan, block, problems, positions, **scratch),
            lambda: _compute(plan, block, interpret, states, log_decay, outs, new_states, first_split, **scratch),
        )

    state_shape = batch, num_heads, splits if q is None else 1, key_dim, value_dim
    return plgpu.kernel(
        body,
        out_type=[
            [None if q is None else jax.ShapeDtypeStruct(v.shape, dtype) for _ in problems],
            jax.ShapeDtypeStruct(state_shape, jnp.float32),
        ],
        scratch_types=scratch,
        grid=(batch * splits * blocks[0] * len(problems) * blocks[1],),
        grid_names=("block",),
        num_threads=plan.warpgroups + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=interpret,
    )(list(problems), log_decay, positions)


def _copy(
    plan: Plan, block: _Block, problems: Any, positions: Any, *, staged: Any, arrived: Any, consumed: Any, **_: Any
) -> None:
    """The copying warpgroup: fills the stages of its problem as fast as the others empty them."""
    if plan.warpgroups > 1:
        plgpu.set_max_registers(_COPYING_REGISTERS, action="decrease")
    sources = [{"q": q, "k": k, "v": v, "positions": positions} for q, k, v, _ in problems]
    branches = [functools.partial(_copy_chunks, plan, block, x, staged, arrived, consumed) for x in sources]
    lax.switch(block.problem, branches)


def _copy_chunks(plan: Plan, block: _Block, sources: Any, staged: Any, arrived: Any, consumed: Any) -> None:
    @pl.loop(0, plan.chunks)
    def _chunk(step: Array) -> None:
        stage = lax.rem(step, jnp.int32(plan.stages))
        index = plan.chunk(block.split, step)
        rows = pl.ds(index * CHUNK, CHUNK)

        @pl.when(step >= plan.stages)
        def _wait() -> None:
            plgpu.barrier_wait(consumed.at[stage])

        def copy(name: str, target: Any, *where: Any) -> None:
            if sources[name] is not None:
                source = sources[name].at[(block.batch, *where)]
                plgpu.copy_gmem_to_smem(source, staged[name].at[(stage, *target)], arrived.at[stage])

        for head in range(plan.heads):
            copy("q", (head,), rows, block.head + head)
            copy("k", (head,), rows, block.head + head)
        for warpgroup in range(plan.warpgroups):
            head, column = divmod(warpgroup * COLUMNS, plan.columns)
            copy("v", (warpgroup,), rows, block.head + head, pl.ds(block.column + column, COLUMNS))
        copy("positions", (), index)

    @pl.loop(max(0, plan.chunks - plan.stages), plan.chunks)
    def _drain(step: Array) -> None:
        plgpu.barrier_wait(consumed.at[lax.rem(step, jnp.int32(plan.stages))])


def _compute(
    plan: Plan,
    block: _Block,
    interpret: Any,
    states: Sequence[Any],
    log_decay: Any,
    outs: Sequence[Any],
    new_states: Any,
    first_split: int,
    *,
    staged: Any,
    arrived: Any,
    consumed: Any,
    state_smem: Any,
    v_smem: Any,
    out_smem: Any,
) -> None:
    """A computing warpgroup: one head, 64 value columns, all chunks of the split."""
    if plan.warpgroups > 1:
        plgpu.set_max_registers(_COMPUTING_REGISTERS, action="increase")
    warpgroup = lax.axis_index("warpgroup")
    own_head, own_column = jnp.divmod(warpgroup * COLUMNS, plan.columns)
    head, columns = block.head + own_head, pl.ds(block.column + own_column, COLUMNS)
    state_smem, v_smem, out_smem = (None if x is None else x.at[warpgroup] for x in (state_smem, v_smem, out_smem))
    dtype, log_decay = v_smem.dtype, log_decay[head]
    plain = plain_weights(log_decay, reverse=plan.reverse) if staged["positions"] is None else None

    def chunk(step: Array, state: Array) -> Array:
        stage = lax.rem(step, jnp.int32(plan.stages))
        start = plan.chunk(block.split, step) * CHUNK
        plgpu.barrier_wait(arrived.at[stage])
        k, v = staged["k"].at[stage, own_head], staged["v"].at[stage, warpgroup]

        if plain is None:
            weights = packed_weights(log_decay, staged["positions"].at[stage], reverse=plan.reverse)
        else:
            weights = plain(jnp.clip(plan.num_tokens - start, 0, CHUNK))

        decayed = v[...].astype(jnp.float32) * lax.broadcast_in_dim(weights.k_decay, (CHUNK, COLUMNS), [0])
        v_smem[...] = decayed.astype(dtype)
        if outs[0] is None:
            plgpu.commit_smem()
            (state,) = _accumulate(interpret, (state + weights.chunk_decay * state, k.T, v_smem))
            plgpu.barrier_arrive(consumed.at[stage])
            return state

        q = staged["q"].at[stage, own_head]
        state_smem[...] = state.astype(dtype)
        plgpu.commit_smem()

        def scores_and_read(scores: Any, read: Any) -> tuple[Array, Array]:
            plgpu.wgmma(scores, q, k.T)
            plgpu.wgmma(read, q, state_smem)
            return scores[...], read[...]

        scores, read = pl.run_scoped(
            scores_and_read, plgpu.ACC((CHUNK, CHUNK), jnp.float32), plgpu.ACC((CHUNK, COLUMNS), jnp.float32)
        )
        scores = (scores * weights.intra()).astype(dtype)
        read *= lax.broadcast_in_dim(weights.q_decay, read.shape, [0])
        result, state = _accumulate(interpret, (read, scores, v), (state + weights.chunk_decay * state, k.T, v_smem))
        plgpu.barrier_arrive(consumed.at[stage])

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        out_smem[...] = result.astype(dtype)
        plgpu.commit_smem()
        where = block.batch, pl.ds(start, CHUNK), head, columns
        lax.switch(block.problem, [functools.partial(plgpu.copy_smem_to_gmem, out_smem, out.at[where]) for out in outs])
        return state

    def initial(states: Any) -> Array:
        if states is None:
            zeros = jnp.zeros((staged["k"].shape[-1], COLUMNS), jnp.float32)
            return plgpu.layout_cast(zeros, plgpu.Layout.WGMMA)
        source = states.at[block.batch, head, block.split, :, columns]
        return plgpu.load(source, layout=plgpu.Layout.WGMMA, optimized=False)

    state = lax.switch(block.problem, [functools.partial(initial, x) for x in states])
    state = lax.fori_loop(0, plan.chunks, chunk, state)

    if outs[0] is None:
        new_states[block.batch, head, block.split - first_split, :, columns] = state
        return
    plgpu.wait_smem_to_gmem(0)
    last_split = 0 if plan.reverse else plan.splits - 1

    @pl.when((block.split == last_split) & (block.problem == len(outs) - 1))
    def _leave() -> None:
        new_states[block.batch, head, 0, :, columns] = state


def _accumulate(interpret: Any, *terms: tuple[Array, Any, Any]) -> tuple[Array, ...]:
    """Computes start + a b for each (start, a, b), in flight together."""
    if interpret:  # the interpreter knows neither `run_state` nor a wgmma whose operand a is in registers
        sums = tuple(start + jnp.dot(a[...], b[...], preferred_element_type=jnp.float32) for start, a, b in terms)
        plgpu.commit_smem()  # these are plain reads, which the next copy has to wait for
        return sums

    def products(accumulators: Any) -> None:
        for accumulator, (_, a, b) in zip(accumulators, terms, strict=True):
            plgpu.wgmma(accumulator, a, b)

    return pl.run_state(products)(tuple(plgpu.ACC.init(start) for start, _, _ in terms))
