"""Files of text and the documents in them: found by path, pattern or URL, read as a stream, plain or compressed."""

import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec

from transnormer_jax.data.conversations import read_conversation
from transnormer_jax.errors import UserError, did_you_mean

# A directory holds documents under these names; any other name is reached by a pattern.
_KINDS = (".txt", ".jsonl", ".parquet")
_COMPRESSIONS = (".gz", ".xz", ".zst")
_SUFFIXES = tuple(kind + compression for kind in _KINDS for compression in ("", *_COMPRESSIONS))
# Wikipedia extractor's tags, and the line GPT-2-style corpora put between documents.
_MARKER = re.compile(r"<doc[ >]|</doc>\s*$|<\|endoftext\|>\s*$")


def find_files(patterns: str) -> tuple[str, ...]:
    """Returns the files that a comma-separated list names, sorted, each once: absolute paths and URLs.

    Args:
      patterns: files, directories (searched recursively for `.txt`, `.jsonl` and `.parquet`, plain or compressed) and
        glob patterns (`**` is recursive), separated by commas; local, or URLs that fsspec reads, such as
        `gs://bucket/**/*.jsonl.gz` (with gcsfs installed) or `s3://...` (with s3fs).

    Raises:
      UserError: `patterns` is empty, one of them matches no file, or a store does not answer.
    """
    found = set[str]()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        try:
            files = _matches(pattern)
        except Exception as error:  # Of any store: no such protocol, no credentials, no network.
            raise UserError(f"cannot look for {pattern!r} ({_one_line(error)}): {_mend_store(error)}.") from error
        if not files:
            raise UserError(f"no text file matches {pattern!r}: give an existing file, directory or glob pattern.")
        found.update(files)
    if not found:
        raise UserError("dataset 'plain_text' needs files: set `files` to paths or patterns, separated by commas.")
    return tuple(sorted(found))


def file_identity(file: str) -> list[Any]:
    """Returns what changes when a file does: its name, size, and time or tag of its last change."""
    store, path = fsspec.core.url_to_fs(file)
    info = store.info(path)
    changed = next((info[key] for key in ("mtime", "updated", "LastModified", "ETag", "etag") if key in info), "")
    return [file, info["size"], str(changed)]


def can_begin_anywhere(file: str, documents: str) -> bool:
    """Whether `read_documents` can read a file from any byte on: it is not compressed, and has a document per line."""
    return not file.endswith(_COMPRESSIONS) and (
        _kind(file) == ".jsonl" or (_kind(file) == ".txt" and documents in ("line", "delimited"))
    )


def read_documents(
    file: str | Path, documents: str, field: str = "text", start: int = 0, stop: int | None = None
) -> Iterator[str]:
    """Yields the documents of one file that are more than white space; only one is held in memory at a time.

    A file that stops in the middle (of a document, or of a UTF-8 character, which becomes U+FFFD) is read to its end.

    Args:
      file: a path or URL of UTF-8 text, JSON lines (`.jsonl`) or Parquet (`.parquet`), compressed if its name ends in
        `.gz`, `.xz` or `.zst`.
      documents: of text. `"file"`: the whole file, unchanged; `"line"`: each line, without its line break;
        `"delimited"`: the text between marker lines (`<doc ...>`, `</doc>`, `<|endoftext|>`), which are dropped. A line
        of JSON and a row of Parquet are a document each; with `"conversation"`, its messages
        (`conversations.read_conversation`) as JSON.
      field: of JSON and Parquet, the one that holds the text.
      start: only documents that begin at this byte or later; see `can_begin_anywhere`.
      stop: only documents that begin before this byte; None is the end.

    Raises:
      UserError: the file cannot be read, is damaged, or has no such field.
    """
    name = str(file)
    kind = _kind(name)
    if name.endswith(".zst") and fsspec.utils.infer_compression(name) is None:  # it would be read as it lies
        raise UserError(f"cannot read {name!r} without a package for Zstandard: pip install zstandard.")
    try:
        with fsspec.open(name, "rb", compression="infer") as opened:
            if kind == ".txt":
                texts = _READERS[documents](_lines(opened, start, stop), start)
            else:
                records = _parquet_records(opened) if kind == ".parquet" else _json_records(_lines(opened, start, stop))
                texts = _conversations(records) if documents == "conversation" else _fields(records, field)
            yield from (_valid(text) for text in texts if text.strip())
    except UserError:
        raise
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise UserError(
            f"cannot read {name!r} ({_one_line(error)}): replace it with an intact, readable file."
        ) from error


def check_document_mode(documents: str) -> None:
    """Raises a `UserError` if `read_documents` has no mode of this name."""
    if documents not in _READERS:
        raise UserError(f"unknown document mode {documents!r}: {did_you_mean(documents, _READERS)}")


def _matches(pattern: str) -> Iterable[str]:
    store, path = fsspec.core.url_to_fs(str(Path(pattern).expanduser()) if "://" not in pattern else pattern)
    # A name with brackets in it is a file before it is a pattern.
    names = [path] if _exists(store, path) else store.glob(path)
    files = [file for name in names for file in (_files_below(store, name) if store.isdir(name) else [name])]
    local = "file" in store.protocol
    return [str(Path(file).resolve()) if local else store.unstrip_protocol(file) for file in files]


def _valid(text: str) -> str:
    """Half of a surrogate pair, which JSON can spell and UTF-8 cannot, becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _exists(store: Any, path: str) -> bool:
    try:
        return bool(store.info(path))
    except FileNotFoundError:  # `exists` would answer every error with no.
        return False


def _files_below(store: Any, directory: str) -> list[str]:
    return [file for file in store.find(directory) if file.endswith(_SUFFIXES)]


def _mend_store(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "install what it names"
    return "check the name, the network, and that this machine has credentials for it"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _kind(file: str) -> str:
    return max(_KINDS, key=Path(file).name.rfind)  # the last of them in the name; the first kind if there is none


class _Line(NamedTuple):
    """A line with its break, and whether it begins before the end of the stretch that is read."""

    text: str
    inside: bool


def _lines(file: IO[bytes], start: int, stop: int | None) -> Iterator[_Line]:
    """The lines that begin at byte `start` or later, to the end of the file."""
    place = start
    if start:
        file.seek(start - 1)
        place += len(file.readline()) - 1
    for line in file:
        yield _Line(line.decode("utf-8", errors="replace"), stop is None or place < stop)
        place += len(line)


def _inside(lines: Iterator[_Line]) -> Iterator[str]:
    return (line.text for line in itertools.takewhile(lambda line: line.inside, lines))


def _whole(lines: Iterator[_Line], start: int) -> Iterator[str]:
    del start
    yield "".join(line.text for line in lines)


def _by_line(lines: Iterator[_Line], start: int) -> Iterator[str]:
    del start
    return (line.rstrip("\r\n") for line in _inside(lines))


def _between_markers(lines: Iterator[_Line], start: int) -> Iterator[str]:
    # A document begins at the marker line before it, the first of a file at byte 0.
    document: list[str] | None = None if start else []
    for line in lines:
        if _MARKER.match(line.text):
            if document is not None:
                yield "".join(document)
            if not line.inside:
                return
            document = []
        elif document is not None:
            document.append(line.text)
    if document is not None:
        yield "".join(document)


def _no_records(lines: Iterator[_Line], start: int) -> Iterator[str]:
    raise ValueError("conversations are records: give .jsonl or .parquet")


_READERS: dict[str, Callable[[Iterator[_Line], int], Iterator[str]]] = {
    "file": _whole,
    "line": _by_line,
    "delimited": _between_markers,
    "conversation": _no_records,
}


def _json_records(lines: Iterator[_Line]) -> Iterator[Any]:
    return (json.loads(line) for line in _inside(lines) if line.strip())


def _parquet_records(file: IO[bytes]) -> Iterator[Any]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
        yield from batch.to_pylist()


def _fields(records: Iterator[Any], field: str) -> Iterator[str]:
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or field not in record:
            known = record if isinstance(record, dict) else ()
            raise ValueError(f"record {number} has no {field!r}: {did_you_mean(field, known)}")
        if not isinstance(record[field], str | None):
            raise ValueError(f"record {number} has no text in {field!r}")
        yield record[field] or ""


def _conversations(records: Iterator[Any]) -> Iterator[str]:
    for number, record in enumerate(records, start=1):
        try:
            yield json.dumps(read_conversation(record), ensure_ascii=False)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"record {number} is no conversation: {_one_line(error)}") from error
