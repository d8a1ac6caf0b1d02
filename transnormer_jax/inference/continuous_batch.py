"""Continuous batching: requests join and leave a running batch of fixed slots.

A slot is a row of the decode state, of constant size however long its text is, so that there is nothing to page: a
request joins when its prompt was read and leaves when its caller says so. No compiled shape depends on how many there
are.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from transnormer_jax.errors import UserError
from transnormer_jax.inference.decoding import (
    WINDOW,
    DecodeState,
    check_state,
    decode,
    empty_state,
    put_row,
    read,
    read_and_score,
    windows,
)
from transnormer_jax.inference.precision import at_compute_dtype
from transnormer_jax.inference.sampling import SamplingSettings, stack_settings
from transnormer_jax.inference.scoring import MAX_TOP, TokenScores
from transnormer_jax.models import LanguageModel, ModelConfig, unstack_layers

# Tokens written from one look at the requests to the next.
_BLOCK_SIZE = 4

_GREEDY = SamplingSettings(temperature=0.0)


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
      prompt: token ids, at least one; usually the begin token comes first.
      max_new_tokens: how many tokens to write.
      settings: how to choose them.
      seed: of the random choices, from 0 up to 2^32 - 1.
      top_log_probs: how many of the likeliest tokens are returned with each new one; up to 20.
      prompt_log_probs: whether the prompt's own tokens are scored too.
    """

    prompt: Sequence[int]
    max_new_tokens: int = 64
    settings: SamplingSettings = _GREEDY
    seed: int = 0
    top_log_probs: int = 0
    prompt_log_probs: bool = False

    def __post_init__(self) -> None:
        """Raises UserError where a field has no meaning."""
        if not len(self.prompt):
            raise UserError("a request's prompt has no token: begin it with the tokenizer's bos_id.")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}: give a positive number.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}: give a number from 0 up to 2^32 - 1.")
        if not 0 <= self.top_log_probs <= MAX_TOP:
            raise UserError(f"top_log_probs is {self.top_log_probs}: give a number from 0 to {MAX_TOP}.")


class TokenLogProbs(NamedTuple):
    """A token and what the model itself thought of it, before temperature and penalties.

    Attributes:
      token: its id.
      log_prob: natural.
      top: the likeliest tokens with theirs, likeliest first.
    """

    token: int
    log_prob: float
    top: list[tuple[int, float]]


class Progress(NamedTuple):
    """News of one request.

    Attributes:
      request: its number, from `submit`.
      prompt: scores of all tokens of the prompt but the first, in the first news, if they were asked for.
      tokens: the next tokens.
      last: nothing follows.
    """

    request: int
    prompt: list[TokenLogProbs]
    tokens: list[TokenLogProbs]
    last: bool


@dataclasses.dataclass
class _Text:
    """A request on its way: waiting, being read, or in a slot."""

    number: int
    request: Request
    prompt: npt.NDArray[np.int32]
    windows: Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]
    state: DecodeState | None = None
    tokens_read: int = 0
    tokens_written: int = 0
    prompt_scores: list[TokenLogProbs] = dataclasses.field(default_factory=list)


class ContinuousBatch:
    """A batch of `slots` texts that go on together while others come and go.

    It knows tokens only: whoever reads the news turns them into text, and cancels a request whose text has ended. A
    request gets the tokens that it would get alone, since no row of the batch depends on another and a prompt is always
    read by itself, in the same windows. For one thread.

    Example:
      batch = ContinuousBatch(config, params, vocab_size=259, slots=8)
      number = batch.submit(Request(prompt=[1, 40, 41], max_new_tokens=16))
      while not batch.idle:
        for news in batch.step(): ...
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        *,
        vocab_size: int,
        slots: int = 8,
        prefix_cache: int = 16,
    ):
        """Makes an empty batch.

        Args:
          params: its parameters (a tree of arrays, on one device).
          slots: texts that are written at one time.
          prefix_cache: states kept for prompts that begin alike, one for every 512 tokens read, the oldest dropped.

        Raises:
          UserError: `slots` is not positive, `prefix_cache` negative, or the model has no state of constant size.
        """
        check_state(config)
        if slots < 1:
            raise UserError(f"slots is {slots}: give a positive number.")
        if prefix_cache < 0:
            raise UserError(f"prefix_cache is {prefix_cache}: give the number of states to keep, or 0.")
        config, params = unstack_layers(config, params)
        self._model = LanguageModel(config)
        self._params = at_compute_dtype(params, config.dtype)
        self._vocab_size = vocab_size
        self._state = empty_state(self._model, self._params, slots, vocab_size)
        self._slots: list[_Text | None] = [None] * slots
        self._queue: collections.deque[_Text] = collections.deque()
        self._numbers = itertools.count()
        self._prefixes = _PrefixCache(prefix_cache)

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return sum(text is not None for text in self._slots)

    @property
    def idle(self) -> bool:
        """Whether `step` has nothing to do."""
        return not self.waiting and not self.running

    def submit(self, request: Request) -> int:
        """Puts a request into the queue, and returns its number."""
        prompt = np.array(request.prompt, np.int32)
        text = _Text(next(self._numbers), request, prompt, windows([prompt]))
        self._queue.append(text)
        return text.number

    def cancel(self, number: int) -> None:
        """Forgets a request, wherever it is; one that has ended is no error."""
        self._queue = collections.deque(text for text in self._queue if text.number != number)
        self._slots = [None if text and text.number == number else text for text in self._slots]

    def step(self) -> list[Progress]:
        """Reads up to a window of tokens of the prompts that wait, then writes a block in every slot in use."""
        self._read()
        return self._write() if self.running else []

    def _read(self) -> None:
        budget = WINDOW
        while self._queue and None in self._slots:
            text = self._queue[0]
            if text.state is None:
                self._begin(text)
            window = next(text.windows, None)
            if window is not None:
                if window[0].size > budget:
                    text.windows = itertools.chain([window], text.windows)
                    return
                budget -= window[0].size
                self._read_window(text, *window)
            if text.tokens_read == len(text.prompt):
                self._queue.popleft()
                slot = self._slots.index(None)
                self._slots[slot] = text
                self._state = put_row(self._state, np.int32(slot), text.state)
                text.state = None

    def _begin(self, text: _Text) -> None:
        """Gives a text its state: that of the longest known beginning of its prompt."""
        # Who wants the scores of the prompt needs all of it read.
        known = None if text.request.prompt_log_probs else self._prefixes.longest(text.prompt)
        if known is None:
            text.state = empty_state(self._model, self._params, 1, self._vocab_size)
        else:
            text.tokens_read, text.state = known
            text.windows = windows([text.prompt[text.tokens_read :]])

    def _read_window(self, text: _Text, tokens: npt.NDArray[np.int32], segment_ids: npt.NDArray[np.int32]) -> None:
        if text.request.prompt_log_probs:
            top_wanted = np.bool_(text.request.top_log_probs)
            text.state, scores = read_and_score(self._model, self._params, text.state, tokens, segment_ids, top_wanted)
            count = int(segment_ids.sum())
            new = _with_log_probs(tokens[:, :count], scores, 0, text.request.top_log_probs)
            text.prompt_scores += new if text.tokens_read else new[1:]
        else:
            text.state = read(self._model, self._params, text.state, tokens, segment_ids)
        text.tokens_read += int(segment_ids.sum())
        if text.tokens_read % WINDOW == 0:
            self._prefixes.keep(text.prompt[: text.tokens_read], text.state)

    def _write(self) -> list[Progress]:
        requests = [_UNUSED if text is None else text.request for text in self._slots]
        self._state, tokens, scores = decode(
            self._model,
            self._params,
            self._state,
            np.array([request.seed for request in requests], np.uint32),
            stack_settings([request.settings for request in requests]),
            np.array([0 if text is None else text.tokens_written for text in self._slots], np.int32),
            np.bool_(any(request.top_log_probs for request in requests)),
            _BLOCK_SIZE,
        )
        tokens, scores = jax.device_get((tokens, scores))
        news = []
        for slot, text in enumerate(self._slots):
            if text is None:
                continue
            left = text.request.max_new_tokens - text.tokens_written
            last = left <= _BLOCK_SIZE
            new = _with_log_probs(tokens[:, :left], scores, slot, text.request.top_log_probs)
            news.append(Progress(text.number, text.prompt_scores, new, last))
            text.prompt_scores = []
            text.tokens_written += len(new)
            if last:
                self._slots[slot] = None
        return news


class _PrefixCache:
    """States after whole windows of prompts, by their tokens; the least recently used is dropped."""

    def __init__(self, size: int):
        self._size = size
        self._states: collections.OrderedDict[bytes, DecodeState] = collections.OrderedDict()

    def longest(self, prompt: npt.NDArray[np.int32]) -> tuple[int, DecodeState] | None:
        """The longest known beginning: its number of tokens, whole windows, and a state of the caller's own."""
        whole = prompt.tobytes()
        key = max(filter(whole.startswith, self._states), key=len, default=None)
        if key is None:
            return None
        self._states.move_to_end(key)
        return len(key) // prompt.itemsize, _copy(self._states[key])

    def keep(self, prompt: npt.NDArray[np.int32], state: DecodeState) -> None:
        """Keeps a copy of the state after `prompt`."""
        if not self._size:
            return
        key = prompt.tobytes()
        self._states[key] = _copy(state)
        self._states.move_to_end(key)
        if len(self._states) > self._size:
            self._states.popitem(last=False)


_UNUSED = Request(prompt=[0])


def _copy(state: DecodeState) -> DecodeState:
    """Another copy in memory: reading on donates the state."""
    return jax.tree.map(jnp.copy, state)


def _with_log_probs(tokens: npt.NDArray[np.int32], scores: TokenScores, row: int, count: int) -> list[TokenLogProbs]:
    """The scores of a row of tokens [B, N] for people: Python numbers, and the `count` likeliest."""
    top_tokens = np.asarray(scores.top_tokens)[row, :, :count].tolist()
    top_log_probs = np.asarray(scores.top_log_probs)[row, :, :count].tolist()
    tops = [list(zip(*pair, strict=True)) for pair in zip(top_tokens, top_log_probs, strict=True)]
    log_probs = np.asarray(scores.log_prob)[row].tolist()
    return [TokenLogProbs(*scored) for scored in zip(tokens[row].tolist(), log_probs, tops, strict=False)]
