"""The kernel: one sweep over the chunks of a part of a row, the state in registers from the first chunk to the last.

A block has one warpgroup that copies and one or two that compute. The first asks the TMA unit for q, k and v of the
chunks ahead, straight from [B, N, H, K]; what lies beyond the end of a row arrives as zeros. A computing warpgroup
keeps the state [K, 64] of one head and 64 value columns in registers, in float32, and does for each chunk

    out   = (q k^T * intra) v + head * (q S)
    S    <- (S + fade * S) + k^T (tail * v)

as four wgmma products, with the weights of `chunk_weights.py`. A wgmma takes 16-bit operands: q k^T * intra, S and
tail * v are rounded as such, and nothing else is.
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

from transnormer_jax.ops.linear_attention.pallas_gpu.chunk_weights import packed_weights, plain_weights
from transnormer_jax.ops.linear_attention.pallas_gpu.plan import CHUNK, COLUMNS, Plan

_SHARED = "staged", "arrived", "consumed"  # by the warpgroup that copies and those that compute
# Of the 504 registers per thread of three warpgroups that start with 168 each.
_COPYING_REGISTERS, _COMPUTING_REGISTERS = 24, 240


class Sweep(NamedTuple):
    """One linear attention among those of a launch: [B, N, H, .] arrays and the state that each part starts from."""

    q: Any  # None: the state alone is wanted
    k: Any
    v: Any
    states: Any  # [B, H, P, K, V]; None: zeros


class _Call(NamedTuple):
    """What is static about a kernel."""

    plan: Plan
    reverse: bool
    first_part: int
    interpret: Any

    @property
    def last_part(self) -> int:
        """The part that the state leaves the row from."""
        return 0 if self.reverse else self.plan.parts - 1

    def chunk(self, part: Array, step: Array) -> Array:
        """Index within the row of the chunk of a step."""
        return part * self.plan.chunks + (self.plan.chunks - 1 - step if self.reverse else step)


class _Place(NamedTuple):
    """Which part of the arrays a block works on."""

    problem: Array
    batch: Array
    part: Array
    head: Array  # the first of the block
    column: Array  # the first of the block


def sweep(
    problems: Sequence[Sweep],
    log_decay: Float[Array, " H"],
    places: Int[Array, "B M 4 C"] | None,
    plan: Plan,
    *,
    reverse: bool,
    interpret: Any,
) -> tuple[list[Array], Float[Array, "B H 1 K V"]]:
    """Sweeps every part of the rows; returns the output of each problem, and the state that leaves the last of them.

    The problems have the same shapes. Two of them run side by side on neighbouring multiprocessors, so that what one
    reads of an array that they share, the other finds in the L2 cache.
    """
    out_types = [jax.ShapeDtypeStruct(problem.v.shape, problem.v.dtype) for problem in problems]
    outs, left = _launch(_Call(plan, reverse, 0, interpret), problems, log_decay, places, out_types, 1)
    return outs, left


def sweep_states(
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, " H"],
    places: Int[Array, "B M 4 C"] | None,
    plan: Plan,
    *,
    reverse: bool,
    interpret: Any,
) -> Float[Array, "B H Q K V"]:
    """What each part adds to the state, all but the last part of the sweep: Q = P - 1, in the order of the row."""
    call = _Call(plan, reverse, int(reverse), interpret)
    _, states = _launch(call, [Sweep(None, k, v, None)], log_decay, places, [None], plan.parts - 1)
    return states


def _launch(
    call: _Call, problems: Sequence[Sweep], log_decay: Array, places: Any, out_types: list[Any], num_states: int
) -> Any:
    plan, (q, k, v, _) = call.plan, problems[0]
    (batch, _, num_heads, key_dim), value_dim, dtype = k.shape, v.shape[3], k.dtype
    blocks = num_heads // plan.heads, value_dim // plan.columns
    parts = plan.parts - (q is None)
    tiled = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)  # type: ignore[abstract]

    def buffer(*shape: int) -> Any:
        return plgpu.SMEM(shape, dtype, transforms=tiled)

    staged = {
        "q": None if q is None else buffer(plan.stages, plan.heads, CHUNK, key_dim),
        "k": buffer(plan.stages, plan.heads, CHUNK, key_dim),
        "v": buffer(plan.stages, plan.warpgroups, CHUNK, COLUMNS),
        "places": None if places is None else plgpu.SMEM((plan.stages, *places.shape[2:]), places.dtype),
    }
    copies = plan.heads * (2 - (q is None)) + plan.warpgroups + (places is not None)
    scratch = {
        "staged": staged,
        "arrived": plgpu.Barrier(num_arrivals=copies, num_barriers=plan.stages),
        "consumed": plgpu.Barrier(num_arrivals=plan.warpgroups, num_barriers=plan.stages),
        "state_smem": None if q is None else buffer(plan.warpgroups, key_dim, COLUMNS),
        "tail_v_smem": buffer(plan.warpgroups, CHUNK, COLUMNS),
        "out_smem": None if q is None else buffer(plan.warpgroups, CHUNK, COLUMNS),
    }

    def body(problems: Any, log_decay: Any, places: Any, outs: Any, new_states: Any, /, **scratch: Any) -> None:
        index, column = jnp.divmod(lax.axis_index("block"), blocks[1])
        index, problem = jnp.divmod(index, len(problems))
        index, head = jnp.divmod(index, blocks[0])
        row, part = jnp.divmod(index, parts)
        place = _Place(problem, row, part + call.first_part, head * plan.heads, column * plan.columns)
        lax.cond(
            lax.axis_index("warpgroup") == plan.warpgroups,
            lambda: _copy(call, place, problems, places, **{name: scratch[name] for name in _SHARED}),
            lambda: _compute(call, place, [p.states for p in problems], log_decay, outs, new_states, **scratch),
        )

    return plgpu.kernel(
        body,
        out_type=[out_types, jax.ShapeDtypeStruct((batch, num_heads, num_states, key_dim, value_dim), jnp.float32)],
        scratch_types=scratch,
        grid=(batch * parts * blocks[0] * len(problems) * blocks[1],),
        grid_names=("block",),
        num_threads=plan.warpgroups + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=call.interpret,
    )(list(problems), log_decay, places)


def _copy(call: _Call, place: _Place, problems: Any, places: Any, *, staged: Any, arrived: Any, consumed: Any) -> None:
    """The copying warpgroup: fills the stages of its problem as fast as the others empty them."""
    if call.plan.warpgroups > 1:
        plgpu.set_max_registers(_COPYING_REGISTERS, action="decrease")
    sources = [{"q": q, "k": k, "v": v, "places": places} for q, k, v, _ in problems]
    branches = [functools.partial(_copy_chunks, call, place, x, staged, arrived, consumed) for x in sources]
    lax.switch(place.problem, branches)


def _copy_chunks(call: _Call, place: _Place, sources: Any, staged: Any, arrived: Any, consumed: Any) -> None:
    plan = call.plan

    @pl.loop(0, plan.chunks)
    def _chunk(step: Array) -> None:
        stage = lax.rem(step, jnp.int32(plan.stages))
        index = call.chunk(place.part, step)
        rows = pl.ds(index * CHUNK, CHUNK)

        @pl.when(step >= plan.stages)
        def _wait() -> None:
            plgpu.barrier_wait(consumed.at[stage])

        def copy(name: str, target: Any, *where: Any) -> None:
            if sources[name] is not None:
                source = sources[name].at[(place.batch, *where)]
                plgpu.copy_gmem_to_smem(source, staged[name].at[(stage, *target)], arrived.at[stage])

        for head in range(plan.heads):
            copy("q", (head,), rows, place.head + head)
            copy("k", (head,), rows, place.head + head)
        for warpgroup in range(plan.warpgroups):
            head, column = divmod(warpgroup * COLUMNS, plan.columns)
            copy("v", (warpgroup,), rows, place.head + head, pl.ds(place.column + column, COLUMNS))
        copy("places", (), index)

    @pl.loop(max(0, plan.chunks - plan.stages), plan.chunks)
    def _drain(step: Array) -> None:
        plgpu.barrier_wait(consumed.at[lax.rem(step, jnp.int32(plan.stages))])


def _compute(
    call: _Call,
    place: _Place,
    states: Sequence[Any],
    log_decay: Any,
    outs: Sequence[Any],
    new_states: Any,
    *,
    staged: Any,
    arrived: Any,
    consumed: Any,
    state_smem: Any,
    tail_v_smem: Any,
    out_smem: Any,
) -> None:
    """A computing warpgroup: one head, 64 value columns, all chunks of the part."""
    plan, reverse = call.plan, call.reverse
    if plan.warpgroups > 1:
        plgpu.set_max_registers(_COMPUTING_REGISTERS, action="increase")
    warpgroup = lax.axis_index("warpgroup")
    own_head, own_column = jnp.divmod(warpgroup * COLUMNS, plan.columns)
    head, columns = place.head + own_head, pl.ds(place.column + own_column, COLUMNS)
    state_smem, tail_v_smem, out_smem = (
        None if x is None else x.at[warpgroup] for x in (state_smem, tail_v_smem, out_smem)
    )
    dtype, log_decay = tail_v_smem.dtype, log_decay[head]
    plain = plain_weights(log_decay, reverse=reverse) if staged["places"] is None else None

    def chunk(step: Array, state: Array) -> Array:
        stage = lax.rem(step, jnp.int32(plan.stages))
        start = call.chunk(place.part, step) * CHUNK
        plgpu.barrier_wait(arrived.at[stage])
        k, v = staged["k"].at[stage, own_head], staged["v"].at[stage, warpgroup]

        if plain is None:
            weights = packed_weights(log_decay, staged["places"].at[stage], reverse=reverse)
        else:
            weights = plain(jnp.clip(plan.num_tokens - start, 0, CHUNK))

        tail_v = v[...].astype(jnp.float32) * lax.broadcast_in_dim(weights.tail, (CHUNK, COLUMNS), [0])
        tail_v_smem[...] = tail_v.astype(dtype)
        if outs[0] is None:
            plgpu.commit_smem()
            (state,) = _accumulate(call, (state + weights.fade * state, k.T, tail_v_smem))
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
        read *= lax.broadcast_in_dim(weights.head, read.shape, [0])
        result, state = _accumulate(call, (read, scores, v), (state + weights.fade * state, k.T, tail_v_smem))
        plgpu.barrier_arrive(consumed.at[stage])

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        out_smem[...] = result.astype(dtype)
        plgpu.commit_smem()
        where = place.batch, pl.ds(start, CHUNK), head, columns
        lax.switch(place.problem, [functools.partial(plgpu.copy_smem_to_gmem, out_smem, out.at[where]) for out in outs])
        return state

    def enter(states: Any) -> Array:
        if states is None:
            zeros = jnp.zeros((staged["k"].shape[-1], COLUMNS), jnp.float32)
            return plgpu.layout_cast(zeros, plgpu.Layout.WGMMA)
        source = states.at[place.batch, head, place.part, :, columns]
        return plgpu.load(source, layout=plgpu.Layout.WGMMA, optimized=False)

    state = lax.switch(place.problem, [functools.partial(enter, x) for x in states])
    state = lax.fori_loop(0, plan.chunks, chunk, state)

    if outs[0] is None:
        new_states[place.batch, head, place.part - call.first_part, :, columns] = state
        return
    plgpu.wait_smem_to_gmem(0)

    @pl.when((place.part == call.last_part) & (place.problem == len(outs) - 1))
    def _leave() -> None:
        new_states[place.batch, head, 0, :, columns] = state


def _accumulate(call: _Call, *terms: tuple[Array, Any, Any]) -> tuple[Array, ...]:
    """Computes start + a b for each (start, a, b), in flight together."""
    if call.interpret:  # the interpreter knows neither `run_state` nor a wgmma whose operand a is in registers
        sums = tuple(start + jnp.dot(a[...], b[...], preferred_element_type=jnp.float32) for start, a, b in terms)
        plgpu.commit_smem()  # these are plain reads, which the next copy has to wait for
        return sums

    def products(accumulators: Any) -> None:
        for accumulator, (_, a, b) in zip(accumulators, terms, strict=True):
            plgpu.wgmma(accumulator, a, b)

    return pl.run_state(products)(tuple(plgpu.ACC.init(start) for start, _, _ in terms))
