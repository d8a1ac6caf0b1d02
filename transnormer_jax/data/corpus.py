"""A corpus: documents and the split of each, in parts that several processes read at once."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from transnormer_jax.data.text_files import (
    can_begin_anywhere,
    check_document_mode,
    file_identity,
    find_files,
    read_documents,
)
from transnormer_jax.errors import UserError

_PART_BYTES = 1 << 24
_MOST_PARTS = 1024


class Corpus(Protocol):
    """Documents in parts; picklable, for several processes.

    Attributes:
      splits: names.
      fingerprint: another one where a document or its split may be another.
    """

    splits: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        """The number of parts."""

    def read(self, part: int) -> Iterator[tuple[str, str]]:
        """Yields the split and the text of each document of a part, always in the same order."""


class TextFiles:
    """The documents of text files, in file order. A hash of its text decides the split of a document.

    So a document keeps its split when others come, and two copies of it are never in two splits.
    """

    splits: tuple[str, ...] = ("train", "validation", "test")

    def __init__(self, files: str, documents: str = "file", held_out: float = 0.01, field: str = "text"):
        """Finds the files; `files`, `documents` and `field` are those of `text_files`.

        Args:
          files: paths, directories and patterns, separated by commas.
          documents: what a document is.
          held_out: the fraction of the documents in each of `validation` and `test`.
          field: of JSON lines and Parquet, what holds the text.

        Raises:
          UserError: no such file or document mode, or `held_out` is not in [0, 0.5).
        """
        check_document_mode(documents)
        if not 0 <= held_out < 0.5:
            raise UserError(f"held_out is {held_out}: choose a fraction from 0 up to, not including, 0.5.")
        identities = [file_identity(file) for file in find_files(files)]
        self.fingerprint = digest(identities, documents, held_out, field)
        self._documents, self._held_out, self._field = documents, held_out, field
        self._parts = cut([(file, size) for file, size, _ in identities], documents)

    def __len__(self) -> int:
        return len(self._parts)

    def read(self, part: int) -> Iterator[tuple[str, str]]:
        """See `Corpus`."""
        for _, _, text in self.documents(part):
            uniform = uniform_hash(text)
            split = "validation" if uniform < self._held_out else "test" if uniform < 2 * self._held_out else "train"
            yield split, text

    def documents(self, part: int) -> Iterator[tuple[str, str, str]]:
        """Yields file, number and text of each document; numbers from byte START on are such as "START+7"."""
        files, start, stop = self._parts[part]
        for file in files:
            for number, text in enumerate(read_documents(file, self._documents, self._field, start, stop)):
                yield file, f"{start}+{number}" if start else str(number), text


class Part(NamedTuple):
    """Whole files, or of one file the documents that begin in the bytes from `start` up to `stop`."""

    files: tuple[str, ...]
    start: int = 0
    stop: int | None = None


def cut(sizes: Sequence[tuple[str, int]], documents: str) -> list[Part]:
    """Cuts files of so many bytes into parts of about 16 MB, or more where there would be too many parts."""
    part_bytes = max(_PART_BYTES, sum(size for _, size in sizes) // _MOST_PARTS)
    parts, small, taken = list[Part](), list[str](), 0
    for file, size in sizes:
        if small and taken + size > part_bytes:
            parts.append(Part(tuple(small)))
            small, taken = [], 0
        if size > part_bytes and can_begin_anywhere(file, documents):
            count = -(-size // part_bytes)
            borders = [number * size // count for number in range(count + 1)]
            parts += [Part((file,), start, stop) for start, stop in itertools.pairwise(borders)]
        else:
            small.append(file)
            taken += size
    return [*parts, Part(tuple(small))] if small else parts


def uniform_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, and is uniform over texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def digest(*identity: object) -> str:
    """A short name for what has this identity."""
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
