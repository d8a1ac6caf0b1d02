"""Text generation: prompts in, continuations out, in pieces or whole."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from transnormer_jax.data import Tokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.inference.beam_search import beam_search
from transnormer_jax.inference.decoding import (
    DecodeState,
    check_state,
    decode,
    empty_state,
    prefill,
    read_and_score,
    take_rows,
    windows,
)
from transnormer_jax.inference.precision import at_compute_dtype
from transnormer_jax.inference.prompt_state import PromptState, model_fingerprint
from transnormer_jax.inference.sampling import SamplingSettings, stack_settings
from transnormer_jax.inference.text_stream import CONTEXT, TextStream
from transnormer_jax.models import Cache, LanguageModel, ModelConfig, unstack_layers


class Beam(NamedTuple):
    """A text that beam search found.

    Attributes:
      text: without the prompt.
      score: its log-probability (natural) / tokens ** length_penalty.
    """

    text: str
    score: float


class LogProbabilities(NamedTuple):
    """Of the n tokens of a text.

    Attributes:
      tokens: [n] int32.
      log_probs: [n] float32, natural.
      likeliest: [n] bool, whether no token was likelier.
    """

    tokens: npt.NDArray[np.int32]
    log_probs: npt.NDArray[np.float32]
    likeliest: npt.NDArray[np.bool_]


class Generator:
    """Continues texts with a language model whose memory does not grow with the text.

    Memory and time per token do not depend on the length of a prompt or of its continuation, and neither has a limit.
    Prompts of different lengths go together; none influences another.

    Attributes:
      config: of the model, each of whose layers has parameters of its own.
      params: as generation keeps them: by layer, rounded to the dtype of the computation.

    Example:
      run = load_workdir("runs/tiny")
      generator = Generator(run.model_config, run.params, run.tokenizer)
      [text] = generator.generate(["Once upon a time"], max_new_tokens=64)
    """

    def __init__(self, config: ModelConfig, params: Any, tokenizer: Tokenizer):
        """Takes a model, its parameters (a tree of arrays, on one device) and the tokenizer it was trained with.

        Raises:
          UserError: the tokenizer has more tokens than the model, or the model no state of constant size.
        """
        check_state(config)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}: "
                "use the tokenizer the model was trained with."
            )
        self.config, own = unstack_layers(config, params)
        self._model = LanguageModel(self.config)
        self.params = at_compute_dtype(own, config.dtype)
        self.tokenizer = tokenizer

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
        prefix: PromptState | None = None,
    ) -> list[str]:
        """Returns the continuation of each prompt, without the prompt.

        A continuation ends before the end token or a stop string, or after `max_new_tokens`.

        Args:
          prompts: texts, each of any length; the empty one too.
          temperature: 0 takes the likeliest token each time; see `SamplingSettings`, also for the next three.
          top_k: only the k likeliest tokens.
          top_p: only the nucleus of probability p.
          repetition_penalty: above 1, tokens of prompt and continuation become less likely.
          stop: strings that end a continuation and are cut off.
          seed: of each prompt, or one number s for s, s + 1, s + 2, ... The same seed and prompt give the same text,
            up to rounding, whatever the other prompts.
          prefix: what every prompt follows, from `read`. The text that comes of it is the same as if the tokens of both
            were one prompt.

        Raises:
          UserError: an argument has no meaning.
        """
        texts = [""] * len(prompts)
        blocks = self.stream(
            prompts, max_new_tokens, temperature, top_k, top_p, repetition_penalty, stop, seed, prefix, block_size=16
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
        prefix: PromptState | None = None,
        block_size: int = 4,
    ) -> Iterator[list[str]]:
        """Yields what `generate` returns, piece by piece: each time, the next piece of every continuation, or "".

        A piece is certain: it holds whole characters, and nothing that may turn out to be a stop string.

        Args:
          prompts: these and the other arguments: see `generate`.
          block_size: number of tokens from one piece to the next. Fewer come sooner, more take less time in all.

        Raises:
          UserError: an argument has no meaning, at once; or the prefix is of another model, with the first piece.
        """
        _check(prompts, max_new_tokens, stop, block_size)
        settings = SamplingSettings(temperature, top_k, top_p, repetition_penalty)
        seeds = _seeds(seed, len(prompts))
        return self._blocks(prompts, max_new_tokens, settings, stop, seeds, prefix, block_size)

    def _blocks(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        settings: SamplingSettings,
        stop: Sequence[str],
        seeds: npt.NDArray[np.uint32],
        prefix: PromptState | None,
        block_size: int,
    ) -> Iterator[list[str]]:
        if not prompts:
            return
        state, contexts = self._prefill(prompts, prefix)
        texts = [TextStream(self.tokenizer, ids, stop) for ids in contexts]
        rows = stack_settings([settings] * len(prompts))
        for done in range(0, max_new_tokens, block_size):
            so_far = np.full(len(prompts), done, np.int32)
            state, tokens, _ = decode(self._model, self.params, state, seeds, rows, so_far, np.bool_(False), block_size)
            left = max_new_tokens - done
            block = np.asarray(tokens)[:, :left].tolist()
            yield [text.push(ids, last=left <= block_size) for text, ids in zip(texts, block, strict=True)]
            if all(text.finished for text in texts):
                return

    def beam_search(
        self,
        prompts: Sequence[str],
        num_beams: int = 4,
        max_new_tokens: int = 64,
        length_penalty: float = 1.0,
        prefix: PromptState | None = None,
    ) -> list[list[Beam]]:
        """Returns for each prompt the `num_beams` best continuations that beam search finds, best first.

        They are fewer only if there are no more texts of `max_new_tokens`.

        Args:
          num_beams: W, open texts for each prompt.
          length_penalty: a text counts log-probability / tokens ** length_penalty: 0 compares sums, 1 means.
          prefix: see `generate`.

        Raises:
          UserError: an argument has no meaning.
        """
        _check(prompts, max_new_tokens)
        if num_beams < 1:
            raise UserError(f"num_beams is {num_beams}: give a positive number.")
        if not prompts:
            return []
        state, contexts = self._prefill(prompts, prefix)
        found = beam_search(
            self._model,
            self.params,
            state,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            length_penalty=length_penalty,
            eos_id=self.tokenizer.eos_id,
        )

        def beam(context: Sequence[int], tokens: list[int], score: float) -> Beam:
            return Beam(TextStream(self.tokenizer, context, ()).push(tokens, last=True), score)

        return [
            [beam(context, *hypothesis) for hypothesis in best] for context, best in zip(contexts, found, strict=True)
        ]

    def log_probabilities(self, texts: Sequence[str], prefix: PromptState | None = None) -> list[LogProbabilities]:
        """Returns the log-probability of every token of each text, given the begin token or `prefix`, and those before.

        Natural logarithms, of the model itself; their sum is the log-probability of the text.

        Args:
          texts: each of any length; the empty one too.
          prefix: what every text follows, from `read`.

        Raises:
          UserError: `texts` is a single string, or the prefix is of another model.
        """
        _check(texts, 1)
        return self.score_tokens([self.tokenizer.encode(text) for text in texts], prefix)

    def score_tokens(self, rows: Sequence[Sequence[int]], prefix: PromptState | None = None) -> list[LogProbabilities]:
        """Returns the `log_probabilities` of token ids, one for each of `rows`.

        The begin token goes before each row unless there is a `prefix`.

        Raises:
          UserError: the prefix is of another model.
        """
        if not any(rows):
            return [_no_tokens() for _ in rows]
        state = self._start(len(rows), prefix)
        if prefix is None:
            state = prefill(self._model, self.params, state, [[self.tokenizer.bos_id]] * len(rows))
        log_probs, likeliest = [], []
        for tokens, segment_ids in windows(rows):
            state, scores = read_and_score(self._model, self.params, state, tokens, segment_ids, np.bool_(False))
            log_probs.append(np.asarray(scores.log_prob))
            likeliest.append(np.asarray(scores.likeliest))
        log_probs_of_rows, likeliest_of_rows = (np.concatenate(pieces, axis=1) for pieces in (log_probs, likeliest))
        return [
            LogProbabilities(np.array(ids, np.int32), log_prob[: len(ids)], best[: len(ids)])
            for ids, log_prob, best in zip(rows, log_probs_of_rows, likeliest_of_rows, strict=True)
        ]

    def read(self, prompt: str, prefix: PromptState | None = None) -> PromptState:
        """Reads a prompt to go on from later, as often as wanted: `generate(prompts, prefix=...)`.

        Args:
          prefix: what it follows.

        Returns:
          The state, of a size that does not depend on the prompt. It can be saved and loaded.

        Raises:
          UserError: the prefix is of another model.
        """
        state, [context] = self._prefill([prompt], prefix)
        return PromptState(state, tuple(context[-CONTEXT:]), self._fingerprint)

    @functools.cached_property
    def _fingerprint(self) -> str:
        return model_fingerprint(self.config, self.params)

    def _prefill(self, prompts: Sequence[str], prefix: PromptState | None) -> tuple[DecodeState, list[list[int]]]:
        """The state after the prompts, and the tokens before the text that follows, as far as its form needs them."""
        rows = [self.tokenizer.encode(prompt) for prompt in prompts]
        before = () if prefix is None else prefix.last_ids
        begin = [self.tokenizer.bos_id] if prefix is None else []
        read = [[*begin, *ids] for ids in rows]
        state = prefill(self._model, self.params, self._start(len(rows), prefix), read)
        return state, [[*before, *ids] for ids in rows]

    def _start(self, batch_size: int, prefix: PromptState | None) -> DecodeState:
        """The state before prompts, for the caller to donate."""
        if prefix is None:
            return empty_state(self._model, self.params, batch_size, self.tokenizer.vocab_size)
        if prefix.model != self._fingerprint:
            raise UserError("the prefix was read by another model: read it again with this one.")
        position, states = prefix.state.cache
        structure = jax.tree.structure(jax.eval_shape(lambda: self._model.init_cache(1)).states)
        cache = Cache(position, jax.tree.unflatten(structure, jax.tree.leaves(states)))
        return take_rows(prefix.state._replace(cache=cache), np.zeros(batch_size, np.int32))


def _check(prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = (), block_size: int = 1) -> None:
    for name, value in (("prompts", prompts), ("stop", stop)):
        if isinstance(value, str):
            raise UserError(f"{name} is one string: give a list, [{value[:20]!r}].")
    if "" in stop:
        raise UserError("stop holds an empty string, which every text begins with: leave it out.")
    for name, count in (("max_new_tokens", max_new_tokens), ("block_size", block_size)):
        if count < 1:
            raise UserError(f"{name} is {count}: give a positive number.")


def _seeds(seed: int | Sequence[int], count: int) -> npt.NDArray[np.uint32]:
    """A seed for each of `count` prompts."""
    seeds = range(seed, seed + count) if isinstance(seed, int) else seed
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds for {count} prompts: give one for each, or a single number.")
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise UserError(f"seed is {seed}: give numbers from 0 up to 2^32 - 1.")
    return np.array(seeds, np.uint32)


def _no_tokens() -> LogProbabilities:
    return LogProbabilities(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.bool_))
