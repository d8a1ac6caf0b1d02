"""Records in JSON lines, JSON arrays and Parquet, and the text of each."""

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from transnormer_jax.data.conversations import read_conversation
from transnormer_jax.errors import UserError, did_you_mean

# What a record that cannot be used may raise, in the parser or in `read_conversation`.
_ERRORS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_JSON_NAMES = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
_PARQUET_ROWS = 1024  # per read

Numbered = tuple[int, Callable[[], Any]]
"""The number of a record, and what parses it or raises one of `_ERRORS`."""


def texts_of(records: Iterable[Numbered], text_of: Callable[[Any], str]) -> Iterator[tuple[int, str, str]]:
    """Yields the number of each record and its text, or "" and what is wrong with it."""
    for number, parse in records:
        try:
            yield number, text_of(parse()), ""
        except _ERRORS as error:
            yield number, "", _reason(error)


def field_text(field: str) -> Callable[[Any], str]:
    """Returns a function from a record to the text in a field; null is no text."""

    def text_of(record: Any) -> str:
        if not isinstance(record, dict):
            raise ValueError(f"it is {_JSON_NAMES.get(type(record), 'null')}, not an object with a field {field!r}")
        if field not in record:
            raise ValueError(f"it has no field {field!r}{_but(field, record)}")
        if not isinstance(record[field], str | None):
            kind = type(record[field])
            raise ValueError(f"the field {field!r} holds {_JSON_NAMES.get(kind, f'{kind.__name__}')}, not text")
        return record[field] or ""

    return text_of


def conversation_text(record: Any) -> str:
    """Returns the messages of a record as JSON."""
    try:
        return json.dumps(read_conversation(record), ensure_ascii=False)
    except _ERRORS as error:
        raise ValueError(f"it is no conversation: {_reason(error)}") from error


def json_lines(lines: Iterable[tuple[int, str]]) -> Iterator[Numbered]:
    """Yields the records of numbered lines, of which some may be blank, or begin with the byte order mark of a file."""
    return (
        (number, functools.partial(json.loads, line.lstrip("\ufeff").rstrip("\r\n")))
        for number, line in lines
        if line.strip()
    )


def json_array(text: str) -> Iterator[Numbered]:
    """Yields the records of the text of a JSON array.

    Raises:
      ValueError: it is damaged at this place, so that the records behind it cannot be found.
      EOFError: it has no end.
    """
    decoder, place, number = json.JSONDecoder(), _skip_space(text, text.index("[") + 1), 0
    while text[place : place + 1] != "]":
        if place == len(text):
            raise EOFError
        number += 1
        try:
            record, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            where = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise ValueError(f"record {number} of its array{where}: {_reason(error)}") from error
        yield number, functools.partial(_same, record)
        place = _skip_space(text, place)
        if text[place : place + 1] == ",":
            place = _skip_space(text, place + 1)
        elif place < len(text) and text[place] != "]":
            raise ValueError(f"neither a comma nor the end of its array follows record {number}")
    if text[place + 1 :].strip():
        raise ValueError("there is more text behind its array")


def parquet_records(file: str, opened: IO[bytes], columns: Sequence[str]) -> Iterator[Numbered]:
    """Yields rows, of which only some columns are read.

    Args:
      file: its name, for errors.
      opened: the file.
      columns: those that are read, if they are there.

    Raises:
      UserError: none of the columns is there.
      EOFError: the file has been cut short.
    """
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(opened)
    except pyarrow.ArrowInvalid as error:
        opened.seek(0)
        if opened.read(4) == b"PAR1" and "footer" in str(error):  # which is the end of a whole file
            raise EOFError from error
        raise
    known = table.schema_arrow.names
    needed = [name for name in columns if name in known]
    if not needed:
        raise UserError(f"{file!r} has no column {' or '.join(map(repr, columns))}{_but(columns[0], known)}")
    numbers = itertools.count(1)
    for batch in table.iter_batches(_PARQUET_ROWS, columns=needed):
        for row in range(len(batch)):
            yield next(numbers), functools.partial(_row, needed, batch.columns, row)


def _row(names: Sequence[str], columns: Sequence[Any], row: int) -> dict[str, Any]:
    return {name: column[row].as_py() for name, column in zip(names, columns, strict=True)}


def _same(record: Any) -> Any:
    return record


def _skip_space(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t", "\r", "\n"):
        place += 1
    return place


def _but(name: str, known: Iterable[str]) -> str:
    names = [*known]
    return f": {did_you_mean(name, names)}" if names else "; it is empty"


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON ({error.msg}, column {error.colno})"
    if isinstance(error, KeyError):
        return f"there is no {error}"
    if "Exceeds the limit" in str(error):
        return "it holds a number of more than 4,300 digits"
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
