"""Chunked linear attention: matrix products inside a chunk of tokens, one state from chunk to chunk.

TransNormerLLM's lightning attention (arXiv 2401.04658, Algorithm 1) without its positive exponents, for any decay.

A row is a scan over blocks of chunks, sized so that what a block needs stays in the cache of a CPU; on GPUs and TPUs,
where launching operations costs more than memory traffic, a block is the whole row. The backward pass is one scan from
the end: it recomputes the states inside a block from the one saved at its start, and the scores once.

Letters of the products: b row, m chunk of a block, g query/key head, r value head of that group, c and s token of a
chunk, k and v features.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from transnormer_jax.ops.hardware import target_hardware
from transnormer_jax.ops.linear_attention.decay import (
    ChunkDecay,
    Weights,
    split_decay,
    weights,
)
from transnormer_jax.ops.linear_attention.documents import (
    ChunkDocuments,
    DocumentLayout,
    cross_chunks,
    find_layout,
    set_states,
    states_of,
)
from transnormer_jax.ops.linear_attention.operands import Gradients, Operands, State
from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.precision import dot

# Bytes of one array in a block: a few of them fit into the second-level cache of a CPU core.
_BLOCK_BYTES = 2**19


def default_chunk_size(key_dim: int, value_dim: int) -> int:
    """About as many tokens as a head has features, so that the work inside chunks and on states is about equal."""
    return 64 if max(key_dim, value_dim) <= 64 or target_hardware().platform == "cpu" else 128


def forward(
    inputs: Operands,
    *,
    chunk_size: int | None = None,
    save: bool = False,
    parallel: bool = False,
) -> tuple[Float[Array, "B N H V"], State, Any]:
    """Output, final state, and the states before each block and after the last; `Backend` explains the arguments.

    With `parallel`, one block covers the row and `jax.lax.associative_scan` finds the states of its chunks.
    """
    q, k, v, log_decay, state, segments = inputs
    blocks = _split(q, k, v, log_decay, state, segments, chunk_size, parallel)
    initial = _by_group(state, q.shape[2])
    operands = [blocks.lay_out(x) for x in (q, k, v)]

    def attend(carry: tuple[Array, Array, Array], number: Array | int) -> tuple[tuple[Array, Array, Array], Array]:
        state, final_states, out = carry
        w, documents = blocks.weights(number), blocks.documents(number)
        q, _, v = blocks.take(operands, number)
        k_t = blocks.take_transposed(operands[1], number)
        with jax.named_scope("chunk_states"):
            kv_sum = _dot("bmgkc,bmgrcv->bmgrkv", k_t, _scale(v, w.k_decay))
            enters = None if documents is None else (documents.first, states_of(initial, documents.document))
            before, after = cross_chunks(state, w.chunk_decay, kv_sum, enters, parallel=parallel)
        with jax.named_scope("within_chunk"):
            scores = _dot("bmgck,bmgks->bmgcs", q, k_t)[:, :, :, None] * w.intra
            new = _dot("bmgrcs,bmgrsv->bmgrcv", scores.astype(v.dtype), v)
        with jax.named_scope("across_chunks"):
            new += w.q_decay[..., None] * _dot("bmgck,bmgrkv->bmgrcv", q, before.astype(q.dtype))
        if documents is not None:
            final_states = set_states(final_states, documents.document, documents.last, after)
        return (after[:, -1], final_states, blocks.put(out, new, number)), state

    first = initial if blocks.layout is None else jnp.zeros_like(initial[:, 0])
    (last, final_states, out), saved = _scan(attend, (first, initial, jnp.zeros_like(operands[2])), blocks.num_blocks)
    final = last if blocks.layout is None else final_states
    return blocks.take_back(out), final.reshape(state.shape), (saved, last) if save else None


def backward(
    inputs: Operands,
    saved: tuple[Float[Array, "blocks B G R K V"], Float[Array, "B G R K V"]],
    d_out: Float[Array, "B N H V"],
    d_final: State,
    *,
    decay_gradient: bool,
    chunk_size: int | None = None,
    parallel: bool = False,
) -> Gradients:
    """The gradients, that of each token's log decay only if asked for.

    The gradient of the decay is local to a chunk: with c the log decay accumulated in it,

        dc_t = q_t . dq_t - k_t . dk_t,    d_step_t = sum_{s >= t} dc_s + <S_right, dS_right>

    The textbook form, which sums over the whole row, loses digits where the decay is strong.
    """
    q, k, v, log_decay, state, segments = inputs
    blocks = _split(q, k, v, log_decay, state, segments, chunk_size, parallel)
    num_groups = q.shape[2]
    initial, d_initial = _by_group(state, num_groups), _by_group(d_final, num_groups)
    operands = [blocks.lay_out(x) for x in (q, k, v, d_out)]

    # The decay of one value head needs its own share of dq and dk; else the group's shares are summed early.
    def sum_group(x: Array) -> Array:
        return x if decay_gradient else jnp.sum(x, 3, keepdims=True)

    def pull_back(carry: tuple[Array, ...], block: tuple[Array | int, Array]) -> tuple[tuple[Array, ...], None]:
        (d_state, d_states, after_block, *gradients), (number, state) = carry, block
        w, documents = blocks.weights(number), blocks.documents(number)
        _, k, v, d_out = blocks.take(operands, number)
        q_t, k_t = (blocks.take_transposed(x, number) for x in operands[:2])
        decayed_v, decayed_d_out = _scale(v, w.k_decay), _scale(d_out, w.q_decay)
        enters = leaves = None
        if documents is not None:
            enters = documents.first, states_of(initial, documents.document)
            leaves = documents.last, states_of(_by_group(d_final, num_groups), documents.document)
        kv_sum = _dot("bmgkc,bmgrcv->bmgrkv", k_t, decayed_v)
        d_kv_sum = _dot("bmgkc,bmgrcv->bmgrkv", q_t, decayed_d_out)
        before, after = cross_chunks(state, w.chunk_decay, kv_sum, enters, parallel=parallel)
        if blocks.chunks == 1:  # known, so that nothing depends on kv_sum, which then is not computed
            after = after_block[:, None]
        d_after, d_before = cross_chunks(d_state, w.chunk_decay, d_kv_sum, leaves, parallel=parallel, reverse=True)

        intra_t = jnp.swapaxes(w.intra, -1, -2)
        scores_t = (_dot("bmgsk,bmgkc->bmgsc", k, q_t)[:, :, :, None] * intra_t).astype(v.dtype)
        d_scores_t = _dot("bmgrsv,bmgrcv->bmgrsc", v, d_out)
        d_scores = sum_group(jnp.swapaxes(d_scores_t, -1, -2) * w.intra).astype(v.dtype)
        d_scores_t = sum_group(d_scores_t * intra_t).astype(v.dtype)
        states, d_states_right = before.astype(v.dtype), d_after.astype(v.dtype)
        dq = _dot("bmgrcs,bmgsk->bmgrck", d_scores, k)
        dq += sum_group(_dot("bmgrcv,bmgrkv->bmgrck", decayed_d_out, states))
        dk = _dot("bmgrsc,bmgkc->bmgrsk", d_scores_t, q_t)
        dk += sum_group(_dot("bmgrsv,bmgrkv->bmgrsk", decayed_v, d_states_right))
        dv = _dot("bmgrsc,bmgrcv->bmgrsv", scores_t, d_out)
        dv += w.k_decay[..., None] * _dot("bmgsk,bmgrkv->bmgrsv", k, d_states_right)
        new = [jnp.sum(dq, 3), jnp.sum(dk, 3), dv]
        if decay_gradient:
            q = blocks.take(operands[:1], number)[0]
            dc = jnp.sum(q[:, :, :, None] * dq - k[:, :, :, None] * dk, axis=-1)
            border = jnp.sum(after * d_after, axis=(-2, -1))
            new.append((jax.lax.cumsum(dc, axis=4, reverse=True) + border[..., None])[..., None])
        if documents is not None:
            d_states = set_states(d_states, documents.document, documents.first, d_before)
        gradients = [blocks.put(x, y, number) for x, y in zip(gradients, new, strict=True)]
        return (d_before[:, 0], d_states, state, *gradients), None

    zeros = [jnp.zeros_like(x) for x in operands[:3]]
    if decay_gradient:
        zeros.append(jnp.zeros((*operands[2].shape[:3], 1), jnp.float32))
    last = d_initial if blocks.layout is None else jnp.zeros_like(d_initial[:, 0])
    states, after_row = saved
    carry = (last, d_initial, after_row, *zeros)
    (d_first, d_states, _, *gradients), _ = _scan(pull_back, carry, blocks.num_blocks, states, reverse=True)
    dq, dk, dv, *d_steps = (blocks.take_back(x) for x in gradients)
    d_initial = d_first if blocks.layout is None else d_states
    return Gradients(dq, dk, dv, d_steps[0][..., 0] if d_steps else None, d_initial.reshape(state.shape))


def step_gradient(operands: Operands, d_out: Float[Array, "B N H V"], d_final: State) -> Float[Array, "B N H"] | None:
    """The gradient of each token's log decay in float32, for kernels that do not compute it."""
    q, k, v, d_out = (x.astype(jnp.float32) for x in (*operands[:3], d_out))
    operands = operands._replace(q=q, k=k, v=v)
    _, _, saved = forward(operands, save=True)
    return backward(operands, saved, d_out, d_final, decay_gradient=True).steps


class _Blocks(NamedTuple):
    """A row as blocks of chunks.

    Attributes:
      num_tokens: N.
      chunk: tokens per chunk.
      chunks: chunks per block.
      num_blocks: blocks per row.
      groups: query/key heads.
      decay: of all chunks.
      all_weights: of every chunk alike, or None where chunks differ.
      layout: of the documents, if each has its own state.
    """

    num_tokens: int
    chunk: int
    chunks: int
    num_blocks: int
    groups: int
    decay: ChunkDecay
    all_weights: Weights | None
    layout: DocumentLayout | None

    def lay_out(self, x: Shaped[Array, "B N H _"]) -> Shaped[Array, "B _ H _"]:
        """The whole blocks of a row."""
        if self.layout is not None:
            return self.layout.lay_out(x)
        pad = self.num_blocks * self.chunks * self.chunk - self.num_tokens
        return jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) if pad else x

    def take_back(self, x: Shaped[Array, "B _ H _"]) -> Shaped[Array, "B N H _"]:
        """The opposite of `lay_out`."""
        return x[:, : self.num_tokens] if self.layout is None else self.layout.take_back(x)

    def take(self, operands: list[Array], number: Array | int) -> list[Array]:
        """Block `number` of q, k [b m g c k] and of v and d_out [b m g r c v]."""
        return [
            (x if i < 2 else x.reshape(*x.shape[:2], self.groups, -1, *x.shape[3:]))
            for i, x in enumerate(self._heads_first(self._slice(x, number, self.chunks * self.chunk)) for x in operands)
        ]

    def take_transposed(self, x: Array, number: Array | int) -> Array:
        """Block `number` of q or k, features before tokens [b m g k c]: an operand that products contract over tokens.

        XLA's CPU compiler multiplies it twice as fast (in bfloat16 six times) as one that it would have to transpose,
        and transposes it faster where it does nothing else at the same time, hence the barrier.
        """
        x = jax.lax.optimization_barrier(self._slice(x, number, self.chunks * self.chunk))
        return jnp.swapaxes(self._heads_first(x), -1, -2)

    def _heads_first(self, x: Array) -> Array:
        return jnp.swapaxes(x.reshape(x.shape[0], self.chunks, self.chunk, *x.shape[2:]), 2, 3)

    def put(self, whole: Array, block: Array, number: Array | int) -> Array:
        """`whole` [b n h k] with block `number` [b m g (r) c k] written into it."""
        block = block.reshape(*block.shape[:2], whole.shape[2], *block.shape[-2:])
        block = jnp.swapaxes(block, 2, 3).reshape(whole.shape[0], -1, *whole.shape[2:]).astype(whole.dtype)
        if self.num_blocks == 1:
            return block
        return jax.lax.dynamic_update_slice_in_dim(whole, block, number * block.shape[1], axis=1)

    def weights(self, number: Array | int) -> Weights:
        """The weights of block `number`, heads as [g r]."""
        w = self.all_weights
        if w is None:
            decay = jax.tree.map(lambda x: x if x.ndim == 1 else self._slice(x, number), self.decay)
            # Else XLA's CPU compiler would slice inside the loop of exponentials, which then is not vectorised.
            w = weights(jax.lax.optimization_barrier(decay))
        return Weights(*(x.reshape(*x.shape[:2], self.groups, -1, *x.shape[3:]) for x in w))

    def documents(self, number: Array | int) -> ChunkDocuments | None:
        """The documents of block `number`, if each has its own state."""
        return None if self.layout is None else ChunkDocuments(*(self._slice(x, number) for x in self.layout.chunks))

    def _slice(self, x: Array, number: Array | int, size: int = 0) -> Array:
        size = size or self.chunks
        return x if self.num_blocks == 1 else jax.lax.dynamic_slice_in_dim(x, number * size, size, axis=1)


def _split(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    state: Array,
    segments: Segments | None,
    chunk_size: int | None,
    parallel: bool,
) -> _Blocks:
    batch, num_tokens, num_heads = v.shape[:3]
    key_dim, value_dim = k.shape[3], v.shape[3]
    chunk = min(chunk_size or default_chunk_size(key_dim, value_dim), num_tokens)
    by_document = state.ndim == 5
    num_chunks = -(-(num_tokens + by_document * state.shape[1] * (chunk - 1)) // chunk)
    chunks = num_chunks
    if not parallel and target_hardware().platform == "cpu":
        rows = batch if isinstance(batch, int) else 1  # an exported program leaves it open
        chunk_bytes = rows * chunk * num_heads * max(key_dim, value_dim) * v.dtype.itemsize
        chunks = max(1, min(num_chunks, _BLOCK_BYTES // chunk_bytes))
    count = -(-num_chunks // chunks)
    chunks = -(-num_chunks // count)
    layout = None
    if by_document:
        layout = find_layout(segments, batch, num_tokens, state.shape[1], chunk, count * chunks)
        decay = layout.decay(log_decay, num_tokens)
    else:
        decay = split_decay(log_decay, segments, num_tokens, count * chunks, chunk)
    static = decay.steps.shape[:2] == (1, 1) and decay.segment_index is None
    return _Blocks(num_tokens, chunk, chunks, count, q.shape[2], decay, weights(decay) if static else None, layout)


def _dot(equation: str, a: Array, b: Array) -> Array:
    """`precision.dot` without r where there is one value head per group: XLA's CPU compiler would transpose for it."""
    inputs, output = equation.split("->")
    first, second = inputs.split(",")
    sizes = dict(zip(first + second, a.shape + b.shape, strict=True))
    if sizes.get("r") != 1:
        return dot(equation, a, b)
    a, b = (x.reshape([sizes[name] for name in names if name != "r"]) for x, names in ((a, first), (b, second)))
    return dot(equation.replace("r", ""), a, b).reshape([sizes[name] for name in output])


def _scale(x: Float[Array, "... c v"], weights: Float[Array, "... c"]) -> Float[Array, "... c v"]:
    """Multiplies in float32, so that a 16-bit result is rounded once."""
    return (x * weights[..., None]).astype(x.dtype)


def _by_group(state: Float[Array, "... H K V"], groups: int) -> Float[Array, "... G R K V"]:
    return state.reshape(*state.shape[:-3], groups, -1, *state.shape[-2:])


def _scan(step: Callable[..., Any], carry: Any, length: int, xs: Any = None, *, reverse: bool = False) -> Any:
    """`jax.lax.scan` over the numbers of blocks, and `xs` beside them; without a loop if there is one block."""
    if length == 1:
        carry, y = step(carry, 0 if xs is None else (0, xs[0]))
        return carry, None if y is None else y[None]
    numbers = jnp.arange(length)
    return jax.lax.scan(step, carry, numbers if xs is None else (numbers, xs), reverse=reverse)
