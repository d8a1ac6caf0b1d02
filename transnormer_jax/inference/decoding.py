"""The compiled functions of generation: prefill a window of prompts, decode a block of tokens, move rows."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float, Int, UInt32

from transnormer_jax.errors import UserError
from transnormer_jax.inference.sampling import RowSettings, sample
from transnormer_jax.inference.scoring import TokenScores, score
from transnormer_jax.models import Cache, LanguageModel, ModelConfig
from transnormer_jax.models.block import has_constant_state

WINDOW = 512
SHORTEST_WINDOW = 32
_SCORED_AT_ONCE = 64


class DecodeState(NamedTuple):
    """Where B texts stand. Its size does not depend on their lengths.

    Attributes:
      cache: the model's memory.
      seen: [B, V] bool, the tokens read so far.
      logits: [B, V] float32, of the next token.
    """

    cache: Cache
    seen: Bool[Array, "B V"]
    logits: Float[Array, "B V"]


def check_state(config: ModelConfig) -> None:
    """Raises UserError unless the model can continue texts of any length."""
    if not has_constant_state(config):
        raise UserError(
            f"a model with attention {', '.join(dict.fromkeys(config.attentions))} has no state of constant size, "
            "which generation carries from token to token: choose a causal linear attention, and no learned positions."
        )


def windows(
    prompts: Sequence[Sequence[int] | npt.NDArray[np.int32]],
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
    """Cuts prompts into windows of tokens and their segment ids, each [B, W] int32.

    They have `WINDOW` tokens, and the last the next power of two: memory is constant, and a prompt of another length
    seldom compiles anything. Shorter prompts are followed by padding. So a window holds the same tokens whatever comes
    after it, and what was read of one prompt can serve another that begins alike.
    """
    longest = max(len(prompt) for prompt in prompts)
    for start in range(0, longest, WINDOW):
        left = min(WINDOW, longest - start)
        width = max(SHORTEST_WINDOW, 1 << (left - 1).bit_length())
        tokens = np.zeros((len(prompts), width), np.int32)
        segment_ids = np.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            piece = prompt[start : start + WINDOW]
            tokens[row, : len(piece)] = piece
            segment_ids[row, : len(piece)] = 1
        yield tokens, segment_ids


def prefill(
    model: LanguageModel,
    params: Any,
    state: DecodeState,
    prompts: Sequence[Sequence[int]],
) -> DecodeState:
    """Reads prompts of any lengths, window by window, after `state`, which is donated."""
    for tokens, segment_ids in windows(prompts):
        state = read(model, params, state, tokens, segment_ids)
    return state


@functools.partial(jax.jit, static_argnums=(0, 2, 3), keep_unused=True)
def empty_state(model: LanguageModel, params: Any, batch_size: int, vocab_size: int) -> DecodeState:
    """The state of texts of which nothing was read.

    Args:
      vocab_size: V, of the tokenizer: the model may have more logits, which mean nothing.
    """
    del params  # They only say on which device, in the form that later states have: another would compile again.
    shape = (batch_size, vocab_size)
    return DecodeState(model.init_cache(batch_size), jnp.zeros(shape, bool), jnp.zeros(shape))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def read(
    model: LanguageModel,
    params: Any,
    state: DecodeState,
    tokens: Int[Array, "B N"],
    segment_ids: Int[Array, "B N"],
) -> DecodeState:
    """Goes on by a window, [B, N] each as from `windows`; the state is donated.

    Only the last token of each row reaches the head: all logits of a window would be the largest array here. A row
    without tokens in this window stays as it is.
    """
    hidden, cache = _hidden(model, params, state, tokens, segment_ids)
    return _after_window(model, params, state, tokens, segment_ids, hidden, cache)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def read_and_score(
    model: LanguageModel,
    params: Any,
    state: DecodeState,
    tokens: Int[Array, "B N"],
    segment_ids: Int[Array, "B N"],
    top_wanted: Bool[Array, ""],
) -> tuple[DecodeState, TokenScores]:
    """`read`, and the `score` [B, N] of these tokens, each given those before; what stands at padding means nothing."""
    vocab_size = state.logits.shape[1]
    hidden, cache = _hidden(model, params, state, tokens, segment_ids)

    def scores(piece: tuple[Array, Array]) -> TokenScores:
        hidden, next_token = piece
        return score(_logits(model, params, hidden, vocab_size), next_token, top_wanted)

    pieces = [_in_pieces(x) for x in (hidden, jnp.roll(tokens, -1, axis=1))]
    # The logits of all tokens never exist at one time. Those after token t score token t + 1.
    after = jax.tree.map(_in_one, jax.lax.map(scores, tuple(pieces)))
    first = score(state.logits[:, None], tokens[:, :1], top_wanted)
    shifted = jax.tree.map(lambda first, after: jnp.concatenate([first, after[:, :-1]], axis=1), first, after)
    return _after_window(model, params, state, tokens, segment_ids, hidden, cache), shifted


@functools.partial(jax.jit, static_argnums=(0, 7), donate_argnums=2)
def decode(
    model: LanguageModel,
    params: Any,
    state: DecodeState,
    seeds: UInt32[Array, " B"],
    settings: RowSettings,
    tokens_so_far: Int[Array, " B"],
    top_wanted: Bool[Array, ""],
    block_size: int,
) -> tuple[DecodeState, Int[Array, "B block_size"], TokenScores]:
    """Writes `block_size` tokens in every row.

    Args:
      state: after the prompts, or after the last block; it is donated.
      seeds: [B] uint32; the t-th token of a row is drawn with fold_in(key(seed), t), whatever the blocks.
      tokens_so_far: [B] int32, number of tokens that earlier blocks wrote.
      top_wanted: bool, whether the likeliest tokens are returned.
      block_size: static.

    Returns:
      The state after them, the tokens [B, block_size] int32, and their scores [B, block_size].
    """
    keys = jax.vmap(jax.random.key)(seeds)

    def step(state: DecodeState, t: Int[Array, ""]) -> tuple[DecodeState, tuple[Array, TokenScores]]:
        with jax.named_scope("sample"):
            step_keys = jax.vmap(jax.random.fold_in)(keys, tokens_so_far + t)
            token = sample(step_keys, state.logits, state.seen, settings)
            scores = score(state.logits, token, top_wanted)
        return advance(model, params, state, token), (token, scores)

    state, written = jax.lax.scan(step, state, jnp.arange(block_size))
    tokens, scores = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), written)
    return state, tokens, scores


def advance(model: LanguageModel, params: Any, state: DecodeState, token: Int[Array, " B"]) -> DecodeState:
    """Goes on by one token in every row."""
    hidden, cache = _hidden(model, params, state, token[:, None], None)
    seen = state.seen.at[jnp.arange(token.shape[0]), token].set(True)
    return DecodeState(cache, seen, _logits(model, params, hidden, seen.shape[1])[:, 0])


@jax.jit
def take_rows(state: DecodeState, rows: Int[Array, " R"]) -> DecodeState:
    """The state of the rows [R] int32, in this order; a row may come more than once."""
    return jax.tree.map(lambda axis, x: jnp.take(x, rows, axis=axis), _row_axes(state), state)


@functools.partial(jax.jit, donate_argnums=0)
def put_row(state: DecodeState, row: Int[Array, ""], one: DecodeState) -> DecodeState:
    """The state with the one of a single text in row `row`; `state` is donated."""

    def put(axis: int, x: Array, y: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, y, row, axis)

    return jax.tree.map(put, _row_axes(state), state, one)


def _row_axes(state: DecodeState) -> DecodeState:
    """The batch axis of each array."""
    return DecodeState(Cache(0, jax.tree.map(lambda _: 1, state.cache.states)), 0, 0)  # type: ignore[arg-type]


def _hidden(
    model: LanguageModel,
    params: Any,
    state: DecodeState,
    tokens: Int[Array, "B N"],
    segment_ids: Int[Array, "B N"] | None,
) -> tuple[Float[Array, "B N D"], Cache]:
    apply: Callable[..., Any] = model.apply
    return apply({"params": params}, tokens, cache=state.cache, segment_ids=segment_ids, method="hidden")


def _logits(model: LanguageModel, params: Any, hidden: Float[Array, "B N D"], vocab_size: int) -> Float[Array, "B N V"]:
    apply: Callable[..., Any] = model.apply
    return apply({"params": params}, hidden, method="unembed")[..., :vocab_size]


def _after_window(
    model: LanguageModel,
    params: Any,
    state: DecodeState,
    tokens: Int[Array, "B N"],
    segment_ids: Int[Array, "B N"],
    hidden: Float[Array, "B N D"],
    cache: Cache,
) -> DecodeState:
    real = segment_ids != 0
    count = jnp.sum(real, axis=1)
    last = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], axis=1)
    logits = _logits(model, params, last, state.logits.shape[1])[:, 0]
    seen = state.seen.at[jnp.arange(tokens.shape[0])[:, None], tokens].max(real)
    return DecodeState(cache, seen, jnp.where(count[:, None] > 0, logits, state.logits))


def _in_pieces(x: Array) -> Array:
    """[B, N, ...] -> [N / n, B, n, ...]."""
    n = min(_SCORED_AT_ONCE, x.shape[1])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, n, *x.shape[2:]), 1, 0)


def _in_one(x: Array) -> Array:
    """[N / n, B, n, ...] -> [B, N, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])
