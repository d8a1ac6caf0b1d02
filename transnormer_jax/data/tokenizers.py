"""What a tokenizer is, the one of UTF-8 bytes, and the way to all of them by name."""

import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from transnormer_jax import storage
from transnormer_jax.data.subword_tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer
from transnormer_jax.errors import UserError, first_line

_DIRECTORY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "encoder.json")


class Tokenizer(Protocol):
    """What the data pipeline and generation ask of a tokenizer.

    A vocabulary without a begin or padding token has its end token in their place: one border token between
    documents is GPT-2's own custom, and padding is known by its segment id 0, never by its token.

    Attributes:
      vocab_size: one more than the largest id.
      pad_id: fills the end of a row.
      bos_id: stands before a document.
      eos_id: is predicted after a document.
      special_tokens: name -> id of the tokens that are no text.
      token_names: "bos_token", "eos_token" and "pad_token" -> name, of those that there are.
      unknown_id: stands for what the vocabulary has no token for, if there can be such.
      fingerprint: differs between tokenizers that encode differently.
    """

    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int
    special_tokens: Mapping[str, int]
    token_names: Mapping[str, str]
    unknown_id: int | None
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without begin or end; the name of a special token in it is ordinary text."""

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        """Returns `encode` of each text as an array [tokens], faster."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, special tokens dropped; bytes that are not UTF-8 become U+FFFD."""


def load_tokenizer(name: str) -> Tokenizer:
    """Returns a tokenizer by name.

    Args:
      name: `"bytes"`; or a path: a `tokenizer.json` (Hugging Face), a `.model` (SentencePiece), or a directory with
        one of them or with GPT-2's `vocab.json` and `merges.txt` (also as `encoder.json` and `vocab.bpe`).

    Raises:
      UserError: no such tokenizer, or its file cannot be read.
    """
    if name == "bytes":
        return ByteTokenizer()
    if not tokenizer_exists(name):
        raise UserError(f"unknown tokenizer {name!r}: use 'bytes' or the path of a tokenizer file or directory.")
    path = storage.local_copy(name)
    if path.is_dir():
        path = next((path / file for file in _DIRECTORY_FILES if (path / file).exists()), path)
    if path.suffix == ".model":
        return SentencePieceTokenizer(path)
    if path.suffix == ".json":
        tokenizer = HuggingFaceTokenizer(path)
        # A run by bytes that was exported is again one.
        return ByteTokenizer() if tokenizer.vocabulary == byte_vocabulary() else tokenizer
    raise UserError(f"no tokenizer in {name!r}: it should be, or hold, one of {', '.join(_DIRECTORY_FILES)}.")


def tokenizer_directory(name: str) -> Path | None:
    """Where the files of the tokenizer of this name lie, or None if it has no files."""
    if name == "bytes" or not tokenizer_exists(name):
        return None
    path = storage.local_copy(name)
    return path if path.is_dir() else path.parent


def tokenizer_exists(name: str) -> bool:
    """Returns whether `load_tokenizer` finds something of this name.

    Raises:
      UserError: a store does not answer.
    """
    try:
        return name == "bytes" or storage.as_path(name).exists()
    except UserError:
        raise
    except Exception as error:  # of any store
        raise UserError(
            f"cannot look for the tokenizer {name!r} ({first_line(error)}): check the network and the credentials."
        ) from error


class ByteTokenizer:
    """Every UTF-8 byte is a token: ids 0, 1, 2 are padding, begin and end, and byte b is 3 + b.

    For the attributes see `Tokenizer`.
    """

    vocab_size = 259
    pad_id, bos_id, eos_id = 0, 1, 2
    special_tokens: Mapping[str, int] = types.MappingProxyType({"<pad>": 0, "<s>": 1, "</s>": 2})
    token_names: Mapping[str, str] = types.MappingProxyType(
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    )
    unknown_id: int | None = None
    fingerprint = "bytes-1"

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return [3 + byte for byte in text.encode(errors="replace")]

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        """See `Tokenizer`."""
        contents = [np.frombuffer(text.encode(errors="replace"), np.uint8) for text in texts]
        return [np.add(content, 3, dtype=np.uint16) for content in contents]

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer`."""
        # A model may round its vocabulary up, and predict ids that mean nothing.
        return bytes(index - 3 for index in ids if 3 <= index < self.vocab_size).decode(errors="replace")


def byte_vocabulary() -> dict[str, int]:
    """The vocabulary of `ByteTokenizer` in GPT-2's spelling of bytes: those that are no visible character come last."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in shown]
    characters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return dict(ByteTokenizer.special_tokens) | {characters[byte]: 3 + byte for byte in range(256)}
