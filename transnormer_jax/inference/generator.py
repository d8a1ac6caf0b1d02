"""Text generation: prompts in, continuations out, in pieces or whole."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transnormer_jax.data import Tokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.inference.decoding import decode, prefill
from transnormer_jax.inference.sampling import SamplingSettings, TracedSettings
from transnormer_jax.inference.text_stream import TextStream
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig


class Generator:
    """Continues texts with a TransNormerLLM.

    Memory and time per token do not depend on the length of a prompt or of its continuation, and neither has a limit.
    Prompts of different lengths go together; none influences another.

    Example:
      run = load_workdir("runs/tiny")
      generator = Generator(run.model_config, run.params, run.tokenizer)
      [text] = generator.generate(["Once upon a time"], max_new_tokens=64)
    """

    def __init__(self, config: TransNormerLLMConfig, params: Any, tokenizer: Tokenizer):
        """Takes a model, its parameters (a tree of arrays, on one device) and the tokenizer it was trained with.

        Raises:
          UserError: the tokenizer has more tokens than the model.
        """
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}: "
                "use the tokenizer the model was trained with."
            )
        self._model = TransNormerLLM(config)
        self._params = _at_compute_dtype(params, config.dtype)
        self._tokenizer = tokenizer

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | Sequence[int] = 0,
    ) -> list[str]:
        """Returns the continuation of each prompt, without the prompt.

        A continuation ends before the end token or a stop string, or after `max_new_tokens`.

        Args:
          prompts: texts, each of any length; the empty one too.
          max_new_tokens: of each continuation.
          temperature: 0 takes the likeliest token each time; see `SamplingSettings`, also for the next three.
          top_k: only the k likeliest tokens.
          top_p: only the nucleus of probability p.
          repetition_penalty: above 1, tokens of prompt and continuation become less likely.
          stop: strings that end a continuation and are cut off.
          seed: of each prompt, or one number s for s, s + 1, s + 2, ... The same seed and prompt give the same text,
            up to rounding, whatever the other prompts.

        Raises:
          UserError: an argument has no meaning.
        """
        texts = [""] * len(prompts)
        blocks = self.stream(
            prompts, max_new_tokens, temperature, top_k, top_p, repetition_penalty, stop, seed, block_size=16
        )
        for pieces in blocks:
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        return texts

    def stream(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | Sequence[int] = 0,
        block_size: int = 4,
    ) -> Iterator[list[str]]:
        """Yields what `generate` returns, piece by piece: each time, the next piece of every continuation, or "".

        A piece is certain: it holds whole characters, and nothing that may turn out to be a stop string.

        Args:
          prompts: these and the other arguments: see `generate`.
          max_new_tokens: see there.
          temperature: see there.
          top_k: see there.
          top_p: see there.
          repetition_penalty: see there.
          stop: see there.
          seed: see there.
          block_size: number of tokens from one piece to the next. Fewer come sooner, more take less time in all.
        """
        _check(prompts, max_new_tokens, stop, block_size)
        settings = SamplingSettings(temperature, top_k, top_p, repetition_penalty).traced()
        keys = _keys(seed, len(prompts))
        return self._blocks(prompts, max_new_tokens, settings, stop, keys, block_size)

    def _blocks(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        settings: TracedSettings,
        stop: Sequence[str],
        keys: jax.Array,
        block_size: int,
    ) -> Iterator[list[str]]:
        if not prompts:
            return
        prompt_ids = [self._tokenizer.encode(prompt) for prompt in prompts]
        texts = [TextStream(self._tokenizer, ids, stop) for ids in prompt_ids]
        with_bos = [[self._tokenizer.bos_id, *ids] for ids in prompt_ids]
        state = prefill(self._model, self._params, with_bos, self._tokenizer.vocab_size)
        for done in range(0, max_new_tokens, block_size):
            state, tokens = decode(self._model, self._params, state, keys, settings, done, block_size)
            left = max_new_tokens - done
            block = np.asarray(tokens)[:, :left].tolist()
            yield [text.push(ids, last=left <= block_size) for text, ids in zip(texts, block, strict=True)]
            if all(text.finished for text in texts):
                return


def _check(prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str], block_size: int) -> None:
    for name, value in (("prompts", prompts), ("stop", stop)):
        if isinstance(value, str):
            raise UserError(f"{name} is one string: give a list, [{value[:20]!r}].")
    if "" in stop:
        raise UserError("stop holds an empty string, which every text begins with: leave it out.")
    for name, count in (("max_new_tokens", max_new_tokens), ("block_size", block_size)):
        if count < 1:
            raise UserError(f"{name} is {count}: give a positive number.")


def _keys(seed: int | Sequence[int], count: int) -> jax.Array:
    """A random key for each of `count` prompts."""
    seeds = range(seed, seed + count) if isinstance(seed, int) else seed
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds for {count} prompts: give one for each, or a single number.")
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise UserError(f"seed is {seed}: give numbers from 0 up to 2^32 - 1.")
    return jax.vmap(jax.random.key)(np.array(seeds, np.uint32))


def _at_compute_dtype(params: Any, dtype: str) -> Any:
    """Rounds the parameters that the model rounds at each use: the same logits for half the bytes per token."""

    def cast(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        # The frequencies of LRPE, for one, stay float32 in every dtype.
        return jnp.asarray(leaf, dtype if path[-1].key in ("kernel", "bias", "embedding", "head") else None)

    return jax.tree_util.tree_map_with_path(cast, params)
