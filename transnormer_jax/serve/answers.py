"""Turns the engine's tokens into the text of a response, one choice at a time."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from typing import NamedTuple

from transnormer_jax.data import Tokenizer
from transnormer_jax.inference import Request, TokenLogProbs
from transnormer_jax.inference.text_stream import TextStream
from transnormer_jax.serve.engine import Engine, Stream


class Choice(NamedTuple):
    """One text to write.

    Attributes:
      stops: strings that end the text.
      echo: whether the prompt comes first.
      writes: whether anything follows the prompt.
      end_ids: of the tokens that end the text; the tokenizer's end token if None.
    """

    request: Request
    stops: Sequence[str]
    echo: bool = False
    writes: bool = True
    end_ids: Collection[int] | None = None


class Piece(NamedTuple):
    """The next part of a choice.

    Attributes:
      text: certain, as from `TextStream`.
      echoed: tokens of the prompt that are part of the text.
      finish_reason: "stop" or "length" in the last piece, None before.
    """

    choice: int
    text: str
    echoed: list[TokenLogProbs]
    tokens: list[TokenLogProbs]
    finish_reason: str | None


class Answer:
    """All choices of a client's request, under way together; to be iterated over, and closed in any case."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, choices: Sequence[Choice]):
        """Puts every choice into the engine's queue, or none.

        Raises:
          OverloadedError: too many requests are open.
        """
        self._tokenizer, self._choices = tokenizer, choices
        self._streams: list[Stream] = []
        try:
            for choice in choices:
                self._streams.append(engine.open(choice.request))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leaves the batch."""
        for stream in self._streams:
            stream.close()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yields the pieces of all choices as they come."""
        pieces = asyncio.Queue[Piece | BaseException]()

        async def follow(number: int) -> None:
            try:
                async for piece in self._pieces_of(number):
                    pieces.put_nowait(piece)
            except Exception as error:
                pieces.put_nowait(error)

        tasks = [asyncio.create_task(follow(number)) for number in range(len(self._choices))]
        try:
            unfinished = len(tasks)
            while unfinished:
                piece = await pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                unfinished -= piece.finish_reason is not None
        finally:
            for task in tasks:
                task.cancel()

    async def _pieces_of(self, number: int) -> AsyncIterator[Piece]:
        choice, stream = self._choices[number], self._streams[number]
        prompt = list(choice.request.prompt[1:])
        text = TextStream(self._tokenizer, prompt, choice.stops, choice.end_ids)
        if choice.echo and not (prompt and choice.request.prompt_log_probs):
            yield Piece(number, await self._decode(prompt), [], [], None if choice.writes else "length")
            if not choice.writes:
                return
        async for news in stream:
            if news.prompt:
                yield Piece(number, await self._decode(prompt), news.prompt, [], None if choice.writes else "length")
                if not choice.writes:
                    return
            new, kept = "", []
            for place, scored in enumerate(news.tokens):
                kept.append(scored)
                new += text.push([scored.token], last=news.last and place == len(news.tokens) - 1)
                if text.finished:
                    break
            reason = ("stop" if text.stopped else "length") if text.finished else None
            yield Piece(number, new, [], kept, reason)
            if text.finished:
                stream.close()
                return

    async def _decode(self, prompt: Sequence[int]) -> str:
        # In a thread, as for the encoding of a prompt: a long one takes seconds, in which other answers go on.
        return await asyncio.to_thread(self._tokenizer.decode, prompt)
