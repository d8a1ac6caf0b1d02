"""Tab-separated files without quoting: a line is a row, a tab parts two fields."""

import io
from collections.abc import Iterator
from pathlib import Path

from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.local_files import open_binary


def read_rows(path: Path) -> Iterator[list[str]]:
    """Yields the rows of a UTF-8 file, plain or compressed, with as many fields as most of the first rows have.

    A damaged row, one with another number of fields, is left out, as the public builders do.

    Raises:
      UserError: more than one row in a hundred is damaged.
    """
    with io.TextIOWrapper(open_binary(path), "utf-8-sig", newline="\n") as lines:
        rows = (line.rstrip("\r\n").split("\t") for line in lines)
        first = [row for row, _ in zip(rows, range(100), strict=False)]
    widths = [len(row) for row in first]
    width = max(set(widths), key=widths.count, default=0)
    total = damaged = 0
    with io.TextIOWrapper(open_binary(path), "utf-8-sig", newline="\n") as lines:
        for line in lines:
            row = line.rstrip("\r\n").split("\t")
            total += 1
            if len(row) == width:
                yield row
            else:
                damaged += 1
    if 100 * damaged > total:
        raise UserError(f"{damaged} of {total} rows of {str(path)!r} have not {width} fields: give an intact file.")
