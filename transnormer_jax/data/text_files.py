"""Local text files and the documents in them: found by path or pattern, read as a stream, plain or compressed."""

import glob
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from transnormer_jax.errors import UserError, did_you_mean

# A directory holds documents under these names; any other name is reached by a pattern.
_SUFFIXES = (".txt", ".txt.gz", ".txt.xz")
_OPENERS: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".xz": lzma.open}
# Wikipedia extractor's tags, and the line GPT-2-style corpora put between documents.
_MARKER = re.compile(r"<doc[ >]|</doc>\s*$|<\|endoftext\|>\s*$")


def find_files(patterns: str) -> tuple[Path, ...]:
    """Returns the absolute paths of the files that a comma-separated list names, sorted, each once.

    Args:
      patterns: files, directories (searched recursively for `.txt`, `.txt.gz`, `.txt.xz`) and glob patterns (`**` is
        recursive), parted by commas.

    Raises:
      UserError: `patterns` is empty, or one of them matches no file.
    """
    found = set[Path]()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matches = [path for match in _matches(pattern) for path in _files_below(match)]
        if not matches:
            raise UserError(f"no text file matches {pattern!r}: give an existing file, directory or glob pattern.")
        found.update(path.resolve() for path in matches)
    if not found:
        raise UserError("dataset 'plain_text' needs files: set `files` to paths or patterns, parted by commas.")
    return tuple(sorted(found))


def read_documents(path: Path, documents: str) -> Iterator[str]:
    """Yields the documents of one file that are more than white space; only one is held in memory at a time.

    A file that stops in the middle (of a document, or of a UTF-8 character, which becomes U+FFFD) is read to its end.

    Args:
      path: a UTF-8 text file, compressed if its name ends in `.gz` or `.xz`.
      documents: `"file"`: the whole file, unchanged; `"line"`: each line, without its line break; `"marked"`: the
        text between marker lines (`<doc ...>`, `</doc>`, `<|endoftext|>`), which are dropped.

    Raises:
      UserError: the file cannot be read, or is damaged.
    """
    try:
        # Line breaks are data: newline="\n" keeps each "\r" that "universal newlines" would rewrite.
        opened = _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8", errors="replace", newline="\n")
        with opened as lines:
            yield from filter(str.strip, _READERS[documents](lines))
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"cannot read {str(path)!r} ({error}): replace it with an intact, readable file.") from error


def check_document_mode(documents: str) -> None:
    """Raises a `UserError` if `read_documents` has no mode of this name."""
    if documents not in _READERS:
        raise UserError(f"unknown document mode {documents!r}: {did_you_mean(documents, _READERS)}")


def _matches(pattern: str) -> list[Path]:
    expanded = str(Path(pattern).expanduser())
    # A name with brackets in it is a file before it is a pattern.
    return [Path(expanded)] if Path(expanded).exists() else [Path(name) for name in glob.glob(expanded, recursive=True)]


def _files_below(path: Path) -> Iterable[Path]:
    if path.is_dir():
        return (file for file in path.rglob("*") if file.name.endswith(_SUFFIXES) and file.is_file())
    return [path]


def _whole(lines: IO[str]) -> Iterator[str]:
    yield lines.read()


def _by_line(lines: IO[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in lines)


def _between_markers(lines: IO[str]) -> Iterator[str]:
    document: list[str] = []
    for line in lines:
        if _MARKER.match(line):
            yield "".join(document)
            document = []
        else:
            document.append(line)
    yield "".join(document)


_READERS = {"file": _whole, "line": _by_line, "marked": _between_markers}
