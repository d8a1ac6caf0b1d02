"""Conversations to tokens, by a chat template: the same tokens in fine-tuning and in a chat."""

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.sandbox

from transnormer_jax.data.tokenizers import Tokenizer
from transnormer_jax.errors import UserError

# The prompt that TransNormerLLM was fine-tuned with (its `fine-tune/` scripts): an instruction, then turns.
RELEASED_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n"
    "{% elif message.role == 'user' %}Human:\n{{ message.content }}\n"
    "{% else %}Assistant:\n{{ message.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)

# Stands for the content of message i while the template is filled in: two characters of private use around a number.
_PLACE = re.compile("\ue000(\\d+)\ue001")

_ROLES = ("system", "user", "assistant")


class EncodedChat(NamedTuple):
    """A conversation as tokens, without the begin token before it and the end token after it.

    Attributes:
      tokens: ids.
      supervised: of each token, whether the assistant wrote it.
    """

    tokens: list[int]
    supervised: list[bool]


class ChatTemplate:
    """A Jinja template as Hugging Face has them, in `tokenizer_config.json`: what stands around the messages.

    The names of special tokens become these tokens where the template writes them, and stay text inside a message: no
    message can end its own turn. Where the assistant begins to write, the text is cut before it is tokenised, since
    in a chat the tokens before that are there first.

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
        # As `transformers` fills in its templates; a template of a stranger may do no harm.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template cannot be read ({error}): correct it.") from error
        self.fingerprint = hashlib.sha256(f"{tokenizer.fingerprint} {source}".encode()).hexdigest()
        self._tokenizer = tokenizer
        self._special = {name: index for name, index in tokenizer.special_tokens.items() if name}
        names = sorted(self._special, key=len, reverse=True)
        self._special_names = re.compile("|".join(map(re.escape, names)) or "(?!)")

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """What ends an answer: the tokenizer's end token, and the special token by which the template ends a turn."""
        ends = {self._tokenizer.eos_id}
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}]
        with contextlib.suppress(UserError):  # It may ask for a system message, say; then the end token has to do.
            tokens, supervised = self.encode(turns)
            special = set(self._special.values())
            ends |= {token for token, mine in zip(tokens, supervised, strict=True) if mine and token in special}
        return frozenset(ends)

    def encode(self, messages: Sequence[Mapping[str, str]], *, reply: bool = False) -> EncodedChat:
        """Encodes messages, each with `role` (system, user or assistant) and `content`.

        Args:
          messages: the conversation.
          reply: whether the assistant is to write next, so that its turn is opened.

        Returns:
          The ids, without the begin token before them and the end token after them, and of each whether the assistant
          wrote it.

        Raises:
          UserError: a message is malformed, or the template refuses the conversation.
        """
        for number, message in enumerate(messages):
            if message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
                raise UserError(f"message {number} needs a role ({', '.join(_ROLES)}) and a content that is text.")
        places = [{**message, "content": f"\ue000{i}\ue001"} for i, message in enumerate(messages)]
        names = {index: name for name, index in self._special.items()}
        try:
            text = self._template.render(
                messages=places,
                add_generation_prompt=reply,
                bos_token=names.get(self._tokenizer.bos_id, ""),
                eos_token=names.get(self._tokenizer.eos_id, ""),
            )
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses the messages ({error}): change them.") from error
        tokens: list[int] = []
        supervised: list[bool] = []
        for piece, written in self._pieces(text, messages):
            ids = [piece] if isinstance(piece, int) else self._tokenizer.encode(piece)
            tokens += ids
            supervised += [written] * len(ids)
        if tokens[:1] == [self._tokenizer.bos_id] and self._tokenizer.bos_id != self._tokenizer.eos_id:
            tokens, supervised = tokens[1:], supervised[1:]
        if tokens[-1:] == [self._tokenizer.eos_id]:
            tokens, supervised = tokens[:-1], supervised[:-1]
        return EncodedChat(tokens, supervised)

    def _pieces(self, text: str, messages: Sequence[Mapping[str, str]]) -> Iterator[tuple[str | int, bool]]:
        """Special tokens, and texts to be tokenised as one, each with whether the assistant writes it."""
        run, written = "", False
        # re.split gives template, number, template, number, ..., template.
        for i, part in enumerate(_PLACE.split(text)):
            if i % 2:
                message = messages[int(part)]
                mine = message["role"] == "assistant"
                if mine or written:  # a template may put nothing between two turns
                    yield run, written
                    run, written = "", mine
                run += message["content"]
                continue
            if written and part:
                yield run, True
                run, written = "", False
                # The end of a turn that the assistant wrote is his too; whatever else follows is not.
                if end := self._special_names.match(part):
                    yield self._special[end[0]], True
                    part = part[end.end() :]
            position = 0
            for match in self._special_names.finditer(part):
                yield run + part[position : match.start()], False
                yield self._special[match[0]], False
                run, position = "", match.end()
            run += part[position:]
        yield run, written


def find_chat_template(tokenizer_directory: Path) -> str | None:
    """The chat template beside a tokenizer of Hugging Face, or None."""
    alone = tokenizer_directory / "chat_template.jinja"
    if alone.is_file():
        return alone.read_text(encoding="utf-8")
    path = tokenizer_directory / "tokenizer_config.json"
    template = json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.is_file() else None
    if isinstance(template, list):  # Several, by name.
        template = {each["name"]: each["template"] for each in template}.get("default")
    return template


def _refuse(message: str) -> Any:
    raise jinja2.TemplateError(message)
