"""Conversations to tokens, by a chat template: the same tokens in fine-tuning and in a chat."""

import contextlib
import functools
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from transnormer_jax.data.chat_rendering import GENERATION_BEGINS, GENERATION_ENDS, ChatRenderer, Message
from transnormer_jax.data.tokenizers import Tokenizer
from transnormer_jax.errors import UserError

# The prompt that TransNormerLLM was fine-tuned with (its `fine-tune/` scripts): an instruction, then turns.
RELEASED_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n"
    "{% elif message.role == 'user' %}Human:\n{{ message.content }}\n"
    "{% elif message.role == 'assistant' and not message.tool_calls %}Assistant:\n{{ message.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('it has no form for calls of tools and for roles but system, user, assistant') }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)

# Stands for an answer where a template is tried: a character of no language.
_PLACE = "\ufdd0"

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class EncodedChat(NamedTuple):
    """A conversation as tokens, without the begin token before it.

    Attributes:
      tokens: ids.
      supervised: of each token, whether the assistant has to write it.
    """

    tokens: list[int]
    supervised: list[bool]


class _Span(NamedTuple):
    """What the assistant writes in a turn, as a stretch of the rendered text."""

    start: int
    stop: int


class ChatTemplate:
    """A Jinja template as Hugging Face has them, in `tokenizer_config.json`.

    The text is that of `transformers`, and the names of special tokens that the template writes become these tokens,
    while a name inside a message stays text: no message can end its own turn.

    The assistant writes what stands between the prompt that opens its turn and the end of the turn, which is the
    special token there, or the end token of the conversation where the template has none. It does so only where the
    whole conversation has the turn as it was when it was written: templates that remove the reasoning of earlier turns
    leave these turns without anything to learn. Where a template has `{% generation %}`, the assistant writes what is
    in these blocks, and nothing else. Where the prompt has more than the last answer, such as DeepSeek R1's `<think>`,
    that is put before the answer: otherwise it would be learnt after another text than that of a chat.

    The text is cut where the assistant begins to write, and tokenised piece by piece: in a chat the tokens before that
    are there first.

    Attributes:
      fingerprint: differs between templates and tokenizers that encode differently.
    """

    def __init__(self, source: str, tokenizer: Tokenizer):
        """Takes the template's source.

        Args:
          source: Jinja, such as `RELEASED_TEMPLATE` or what `find_chat_template` finds.
          tokenizer: encodes what comes of it.

        Raises:
          UserError: it is no Jinja.
        """
        self.fingerprint = hashlib.sha256(f"2 {tokenizer.fingerprint} {source}".encode()).hexdigest()
        self._tokenizer = tokenizer
        self._special = {name: index for name, index in tokenizer.special_tokens.items() if name}
        self._renderer = ChatRenderer(source, tokenizer.token_names, self._special)
        names = sorted(self._special, key=len, reverse=True)
        self._special_names = re.compile("|".join(map(re.escape, names)) or "(?!)")

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """What ends an answer: the tokenizer's end token, and the special token by which the template ends a turn."""
        return frozenset({self._tokenizer.eos_id} | {self._special[name] for name in self._turn_end})

    @functools.cached_property
    def _turn_end(self) -> frozenset[str]:
        """The name of the special token by which the template ends an answer, if there is one."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PLACE}]
        with contextlib.suppress(UserError):  # It may ask for a system message, say; then the end token has to do.
            text, _ = self._render(turns, None, reply=False)
            # What follows the answer at once is its end; more may follow at the end of the whole conversation.
            if _PLACE in text and (
                run := re.match(f"\\s*(?:{self._special_names.pattern})+", text.rpartition(_PLACE)[2])
            ):
                return frozenset(self._special_names.findall(run[0])[-1:])
        return frozenset()

    def encode(
        self, messages: Sequence[Message], *, reply: bool = False, tools: Sequence[Any] | None = None
    ) -> EncodedChat:
        """Encodes messages.

        Args:
          messages: each with `role` (see `ROLES`) and `content`, which is text; the assistant's may have `tool_calls`
            in its place.
          reply: whether the assistant is to write next, so that its turn is opened.
          tools: JSON schemas of functions, for templates that tell of them.

        Returns:
          The ids, without the begin token before them, and of each whether the assistant has to write it. After an
          answer that the template does not end, the end token.

        Raises:
          UserError: a message is malformed, or the template refuses the conversation.
        """
        for number, message in enumerate(messages):
            if message.get("role") not in ROLES or not (
                isinstance(message.get("content"), str) or message.get("tool_calls")
            ):
                raise UserError(f"message {number} needs a role ({', '.join(ROLES)}) and a content that is text.")
        text, spans = self._render(messages, tools, reply=reply)
        tagged = self._renderer.marks_generation
        ends_with_answer = not tagged and not reply and bool(messages) and messages[-1]["role"] == "assistant"
        if ends_with_answer:
            text, last = self._open_last(messages, tools, text)
        openings = self._openings(messages, tools, text)
        if ends_with_answer:
            openings[len(messages) - 1] = last
        if not tagged:
            spans = self._written(messages, tools, text, openings)
        tokens, supervised = list[int](), list[bool]()
        borders = {0, len(text), *openings.values(), *itertools.chain.from_iterable(spans)}
        for start, stop in itertools.pairwise(sorted(borders)):
            ids = list(self._encode(text[start:stop]))
            tokens += ids
            supervised += [any(span.start <= start < span.stop for span in spans)] * len(ids)
        unended = ends_with_answer and spans[-1].stop == len(text)
        if unended and not set(tokens[-1:]) & set(self._special.values()):
            tokens, supervised = [*tokens, self._tokenizer.eos_id], [*supervised, True]
        begin = tokens[:1] == [self._tokenizer.bos_id]
        return EncodedChat(tokens[begin:], supervised[begin:])

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, *, reply: bool
    ) -> tuple[str, list[_Span]]:
        """The text, and what is in `{% generation %}` in it."""
        text, spans = "", list[_Span]()
        for piece in re.split(
            f"([{GENERATION_BEGINS}{GENERATION_ENDS}])", self._renderer.render(messages, tools, reply=reply)
        ):
            if piece == GENERATION_BEGINS:
                spans.append(_Span(len(text), len(text)))
            elif piece == GENERATION_ENDS and spans:
                spans[-1] = _Span(spans[-1].start, len(text))
            else:
                text += piece
        return text, spans

    def _openings(self, messages: Sequence[Message], tools: Sequence[Any] | None, text: str) -> dict[int, int]:
        """Where the messages of the assistant begin in the text: after the prompt for each, if the text has that."""
        found = {}
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                with contextlib.suppress(UserError):  # Many templates refuse a conversation that begins with it.
                    prompt, _ = self._render(messages[:i], tools, reply=True)
                    if text.startswith(prompt):
                        found[i] = len(prompt)
        return found

    def _open_last(self, messages: Sequence[Message], tools: Sequence[Any] | None, text: str) -> tuple[str, int]:
        """The text, and where the last answer begins in it.

        Where the prompt for the answer goes on after what the answer begins with, it takes the place of that beginning.

        Raises:
          UserError: the answer follows another text than in a chat.
        """
        asked = messages[:-1]
        prompt, _ = self._render(asked, tools, reply=True)
        if text.startswith(prompt):
            return text, len(prompt)
        if asked:
            # Other messages tell which text is the template's own.
            marked, _ = self._render([*asked[:-1], {**asked[-1], "content": _PLACE}], tools, reply=True)
            behind = len(prompt) - (len(marked) - marked.rfind(_PLACE) - 1)  # the last message before the answer
            other, _ = self._render([*asked, {"role": "assistant", "content": _PLACE}], tools, reply=False)
            common = _common_length(prompt, other)
            if _PLACE in marked and behind <= common and text.startswith(other[:common]):
                return prompt + text[common:], len(prompt)
            # Some templates have the system message in another place once there is an answer.
            question = (asked[-1].get("content") or "").strip()
            begin = self._renderer.reveal(prompt[:behind]).rfind(question) if question and _PLACE in marked else -1
            if begin >= 0 and (place := text.rfind(prompt[begin:])) >= 0:
                return text, place + len(prompt) - begin
        raise UserError(
            "the chat template opens the assistant's turn with a prompt that the last answer does not begin with: give "
            "the answer what the prompt announces, such as reasoning, or change the template."
        )

    def _written(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, text: str, openings: Mapping[int, int]
    ) -> list[_Span]:
        """What the assistant writes, of the turns that stand in the text as they were when they were the last."""
        spans = []
        for i, start in openings.items():
            whole = text
            if i < len(messages) - 1:
                whole, _ = self._render(messages[: i + 1], tools, reply=False)
            written = self._up_to_its_end(whole[start:])
            if whole.startswith(text[:start]) and text.startswith(written, start):
                spans.append(_Span(start, start + len(written)))
        return spans

    def _up_to_its_end(self, written: str) -> str:
        """What is rendered of a turn without what follows the special token that ends it, if there is one."""
        ends = [*self._special_names.finditer(written)]
        known = [end for end in ends if end[0] in self._turn_end]
        for end in (*known[-1:], *ends[-1:]):  # a call of a tool may end otherwise
            if not self._special_names.sub("", written[end.end() :]).strip():
                return written[: end.end()]
        return written

    def _encode(self, text: str) -> Iterator[int]:
        """The ids of a piece of text, which the template's special tokens divide."""
        position = 0
        for match in self._special_names.finditer(text):
            yield from self._tokenizer.encode(self._renderer.reveal(text[position : match.start()]))
            yield self._special[match[0]]
            position = match.end()
        yield from self._tokenizer.encode(self._renderer.reveal(text[position:]))


def _common_length(one: str, other: str) -> int:
    """Of the beginning that both have."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
