"""Turns tokens into text that will not change: whole characters, nothing that may start a stop string."""

from collections.abc import Collection, Sequence

from transnormer_jax.data import Tokenizer

# Tokens before a text that its form may depend on: a leading space, the beginning of a character.
CONTEXT = 16

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text that follows one prompt, in pieces. Their sum does not depend on how the tokens are dealt into pushes.

    Attributes:
      finished: an end token, a stop string or the last push came; later tokens are ignored.
      stopped: it was an end token or a stop string.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str], end_ids: Collection[int] | None = None
    ):
        """Begins after the ids of `prompt`, and ends before the first of the strings `stop` or an end token.

        Args:
          prompt: its last `CONTEXT` ids are enough.
          stop: strings that end the text and are not part of it.
          end_ids: of end tokens; the tokenizer's own if None.
        """
        self.finished = self.stopped = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._end_ids = frozenset([tokenizer.eos_id] if end_ids is None else end_ids)
        self._held = ""
        # What is decoded is a window: the tokens of an earlier push for context, then the new ones.
        self._window = list(prompt[-CONTEXT:])
        self._context = len(self._window)
        self._emitted = len(tokenizer.decode(self._window))  # characters of the window's text that are known already

    def push(self, ids: list[int], *, last: bool = False) -> str:
        """Reads tokens, and returns the text that is now certain; with `last`, all there is."""
        if self.finished:
            return ""
        end = next((place for place, token in enumerate(ids) if token in self._end_ids), None)
        if end is not None:
            ids, last = ids[:end], True
            self.stopped = True
        self._window += ids
        text = self._held + self._decode(last)

        matches = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]
        if matches:
            # The one that ends first, as if the text had come letter by letter.
            self.finished = self.stopped = True
            return text[: min(matches)[1]]
        self.finished = last
        certain = len(text) if last else len(text) - self._length_of_begun_stop(text)
        self._held = text[certain:]
        return text[:certain]

    def _decode(self, last: bool) -> str:
        """The whole characters not emitted yet."""
        text = self._tokenizer.decode(self._window)
        whole = text if last else text.rstrip(_REPLACEMENT)
        new = whole[self._emitted :]
        self._emitted = max(self._emitted, len(whole))
        if new and whole == text:
            # The new tokens are the next context. SentencePiece drops the spaces before the first word, however many,
            # so tokens of spaces alone cannot be: they are forgotten, and the context before them stays.
            for window in (self._window[self._context :], self._window[: self._context]):
                known = self._tokenizer.decode(window)
                if known.strip() and not known.endswith(_REPLACEMENT):
                    self._window, self._context, self._emitted = window, len(window), len(known)
                    break
        return new

    def _length_of_begun_stop(self, text: str) -> int:
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return max(lengths, default=0)
