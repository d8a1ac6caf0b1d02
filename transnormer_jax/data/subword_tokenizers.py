"""Tokenizers read from files: Hugging Face `tokenizers` (GPT-2's vocabulary included) and SentencePiece."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from transnormer_jax.errors import UserError

# What published vocabularies call the ends of a document and padding, by preference.
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "<|startoftext|>")
_EOS_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|endoftext|>")
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>")
# GPT-2's own names and the later ones: vocabulary -> merges.
_MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}


class HuggingFaceTokenizer:
    """A vocabulary of the `tokenizers` library; fulfils `tokenizers.Tokenizer`, q.v. for methods and attributes."""

    def __init__(self, path: Path):
        """Reads a `tokenizer.json`, or a `vocab.json` or `encoder.json` with its merges beside it.

        Raises:
          UserError: the file cannot be read, or has no end token.
        """
        merges = path.with_name(_MERGES[path.name]) if path.name in _MERGES else None
        try:
            self._tokenizer = _read_gpt2(path, merges) if merges else _read_hugging_face(path)
            self.fingerprint = _fingerprint([path, merges] if merges else [path])
        except Exception as error:  # The Rust library raises nothing narrower.
            raise _unreadable(path, error) from error
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.eos_id = _first_id(_EOS_NAMES, vocabulary, -1)
        if self.eos_id < 0:
            raise UserError(f"tokenizer {str(path)!r} has no end token: add one of {', '.join(_EOS_NAMES)}.")
        self.bos_id = _first_id(_BOS_NAMES, vocabulary, self.eos_id)
        self.pad_id = _first_id(_PAD_NAMES, vocabulary, self.eos_id)
        self._special = {self.bos_id, self.eos_id, self.pad_id}
        added = self._tokenizer.get_added_tokens_decoder().items()
        ends = {name: index for name, index in vocabulary.items() if index in self._special}
        self.special_tokens: Mapping[str, int] = ends | {
            token.content: index for index, token in added if token.special
        }
        names = {index: name for name, index in self.special_tokens.items()}
        self.token_names: Mapping[str, str] = {
            kind: names[index]
            for kind, index in (("bos_token", self.bos_id), ("eos_token", self.eos_id), ("pad_token", self.pad_id))
            if index != self.eos_id or kind == "eos_token"
        }

    def encode(self, text: str) -> list[int]:
        """See `tokenizers.Tokenizer`."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        """See `tokenizers.Tokenizer`."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """See `tokenizers.Tokenizer`."""
        return self._tokenizer.decode([int(index) for index in ids if index not in self._special])


class SentencePieceTokenizer:
    """A SentencePiece model; fulfils `tokenizers.Tokenizer`, q.v. for methods and attributes."""

    def __init__(self, path: Path):
        """Reads a `.model`.

        Raises:
          UserError: the file cannot be read, or has no end token.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
            self.fingerprint = _fingerprint([path])
        except (OSError, RuntimeError) as error:
            raise _unreadable(path, error) from error
        self.vocab_size = self._processor.vocab_size()
        self.eos_id = self._processor.eos_id()
        if self.eos_id < 0:
            raise UserError(f"tokenizer {str(path)!r} has no end token: train it with an eos_id.")
        self.bos_id = self._id_or_eos(self._processor.bos_id())
        self.pad_id = self._id_or_eos(self._processor.pad_id())
        control = filter(self._processor.is_control, range(self.vocab_size))
        self.special_tokens: Mapping[str, int] = {self._processor.id_to_piece(index): index for index in control}
        names = {index: name for name, index in self.special_tokens.items()}
        self.token_names: Mapping[str, str] = {
            kind: names[index]
            for kind, index in (("bos_token", self.bos_id), ("eos_token", self.eos_id), ("pad_token", self.pad_id))
            if index != self.eos_id or kind == "eos_token"
        }

    def encode(self, text: str) -> list[int]:
        """See `tokenizers.Tokenizer`."""
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        """See `tokenizers.Tokenizer`."""
        return [np.array(ids, np.uint32) for ids in self._processor.encode(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """See `tokenizers.Tokenizer`."""
        # SentencePiece drops its special tokens itself, but an id past its end is an error.
        return self._processor.decode([int(index) for index in ids if index < self.vocab_size])

    def _id_or_eos(self, index: int) -> int:
        return index if index >= 0 else self.eos_id


def _read_hugging_face(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    # Settings for classifiers of sentences, saved with some tokenizers: they would cut every document short.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # The name of a special token inside a document must not become that token.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _read_gpt2(vocabulary: Path, merges: Path) -> Tokenizer:
    # The threads share the cache, and a larger one, as is the default, was slower.
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges), cache_capacity=1000))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _first_id(names: Sequence[str], vocabulary: Mapping[str, int], default: int) -> int:
    return next((vocabulary[name] for name in names if name in vocabulary), default)


def _fingerprint(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _unreadable(path: Path, error: Any) -> UserError:
    return UserError(f"cannot read the tokenizer {str(path)!r} ({error}): give an intact file with all of its parts.")
