"""Conversations for supervised fine-tuning: records of several customs, and rows of which answers are predicted."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transnormer_jax.data.chat import ChatTemplate, EncodedChat
from transnormer_jax.data.concatenation import Documents, Int32s
from transnormer_jax.data.packing import PackedRows
from transnormer_jax.data.tokenizers import Tokenizer

Messages = list[dict[str, str]]

# ShareGPT's names of roles.
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def read_messages(record: Mapping[str, Any]) -> Messages:
    """The messages of a record, up to the last of the assistant.

    Args:
      record: `messages` (role, content), `conversations` (from, value; ShareGPT), `instruction`, `input` and `output`
        (Alpaca), or `prompt` with `response` or `completion`.

    Raises:
      ValueError: it is none of these, or the assistant says nothing.
    """
    if "messages" in record:
        messages = [{"role": each["role"], "content": each["content"]} for each in record["messages"]]
    elif "conversations" in record:
        messages = [{"role": _ROLES[each["from"]], "content": each["value"]} for each in record["conversations"]]
    elif "instruction" in record and "output" in record:
        question = "\n".join(filter(None, (record["instruction"], record.get("input"))))
        messages = _turn(question, record["output"])
    elif "prompt" in record and ("response" in record or "completion" in record):
        messages = _turn(record["prompt"], record.get("response", record.get("completion")))
    else:
        raise ValueError("it has no messages, conversations, instruction and output, or prompt and response")
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers or not all(isinstance(message["content"], str) for message in messages):
        raise ValueError("its messages are not texts with an answer of the assistant among them")
    return messages[: answers[-1] + 1]


class ConversationTokens:
    """A `Coder` of conversations, messages as JSON, into the tokens of a chat template."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer):
        """Encodes by `template`."""
        self._template = template
        self.vocab_size = tokenizer.vocab_size
        self.fingerprint = _fingerprint("tokens", template)

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        """See `Coder`."""
        return [np.array(_encode(self._template, text).tokens, np.uint32) for text in texts]


class ConversationMask:
    """A `Coder` of conversations into 1 for every token that the assistant writes, and 0 for the others."""

    vocab_size = 2

    def __init__(self, template: ChatTemplate):
        """Encodes by `template`."""
        self._template = template
        self.fingerprint = _fingerprint("mask", template)

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        """See `Coder`."""
        return [np.array(_encode(self._template, text).supervised, np.uint32) for text in texts]


class ConversationRows:
    """Packed conversations with the mask of what is predicted: the assistant's tokens, and the end after the last.

    Attributes:
      rows_per_epoch: rows that hold all conversations once.
    """

    def __init__(
        self, tokens: Documents, mask: Documents, length: int, *, bos_id: int, eos_id: int, pad_id: int, seed: int
    ):
        """Packs conversations as `PackedRows` does, and their mask beside them.

        Args:
          tokens: of the conversations, from `load_conversations`.
          mask: of each token, 1 if the assistant wrote it, else 0; from there too.
          length: tokens per row.
          bos_id: the begin token, before each conversation.
          eos_id: the end token, predicted after each.
          pad_id: the token of padding.
          seed: of the order, from 0 on.
        """
        self._tokens = PackedRows(tokens, length, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id, seed=seed)
        # The same line of the same order: a conversation ends with the assistant, so its end is his.
        self._mask = PackedRows(mask, length, bos_id=0, eos_id=1, pad_id=0, seed=seed)
        self.rows_per_epoch = self._tokens.rows_per_epoch

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> dict[str, Int32s]:
        """Returns `inputs`, `targets`, `segment_ids` and `mask`, int32 [length]."""
        return self._tokens[row] | {"mask": self._mask[row]["targets"]}


def _turn(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _encode(template: ChatTemplate, text: str) -> EncodedChat:
    return template.encode(json.loads(text))


def _fingerprint(kind: str, template: ChatTemplate) -> str:
    return hashlib.sha256(f"{kind} {template.fingerprint}".encode()).hexdigest()
