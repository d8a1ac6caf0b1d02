"""The documents of one file: text, JSON or Parquet, read as a stream, plain or compressed."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from transnormer_jax.data.bad_records import BadRecord, InvalidBytes, Problem
from transnormer_jax.data.conversations import RECORD_FIELDS
from transnormer_jax.data.file_kinds import JSON, JSON_LINES, PARQUET, TEXT, kind_of, suffixes_of
from transnormer_jax.data.open_file import open_file
from transnormer_jax.data.record_files import (
    Numbered,
    conversation_text,
    field_text,
    json_array,
    json_lines,
    parquet_records,
    texts_of,
)
from transnormer_jax.errors import UserError, did_you_mean

_CHUNK_BYTES = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Wikipedia extractor's tags, and the line GPT-2-style corpora put between documents.
_MARKER = re.compile(r"<doc[ >]|</doc>\s*$|<\|endoftext\|>\s*$")


def can_begin_anywhere(file: str, documents: str) -> bool:
    """Whether `read_documents` can read a file from any byte on: it is not compressed, and its documents are short."""
    if suffixes_of(file)[1]:
        return False
    kind = kind_of(file)
    return kind == JSON_LINES or (kind == TEXT and documents not in ("file", "conversation"))


def read_documents(
    file: str | Path, documents: str, field: str = "text", start: int = 0, stop: int | None = None
) -> Iterator[str]:
    """Yields the documents of one file that are more than white space, up to the first bad record.

    The arguments and errors are those of `read_items`.

    Raises:
      UserError: also for a bad record.
    """
    for item in read_items(file, documents, field, start, stop):
        if isinstance(item, BadRecord):
            raise item.error()
        if isinstance(item, str):
            yield item


def read_items(
    file: str | Path, documents: str, field: str = "text", start: int = 0, stop: int | None = None
) -> Iterator[str | Problem]:
    """Yields the documents of one file that are more than white space, and what is wrong in it where it is found.

    Only one document is held in memory at a time, and the whole text of a JSON array. A byte order mark is no text.
    Bytes that are not UTF-8 become U+FFFD.

    Args:
      file: a path or URL. Its suffix says what it is, whatever the case: JSON lines (`.jsonl`, `.ndjson`,
        `.jsonlines`), JSON (`.json`: JSON lines, or one array of records), Parquet (`.parquet`), otherwise UTF-8 text.
        All but Parquet may be compressed (`.gz`, `.bz2`, `.xz`, `.zst`).
      documents: of text. `"file"`: the whole file, unchanged; `"line"`: each line, without its line break;
        `"paragraph"`: the text between blank lines; `"delimited"`: the text between marker lines (`<doc ...>`,
        `</doc>`, `<|endoftext|>`), which are dropped; `"chunk"`: pieces of about 64 KiB that end at a line break, or
        anywhere in a line of more than 64 KiB. A record of JSON or Parquet is one document; with `"conversation"`, its
        messages (`conversations.read_conversation`) as JSON.
      field: of JSON and Parquet, the one that holds the text.
      start: only documents that begin at this byte or later; see `can_begin_anywhere`.
      stop: only documents that begin before this byte; None is the end.

    Raises:
      UserError: the file cannot be read, is damaged or cut short, or is not what its name says.
    """
    name = str(file)
    with open_file(name, check=not start) as opened:
        content = _Content(opened, start, stop)
        kind = kind_of(name)
        texts: Iterator[tuple[int, str, str]]
        if kind == TEXT:
            texts = ((0, text, "") for text in _READERS[documents](content))
        elif documents == "conversation":
            texts = texts_of(_records(name, kind, content, RECORD_FIELDS), conversation_text)
        else:
            texts = texts_of(_records(name, kind, content, (field,)), field_text(field))
        for number, text, reason in texts:
            if reason:
                unit = "line" if content.has_lines else "record"
                yield BadRecord(name, unit, number, reason, content.first_byte)
            elif text.strip():
                yield _valid(text)
                if content.replaced:
                    yield InvalidBytes(name)
            content.replaced = False


def check_document_mode(documents: str) -> None:
    """Raises a `UserError` if `read_documents` has no mode of this name."""
    if documents not in _READERS:
        raise UserError(f"unknown document mode {documents!r}: {did_you_mean(documents, _READERS)}")


def _valid(text: str) -> str:
    """Half of a surrogate pair, which JSON can spell and UTF-8 cannot, becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _Line(NamedTuple):
    """A line with its break, its number, and whether it begins before the end of the stretch that is read."""

    text: str
    number: int
    inside: bool


class _Content:
    """The content of an open file from byte `start` on.

    Attributes:
      start: as `read_items` has it.
      first_byte: of line 1.
      has_lines: it has been read by lines.
      replaced: bytes that are not UTF-8 have been found.
    """

    def __init__(self, opened: IO[bytes], start: int, stop: int | None):
        self.opened, self.start, self._stop = opened, start, stop
        self.first_byte, self.has_lines, self.replaced = 0, False, False

    def decode(self, raw: bytes, place: int) -> str:
        """The text of the bytes at a place."""
        if place == 0:
            raw = raw.removeprefix(_BYTE_ORDER_MARK)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.replaced = True
            return raw.decode(errors="replace")

    def lines(self) -> Iterator[_Line]:
        """The lines that begin at byte `start` or later, to the end of the file."""
        self.has_lines = True
        place = self.start
        if place:
            self.opened.seek(place - 1)
            place += len(self.opened.readline()) - 1
        self.first_byte = place
        for number, line in enumerate(self.opened, start=1):
            yield _Line(self.decode(line, place), number, self._stop is None or place < self._stop)
            place += len(line)

    def inside(self) -> Iterator[_Line]:
        """The lines that begin before the end of the stretch."""
        return itertools.takewhile(lambda line: line.inside, self.lines())

    def chunks(self) -> Iterator[str]:
        """The chunks that begin in the stretch.

        A chunk begins behind the first line break in a block of 64 KiB, or with the block where that has none: so
        where it begins does not depend on where the reader begins.
        """
        block = -(-self.start // _CHUNK_BYTES) * _CHUNK_BYTES
        if block:
            self.opened.seek(block)
        chunk, begin = None, 0
        while content := _read_fully(self.opened, _CHUNK_BYTES):
            border = _border(content) if block else 0
            if chunk is not None:
                yield self.decode(chunk + content[:border], begin)
            if self._stop is not None and block >= self._stop:
                return
            chunk, begin = content[border:], block + border
            block += len(content)
        if chunk is not None:
            yield self.decode(chunk, begin)


def _read_fully(opened: IO[bytes], size: int) -> bytes:
    """Reads so many bytes, of which some readers give fewer at a time, or all that are left."""
    pieces = []
    while size and (piece := opened.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _border(block: bytes) -> int:
    """Where the chunk that belongs to a block begins: behind a line break, or else not inside a character."""
    behind = block.find(b"\n") + 1
    return behind or next(
        (place for place in range(4) if block[place : place + 1] < b"\x80" or block[place] >= 0xC0), 0
    )


def _whole(content: _Content) -> Iterator[str]:
    yield "".join(line.text for line in content.lines())


def _by_line(content: _Content) -> Iterator[str]:
    return (line.text.rstrip("\r\n") for line in content.inside())


def _between(is_border: Callable[[str], object]) -> Callable[[_Content], Iterator[str]]:
    """The text between the lines that are borders."""

    def read(content: _Content) -> Iterator[str]:
        # A document begins at the border before it, the first of a file at byte 0.
        document: list[str] | None = None if content.start else []
        for line in content.lines():
            if is_border(line.text):
                if document:
                    yield "".join(document)
                if not line.inside:
                    return
                document = []
            elif document is not None:
                document.append(line.text)
        if document:
            yield "".join(document)

    return read


def _paragraphs(content: _Content) -> Iterator[str]:
    return (text.rstrip("\r\n") for text in _between(lambda line: not line.strip())(content))


def _no_records(content: _Content) -> Iterator[str]:
    raise UserError("conversations are records: give .jsonl or .parquet files, or .json.")


_READERS: dict[str, Callable[[_Content], Iterator[str]]] = {
    "file": _whole,
    "line": _by_line,
    "paragraph": _paragraphs,
    "delimited": _between(_MARKER.match),
    "chunk": _Content.chunks,
    "conversation": _no_records,
}


def _records(file: str, kind: str, content: _Content, columns: tuple[str, ...]) -> Iterable[Numbered]:
    if kind == PARQUET:
        return parquet_records(file, content.opened, columns)
    lines = content.inside()
    if kind == JSON:
        first = next((line for line in lines if line.text.strip()), None)
        if first and first.text.lstrip().startswith("["):
            content.has_lines = False
            return json_array("\n" * (first.number - 1) + "".join(line.text for line in (first, *lines)))
        lines = itertools.chain([first] if first else [], lines)
    return json_lines((line.number, line.text) for line in lines)
