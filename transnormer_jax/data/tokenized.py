"""A corpus tokenised once, on disk: a flat memory-mapped array of tokens and the offsets of the documents in it."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from transnormer_jax.data.publish import publish
from transnormer_jax.errors import UserError

# Characters per call of the tokenizer: enough to keep every core busy, little enough to forget.
_BATCH_CHARACTERS = 1 << 22


class Coder(Protocol):
    """What makes tokens of texts: a `Tokenizer`, or another code of the same form."""

    vocab_size: int
    fingerprint: str

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        """Returns the ids of each text, [tokens]."""


class TokenizedDocuments:
    """A sequence of documents, each an array [tokens] of uint16 or uint32 in the memory map.

    Attributes:
      lengths: int64 [documents], tokens of each document, special tokens not counted.
      num_bytes: int64 [documents], UTF-8 bytes of each document's text.
      num_tokens: the sum of `lengths`.
    """

    def __init__(
        self, tokens: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64], num_bytes: npt.NDArray[np.int64]
    ):
        """Takes document i to be `tokens[offsets[i] : offsets[i + 1]]`."""
        self._tokens = tokens
        self._offsets = offsets
        self.lengths: npt.NDArray[np.int64] = np.diff(offsets)
        self.num_bytes = num_bytes
        self.num_tokens = int(offsets[-1])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> npt.NDArray[np.integer]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._tokens[self._offsets[index] : self._offsets[index + 1]]

    def head(self, max_tokens: int) -> "TokenizedDocuments":
        """Returns the first documents that have no more than `max_tokens` tokens together, but at least one of them."""
        count = max(1, int(np.searchsorted(self._offsets, max_tokens, side="right")) - 1)
        return TokenizedDocuments(self._tokens, self._offsets[: count + 1], self.num_bytes[:count])


def tokenize(texts: Iterable[str], coder: Coder, directory: Path) -> TokenizedDocuments:
    """Returns the tokenised `texts`, from `directory` if it exists, else written there first.

    The directory appears at once and whole: a killed or failed run leaves none, and of racing processes one wins.

    Args:
      texts: the documents; not read if `directory` exists.
      coder: encodes them; no special tokens are stored.
      directory: on a local disk; its name must tell this corpus and tokenizer from all others.

    Raises:
      UserError: there are no tokens, or the disk refuses them.
    """
    try:
        if not directory.exists():
            publish(directory, lambda written: _write(texts, coder, written))
    except OSError as error:
        raise UserError(f"cannot write tokens to {str(directory)!r} ({error}): choose another data_dir.") from error
    return _open(directory)


def _open(directory: Path) -> TokenizedDocuments:
    dtype = json.loads((directory / "meta.json").read_text())["dtype"]
    # A plain view: slices of np.memmap itself cost microseconds each.
    tokens = np.asarray(np.memmap(directory / "tokens.bin", dtype, mode="r"))
    return TokenizedDocuments(tokens, np.load(directory / "offsets.npy"), np.load(directory / "num_bytes.npy"))


def _write(texts: Iterable[str], coder: Coder, directory: Path) -> None:
    dtype = np.dtype(np.uint16 if coder.vocab_size <= 1 << 16 else np.uint32)
    lengths: list[int] = []
    num_bytes: list[int] = []
    with open(directory / "tokens.bin", "wb") as tokens:
        for batch in _batches(texts):
            documents = coder.encode_batch(batch)
            tokens.write(np.concatenate(documents).astype(dtype).tobytes())
            lengths.extend(map(len, documents))
            num_bytes.extend(len(text.encode()) for text in batch)
    if not any(lengths):
        raise UserError("the split has no tokens: choose another split, or a corpus with text in it.")
    np.save(directory / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
    np.save(directory / "num_bytes.npy", np.array(num_bytes, np.int64))
    (directory / "meta.json").write_text(json.dumps({"dtype": dtype.name, "tokenizer": coder.fingerprint}))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
