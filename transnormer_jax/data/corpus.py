"""A corpus: documents in parts that several processes read at once."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from transnormer_jax.data.bad_records import BadRecord, InvalidBytes, Problem
from transnormer_jax.data.file_kinds import TEXT, kind_of
from transnormer_jax.data.find_files import file_identity, find_files
from transnormer_jax.data.held_out import cut_document, text_key
from transnormer_jax.data.text_files import can_begin_anywhere, check_document_mode, read_documents, read_items

_PART_BYTES = 1 << 24
_MOST_PARTS = 1024


class Corpus(Protocol):
    """Documents in parts; picklable, for several processes.

    Attributes:
      fingerprint: another one where a document or its key may be another.
    """

    fingerprint: str

    def __len__(self) -> int:
        """The number of parts."""

    def read(self, part: int) -> Iterator[tuple[int, str] | Problem]:
        """Yields the key and the text of each document of a part, always in the same order.

        A key is a number of 64 bits: the documents of lowest key are held out. Between the documents come the problems
        with the files, if there are any.
        """


class TextFiles:
    """The documents of text files, in file order. The key of a document is a hash of its text.

    So two copies of a document are never in two splits. A single document is cut: its end is held out.

    Attributes:
      found: which files are read.
    """

    def __init__(
        self, files: str, documents: str = "file", field: str = "text", held_out: float = 0.0, tokens: str = ""
    ):
        """Finds the files.

        Args:
          files: see `find_files`.
          documents: what a document is; see `read_items`.
          field: of JSON and Parquet, what holds the text.
          held_out: the fraction of a single document in each of `validation` and `test`.
          tokens: see `find_files`.

        Raises:
          UserError: no such file or document mode.
        """
        check_document_mode(documents)
        self.found = find_files(files, tokens)
        identities = [file_identity(file) for file in self.found.files]
        single = len(identities) == 1 and documents == "file" and kind_of(identities[0][0]) == TEXT
        self._cut = held_out if single else 0.0
        self.fingerprint = digest(identities, documents, field, self._cut)
        self._documents, self._field = documents, field
        self._parts = cut([(file, size) for file, size, _ in identities], documents)

    def __len__(self) -> int:
        return len(self._parts)

    def read(self, part: int) -> Iterator[tuple[int, str] | Problem]:
        """See `Corpus`."""
        files, start, stop = self._parts[part]
        for file in files:
            for item in read_items(file, self._documents, self._field, start, stop):
                if isinstance(item, BadRecord | InvalidBytes):
                    yield item
                elif self._cut:
                    yield from cut_document(item, self._cut)
                else:
                    yield text_key(item), item

    def documents(self, part: int) -> Iterator[tuple[str, str, str]]:
        """Yields file, number and text of each document; numbers from byte START on are such as "START+7".

        Raises:
          UserError: as `read_documents`; also for a bad record.
        """
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


def digest(*identity: object) -> str:
    """A short name for what has this identity."""
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
