"""Tokenizers read from files: Hugging Face `tokenizers` (GPT-2's vocabulary included) and SentencePiece."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from transnormer_jax.data.tokenizer_files import special_tokens
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
        self.vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        guessed = {
            "bos_token": _first(_BOS_NAMES, self.vocabulary),
            "eos_token": _first(_EOS_NAMES, self.vocabulary),
            "pad_token": _first(_PAD_NAMES, self.vocabulary),
        }
        special = special_tokens(path.parent, self.vocabulary.get, guessed)
        if "eos_token" not in special.ids:
            raise UserError(f"tokenizer {str(path)!r} has no end token: add one of {', '.join(_EOS_NAMES)}.")
        self.bos_id, self.eos_id, self.pad_id = _border_ids(special.ids)
        self.token_names: Mapping[str, str] = special.names
        added = self._tokenizer.get_added_tokens_decoder().items()
        ends = {special.names[kind]: index for kind, index in special.ids.items()}
        self.special_tokens: Mapping[str, int] = {
            **{token.content: index for index, token in added if token.special},
            **special.added,
            **ends,
        }
        self.vocab_size = max([*self.vocabulary.values(), *special.added.values()]) + 1
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self.unknown_id = self.vocabulary.get(unknown) if unknown else None
        self._special = {*special.added.values(), *ends.values()}
        # Of those that the vocabulary adds as ordinary tokens, the names would become these tokens in any document.
        ordinary = {token.content for index, token in added if not token.special and index in self._special}
        self._tokenizer.add_special_tokens([AddedToken(name, special=True) for name in sorted(ordinary)])
        self.fingerprint = _with_ends(self.fingerprint, special.ids, guessed, self.vocabulary.get)

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
        size = self._processor.vocab_size()
        own = {
            "bos_token": self._processor.bos_id(),
            "eos_token": self._processor.eos_id(),
            "pad_token": self._processor.pad_id(),
        }
        guessed = {kind: self._processor.id_to_piece(index) if index >= 0 else None for kind, index in own.items()}
        special = special_tokens(path.parent, self._find, guessed)
        if "eos_token" not in special.ids:
            raise UserError(f"tokenizer {str(path)!r} has no end token: train it with an eos_id.")
        self.bos_id, self.eos_id, self.pad_id = _border_ids(special.ids)
        self.token_names: Mapping[str, str] = special.names
        control = {
            self._processor.id_to_piece(index): index for index in filter(self._processor.is_control, range(size))
        }
        ends = {special.names[kind]: index for kind, index in special.ids.items()}
        self.special_tokens: Mapping[str, int] = {**control, **special.added, **ends}
        self.vocab_size = max([size - 1, *special.added.values()]) + 1
        self.unknown_id: int | None = self._processor.unk_id()
        self._spelled: Mapping[int, list[int]] = {}
        self._special = {*self.special_tokens.values(), *range(size, self.vocab_size)}
        # Pieces that the model finds in any document, though their names are text there -> ids that spell the name.
        self._spelled = {
            index: self._spell(name)
            for name, index in self.special_tokens.items()
            if index != self.unknown_id and self.encode(name)[-1:] == [index]
        }
        self.fingerprint = _with_ends(self.fingerprint, special.ids, guessed, self._find)

    def encode(self, text: str) -> list[int]:
        """See `tokenizers.Tokenizer`."""
        return self._without_special(self._processor.encode(text))

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        """See `tokenizers.Tokenizer`."""
        return [np.array(self._without_special(ids), np.uint32) for ids in self._processor.encode(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """See `tokenizers.Tokenizer`."""
        # SentencePiece drops the special tokens that it knows itself, but an id past its end is an error.
        known = (int(index) for index in ids if index < self.vocab_size and index not in self._special)
        return self._processor.decode([*known])

    def _without_special(self, ids: list[int]) -> list[int]:
        if self._spelled.keys().isdisjoint(ids):
            return ids
        return [part for index in ids for part in self._spelled.get(index, [index])]

    def _spell(self, name: str) -> list[int]:
        """The ids of a text letter by letter, of bytes where the vocabulary lacks a letter."""
        ids: list[int] = []
        for letter in name:
            index = self._find("▁" if letter == " " else letter)
            if index is None or index in self._special:
                ids += [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in letter.encode()]
            else:
                ids.append(index)
        return ids

    def _find(self, name: str) -> int | None:
        index = self._processor.piece_to_id(name)
        return index if self._processor.id_to_piece(index) == name else None


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


def _first(names: Sequence[str], vocabulary: Mapping[str, int]) -> str | None:
    return next((name for name in names if name in vocabulary), None)


def _border_ids(ids: Mapping[str, int]) -> tuple[int, int, int]:
    """Begin, end and padding; the end token stands for those that are missing."""
    end = ids["eos_token"]
    return ids.get("bos_token", end), end, ids.get("pad_token", end)


def _with_ends(
    fingerprint: str, ids: Mapping[str, int], guessed: Mapping[str, str | None], find: Callable[[str], int | None]
) -> str:
    """Another fingerprint where the ends are others than those of the vocabulary alone."""
    own = {kind: index for kind, name in guessed.items() if name is not None and (index := find(name)) is not None}
    if "eos_token" in own and _border_ids(own) == _border_ids(ids):
        return fingerprint
    return hashlib.sha256(f"{fingerprint} {_border_ids(ids)}".encode()).hexdigest()


def _fingerprint(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _unreadable(path: Path, error: Any) -> UserError:
    return UserError(f"cannot read the tokenizer {str(path)!r} ({error}): give an intact file with all of its parts.")
