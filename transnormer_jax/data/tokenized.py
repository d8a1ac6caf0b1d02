"""A corpus tokenised once, on disk: memory-mapped shards of documents, and a manifest of their counts and checksums."""

import bisect
import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transnormer_jax import storage
from transnormer_jax.data.shuffle import permutation
from transnormer_jax.errors import UserError

FORMAT = 3
"""Of the directories of tokens, and of their index of a store."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some documents of the corpus, in its order, in two files.

    `NNNNN.tokens` is the documents end to end, without special tokens, in the manifest's dtype. `NNNNN.index` is uint64
    [documents, 3]: tokens, UTF-8 bytes and key of each document. Both are little-endian and have no header.

    Attributes:
      part: of the corpus, from which they are.
      documents: how many.
      tokens: of all documents.
      bytes: of UTF-8, of all texts.
      sha256: of the tokens, in hexadecimal digits.
      index_sha256: of the index.
    """

    part: int
    documents: int
    tokens: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of a directory of shards, `manifest.json`.

    Attributes:
      tokenizer: the fingerprint of what made the tokens.
      dtype: "uint16" or "uint32".
      shards: by number.
      notes: what was wrong with the texts, if anything: `bad_records.Problems.notes`.
    """

    tokenizer: str
    dtype: str
    shards: tuple[Shard, ...]
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Writes `manifest.json`."""
        (directory / "manifest.json").write_text(json.dumps({"format": FORMAT} | dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, directory: storage.AnyPath) -> "Manifest":
        """Reads `manifest.json`."""
        values = json.loads((directory / "manifest.json").read_text())
        shards = tuple(Shard(**shard) for shard in values["shards"])
        return cls(values["tokenizer"], values["dtype"], shards, values["notes"])


class TokenizedDocuments:
    """A sequence of documents, each an array [tokens] of uint16 or uint32 in a memory map.

    Attributes:
      lengths: int64 [documents], tokens of each document, special tokens not counted.
      num_bytes: int64 [documents], UTF-8 bytes of each document's text.
      keys: uint64 [documents], of which the lowest are held out.
      num_tokens: the sum of `lengths`.
    """

    def __init__(
        self,
        tokens: Sequence[npt.NDArray[np.integer]],
        lengths: npt.NDArray[np.int64],
        num_bytes: npt.NDArray[np.int64],
        keys: npt.NDArray[np.uint64],
    ):
        """Takes documents that are end to end in the arrays `tokens`, none of them across a border."""
        self._tokens = tokens
        self._starts = np.cumsum([0, *map(len, tokens)]).tolist()
        self._firsts = np.cumsum(lengths) - lengths  # of the first token of each document
        self.lengths = lengths
        self.num_bytes = num_bytes
        self.keys = keys
        self.num_tokens = int(lengths.sum())

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> npt.NDArray[np.integer]:
        """Returns the tokens of a document, [tokens] uint16 or uint32.

        Raises:
          IndexError: there is no such document.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._firsts[index])
        stop = start + int(self.lengths[index])
        shard = min(bisect.bisect_right(self._starts, start), len(self._tokens)) - 1
        first = self._starts[shard]
        return self._tokens[shard][start - first : stop - first]

    def sample(self, max_tokens: int) -> "TokenizedDocuments":
        """Returns documents from all over the corpus, with at most `max_tokens` tokens together but at least one.

        They are the first of an order that depends on the number of documents alone, and stand in the corpus's order.
        """
        order = permutation(len(self), 0)
        count = max(1, int(np.searchsorted(np.cumsum(self.lengths[order]), max_tokens, side="right")))
        return self.select(np.sort(order[:count]))

    def select(self, chosen: npt.NDArray[np.int64]) -> "TokenizedDocuments":
        """Returns the documents with these indices, in this order."""
        selection = copy.copy(self)
        selection._firsts, selection.lengths = self._firsts[chosen], self.lengths[chosen]
        selection.num_bytes, selection.keys = self.num_bytes[chosen], self.keys[chosen]
        selection.num_tokens = int(selection.lengths.sum())
        return selection


def open_tokenized(directory: Path) -> TokenizedDocuments:
    """Returns the documents of a directory, in the order of the corpus.

    Raises:
      UserError: a shard is missing or has been cut short.
    """
    manifest = Manifest.read(directory)
    tokens, indices = list[npt.NDArray](), [np.empty(0, np.uint64)]
    for number, shard in enumerate(manifest.shards):
        tokens.append(_mapped(shard_file(directory, number, "tokens"), manifest.dtype, shard.tokens))
        indices.append(_mapped(shard_file(directory, number, "index"), "uint64", 3 * shard.documents))
    lengths, num_bytes, keys = np.concatenate(indices).reshape(-1, 3).T.copy()
    return TokenizedDocuments(tokens, lengths.view(np.int64), num_bytes.view(np.int64), keys)


def damaged_shards(directory: Path) -> list[int]:
    """Returns the numbers of the shards whose files are not what the manifest says; reads all of them."""
    return [
        number
        for number, shard in enumerate(Manifest.read(directory).shards)
        if _sha256(shard_file(directory, number, "tokens")) != shard.sha256
        or _sha256(shard_file(directory, number, "index")) != shard.index_sha256
    ]


def shard_file(directory: Path, number: int, kind: str) -> Path:
    """The file with the "tokens" or the "index" of a shard."""
    return directory / f"{number:05}.{kind}"


def _mapped(file: Path, dtype: str, count: int) -> npt.NDArray:
    size = file.stat().st_size if file.exists() else 0
    itemsize = np.dtype(dtype).itemsize
    if size != count * itemsize:
        raise UserError(
            f"{str(file)!r} holds {size:,} bytes of {count * itemsize:,}: write it again with "
            "`python -m transnormer_jax.data.prepare --verify` and this configuration."
        )
    # A plain view: slices of np.memmap itself cost microseconds each. An empty file cannot be mapped.
    return np.asarray(np.memmap(file, dtype, mode="r")) if count else np.empty(0, dtype)


def _sha256(file: Path) -> str:
    if not file.exists():
        return ""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
