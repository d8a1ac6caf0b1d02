"""What is wrong in files of text: records that cannot be used, and bytes that are not UTF-8."""

import dataclasses
from typing import Any

import fsspec

from transnormer_jax.errors import UserError

_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that is no document.

    Attributes:
      file: a path or URL.
      unit: "line" or "record".
      number: of the line or record, from 1 on; lines are counted from byte `first_byte` of the file on.
      reason: what is wrong with it.
      first_byte: 0, unless the file is read from another byte on.
    """

    file: str
    unit: str
    number: int
    reason: str
    first_byte: int = 0

    def __str__(self) -> str:
        """The file, the line in that file and the reason; reads the file up to `first_byte`."""
        return f"{self.file!r}, {self.unit} {self.number + _line_breaks(self.file, self.first_byte)}: {self.reason}"

    def error(self) -> UserError:
        """The error of a reader that stops here."""
        return UserError(f"{self}. Correct or delete this {self.unit}.")


@dataclasses.dataclass(frozen=True)
class InvalidBytes:
    """Follows a document of which bytes that are not UTF-8 became U+FFFD."""

    file: str


Problem = BadRecord | InvalidBytes


@dataclasses.dataclass
class Problems:
    """How many problems there are, and the first ten of each kind.

    Attributes:
      bad: number of bad records.
      first_bad: of them.
      invalid: number of documents with invalid bytes.
      invalid_files: the first files of these.
    """

    bad: int = 0
    first_bad: list[BadRecord] = dataclasses.field(default_factory=list)
    invalid: int = 0
    invalid_files: list[str] = dataclasses.field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """Counts one."""
        if isinstance(problem, BadRecord):
            self.bad += 1
            self.first_bad = [*self.first_bad, problem][:_SHOWN]
        else:
            self.invalid += 1
            self.invalid_files = [*dict.fromkeys([*self.invalid_files, problem.file])][:_SHOWN]

    def merged(self, later: "Problems") -> "Problems":
        """Returns these and those of later texts."""
        return Problems(
            self.bad + later.bad,
            [*self.first_bad, *later.first_bad][:_SHOWN],
            self.invalid + later.invalid,
            [*dict.fromkeys([*self.invalid_files, *later.invalid_files])][:_SHOWN],
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Problems":
        """Returns what `dataclasses.asdict` made of it."""
        return cls(**values | {"first_bad": [BadRecord(**one) for one in values["first_bad"]]})

    def notes(self) -> dict[str, Any]:
        """Returns the counts, with places and reasons in words, of the problems that there are."""
        notes: dict[str, Any] = {}
        if self.bad:
            notes["bad_records"] = {"count": self.bad, "first": [*map(str, self.first_bad)]}
        if self.invalid:
            notes["not_utf8"] = {"documents": self.invalid, "files": self.invalid_files}
        return notes

    def error(self, *, at_least: bool = False) -> UserError:
        """The error of a corpus with bad records.

        Args:
          at_least: the rest of the texts has not been read.
        """
        count = f"{'at least ' if at_least else ''}{self.bad:,} record{'s' if self.bad > 1 else ''}"
        first = f"; the first {len(self.first_bad)} are:" if self.bad > len(self.first_bad) else ":"
        field = " set config.data.text_feature to their field," if "no field" in self.first_bad[0].reason else ""
        return UserError(
            "\n  ".join([f"{count} cannot be read{first}", *map(str, self.first_bad)])
            + f"\nCorrect or delete them,{field} or set config.data.bad_records='skip' to leave them out: what is "
            "tokenised so far is kept."
        )


def notes_in_words(notes: dict[str, Any]) -> list[str]:
    """Returns a line for a log of each kind of problem in `Problems.notes`."""
    lines = []
    if bad := notes.get("bad_records"):
        what = f"{bad['count']:,} bad records, the first" if bad["count"] > 1 else "1 bad record"
        lines.append(f"left out {what}: {bad['first'][0]}")
    if invalid := notes.get("not_utf8"):
        count, names = invalid["documents"], ", ".join(map(repr, invalid["files"]))
        what = f"{count:,} documents, the first" if count > 1 else "1 document"
        lines.append(f"replaced bytes that are not UTF-8 by U+FFFD in {what} of {names}")
    return lines


def _line_breaks(file: str, stop: int) -> int:
    """The number of line breaks in the first bytes of a file."""
    count = 0
    if stop:
        with fsspec.open(file, "rb") as opened:
            while stop and (block := opened.read(min(stop, 1 << 20))):
                count, stop = count + block.count(b"\n"), stop - len(block)
    return count
