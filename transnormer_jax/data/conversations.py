"""Conversations for supervised fine-tuning: records of several customs, and their tokens with those to be learnt."""

import bisect
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transnormer_jax.data.chat import ROLES, ChatTemplate, EncodedChat
from transnormer_jax.data.tokenizers import Tokenizer
from transnormer_jax.errors import UserError

Messages = list[dict[str, Any]]

# Names of roles in ShareGPT's records and the like.
_ROLES = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
# What else of a message templates read.
_KEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking")

RECORD_FIELDS = (
    *("messages", "conversations", "conversation", "system", "tools"),
    *("instruction", "input", "output", "prompt", "response", "completion"),
)
"""What `read_conversation` reads of a record."""


def read_conversation(record: Any) -> dict[str, Any]:
    """The `messages` of a record, up to the last of the assistant, and the `tools` that it may call, or None.

    Args:
      record: `messages` or `conversations`, a list of `role` and `content`, or of `from` and `value` (ShareGPT);
        `instruction`, `input` and `output` (Alpaca); or `prompt` with `response` or `completion`, texts or lists of
        messages. Fields that are null count as missing. `system` is the first message, unless there is one. Roles are
        those of `chat.ROLES`, or human, gpt, chatgpt, bot and model. Content is text, or a list of parts of text.

    Raises:
      ValueError: it is none of these, or the assistant says nothing.
    """
    if not isinstance(record, Mapping):
        raise ValueError("it is no object with fields")
    given = {name: record[name] for name in RECORD_FIELDS if record.get(name) is not None}
    answer = given.get("response", given.get("completion"))
    listed = next((given[name] for name in ("messages", "conversations", "conversation") if name in given), None)
    if listed is not None:
        messages = _messages(listed, "user")
    elif "instruction" in given and "output" in given:
        question = [_text(given[name]) for name in ("instruction", "input") if given.get(name)]
        messages = _messages("\n".join(question), "user") + _messages(given["output"], "assistant")
    elif "prompt" in given and answer is not None:
        messages = _messages(given["prompt"], "user") + _messages(answer, "assistant")
    else:
        raise ValueError("it has no messages, conversations, instruction and output, or prompt and response")
    if given.get("system") and messages[:1] and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": _text(given["system"])}, *messages]
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise ValueError("no message is the assistant's")
    tools = given.get("tools") or None
    return {
        "messages": messages[: answers[-1] + 1],
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
    }


def spoken(text: str) -> str:
    """What is said in a conversation, the JSON of `read_conversation`: the messages alone, a line each."""
    return "\n".join(message.get("content", "") for message in json.loads(text)["messages"])


class ConversationTokens:
    """A `Coder` of conversations, the JSON of `read_conversation`: each token with what `read_numbers` says of it.

    A conversation that is longer than a row loses its first turns, but no system message. If the last turn alone is
    longer, its end is cut off. Where no token would be learnt then, nothing is left, an empty array.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, max_tokens: int, *, skip: bool = False):
        """Encodes by `template`.

        Args:
          template: of the conversations.
          tokenizer: the template's.
          max_tokens: of a row.
          skip: whether a conversation that the template refuses is left empty, and no error.
        """
        self._template, self._max_tokens, self._skip = template, max_tokens, skip
        self.vocab_size = 4 * tokenizer.vocab_size
        identity = f"conversations 2 {template.fingerprint} {max_tokens} {skip}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        """See `Coder`.

        Raises:
          UserError: the template refuses a conversation.
        """
        return [self._encode(**json.loads(text)) for text in texts]

    def _encode(self, messages: Messages, tools: Any) -> npt.NDArray[np.integer]:
        try:
            encoded, shortened = self._fitting(messages, tools)
        except UserError as error:
            if self._skip:
                return np.empty(0, np.uint32)
            raise UserError(f"{error} The messages are {json.dumps(messages, ensure_ascii=False)[:200]} ...") from error
        tokens, supervised = (np.array(values, np.uint32) for values in encoded)
        return (tokens << 2 | shortened << 1 | supervised) if supervised.any() else tokens[:0]

    def _fitting(self, messages: Messages, tools: Any) -> tuple[EncodedChat, int]:
        whole = self._template.encode(messages, tools=tools)
        if len(whole.tokens) <= self._max_tokens:
            return whole, 0
        lead = next((i for i, message in enumerate(messages) if message["role"] not in ("system", "developer")), 0)
        turns = [i for i, message in enumerate(messages) if message["role"] == "user" and i > lead]

        def without(start: int) -> EncodedChat:
            return self._template.encode([*messages[:lead], *messages[start:]], tools=tools)

        first = bisect.bisect_left(turns, True, key=lambda start: len(without(start).tokens) <= self._max_tokens)
        if first < len(turns):
            return without(turns[first]), 1
        last = without(turns[-1]) if turns else whole
        return EncodedChat(last.tokens[: self._max_tokens], last.supervised[: self._max_tokens]), 1


def read_numbers(
    numbers: npt.NDArray[np.integer],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Of what `ConversationTokens` makes: the tokens, 1 where one is learnt, 1 where its conversation was shortened."""
    numbers = numbers.astype(np.int64)
    return (numbers >> 2).astype(np.int32), (numbers & 1).astype(np.int32), (numbers >> 1 & 1).astype(np.int32)


def _messages(value: Any, role: str) -> Messages:
    """A list of messages, or a text that `role` says."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, Sequence) or not all(isinstance(each, Mapping) for each in value):
        raise ValueError("its messages are no list of objects")
    return [_message(number, each) for number, each in enumerate(value, start=1)]


def _message(number: int, each: Mapping[str, Any]) -> dict[str, Any]:
    role = each.get("role") or each.get("from")
    known = _ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise ValueError(f"message {number} has the role {role!r}: use {', '.join(ROLES)}")
    kept = {name: each[name] for name in _KEPT if each.get(name) is not None}
    content = each.get("content", each.get("value"))
    if each.get("function_call") or each.get("weight", 1) not in (None, 1):
        raise ValueError(f"message {number} has a function_call or a weight: give tool_calls, or leave it out")
    if content is None and kept.get("tool_calls"):
        return {"role": known, **kept}
    try:
        return {"role": known, "content": _text(content), **kept}
    except ValueError as error:
        raise ValueError(f"message {number} has {error}") from error


def _text(content: Any) -> str:
    """A text, or parts of text joined."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else [None]
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        raise ValueError("a content that is no text")
    return "".join(texts)
