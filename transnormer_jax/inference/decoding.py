"""The two compiled functions of generation: read a window of the prompts, and write a block of tokens."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from transnormer_jax.inference.sampling import TracedSettings, sample
from transnormer_jax.models import Cache, TransNormerLLM

WINDOW = 512
_SHORTEST_WINDOW = 32


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


def prefill(model: TransNormerLLM, params: Any, prompts: list[list[int]], vocab_size: int) -> DecodeState:
    """Reads prompts of any lengths, at least one token each.

    They go through the model in windows of `WINDOW` tokens, or if they are shorter in one window of the next power of
    two: memory is constant, and a prompt of another length seldom compiles anything. Shorter prompts are padded on the
    left, so that all end together.

    Args:
      model: the model.
      params: its parameters.
      prompts: token ids.
      vocab_size: V, of the tokenizer: the model may have more logits, which mean nothing.
    """
    longest = max(len(prompt) for prompt in prompts)
    width = min(WINDOW, max(_SHORTEST_WINDOW, 1 << (longest - 1).bit_length()))
    padded_length = -(-longest // width) * width
    tokens = np.zeros((len(prompts), padded_length), np.int32)
    segment_ids = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, -len(prompt) :] = prompt
        segment_ids[row, -len(prompt) :] = 1

    state = _empty_state(model, params, len(prompts), vocab_size)
    for window in range(0, padded_length, width):
        columns = slice(window, window + width)
        state = _read_window(model, params, state, tokens[:, columns], segment_ids[:, columns])
    return state


@functools.partial(jax.jit, static_argnums=(0, 6), donate_argnums=2)
def decode(
    model: TransNormerLLM,
    params: Any,
    state: DecodeState,
    keys: Key[Array, " B"],
    settings: TracedSettings,
    tokens_so_far: Int[Array, ""],
    block_size: int,
) -> tuple[DecodeState, Int[Array, "B block_size"]]:
    """Writes `block_size` tokens.

    Args:
      model: the model.
      params: its parameters.
      state: after the prompts, or after the last block; it is donated.
      keys: [B], of the rows; the t-th token of a row is drawn with key fold_in(key, t), whatever the blocks.
      settings: of `sample`.
      tokens_so_far: number of tokens written by earlier blocks.
      block_size: static.

    Returns:
      The state after them, and the tokens [B, block_size] int32.
    """

    def step(state: DecodeState, t: Int[Array, ""]) -> tuple[DecodeState, Int[Array, " B"]]:
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        with jax.named_scope("sample"):
            token = sample(step_keys, state.logits, state.seen, **settings)
        return _read(model, params, state, token[:, None]), token

    state, tokens = jax.lax.scan(step, state, tokens_so_far + jnp.arange(block_size))
    return state, tokens.T


def _read(
    model: TransNormerLLM,
    params: Any,
    state: DecodeState,
    tokens: Int[Array, "B N"],
    segment_ids: Int[Array, "B N"] | None = None,
) -> DecodeState:
    """Goes on by N tokens. Only the last meets the head: all logits of a window would be the largest array here."""
    apply: Callable[..., Any] = functools.partial(model.apply, {"params": params})
    hidden, cache = apply(tokens, cache=state.cache, segment_ids=segment_ids, method="hidden")
    logits = apply(hidden[:, -1:], method="unembed")
    rows = jnp.arange(tokens.shape[0])[:, None]
    seen = state.seen.at[rows, tokens].max(True if segment_ids is None else segment_ids != 0)
    return DecodeState(cache, seen, logits[:, 0, : seen.shape[1]])


_read_window = jax.jit(_read, static_argnums=0, donate_argnums=2)


@functools.partial(jax.jit, static_argnums=(0, 2, 3), keep_unused=True)
def _empty_state(model: TransNormerLLM, params: Any, batch_size: int, vocab_size: int) -> DecodeState:
    """The state before the first window."""
    del params  # They only say on which device, in the form that later states have: another would compile again.
    shape = (batch_size, vocab_size)
    return DecodeState(model.init_cache(batch_size), jnp.zeros(shape, bool), jnp.zeros(shape))
