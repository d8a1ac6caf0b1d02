"""Finds the files that a list of paths, directories, patterns and URLs names, and says what it leaves out."""

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from transnormer_jax.data.file_kinds import advice_against, is_document_name, label_of
from transnormer_jax.errors import UserError


class FoundFiles(NamedTuple):
    """Files, and what lies beside them.

    Attributes:
      files: absolute paths and URLs, sorted, each once.
      skipped: suffix -> number of files below the directories that are not read, hidden ones not counted.
    """

    files: tuple[str, ...]
    skipped: Mapping[str, int]

    def __str__(self) -> str:
        """In words, such as "took 3 .txt, skipped 200 .md"."""
        skipped = f", skipped {_in_words(self.skipped)}" if self.skipped else ""
        return f"took {_in_words(Counter(map(label_of, self.files)))}{skipped}"


def find_files(patterns: str, tokens: str = "") -> FoundFiles:
    """Returns the files that a comma-separated list names.

    Below a directory, those are read whose suffix is `.txt`, `.jsonl`, `.ndjson`, `.jsonlines`, `.json` or `.parquet`,
    in any case; all but Parquet may be compressed. A file that is named outright or by a pattern may have any suffix
    that plain text has. Names that begin with a dot and `__MACOSX` are skipped below a directory and in what a pattern
    matches, unless the pattern has the dot.

    Args:
      patterns: files, directories (searched recursively) and glob patterns (`**` is recursive), separated by commas;
        local, or URLs that fsspec reads, such as `gs://bucket/**/*.jsonl.gz` (with gcsfs installed) or `s3://...`
        (with s3fs).
      tokens: a local directory of tokenised text, which holds no documents.

    Raises:
      UserError: `patterns` is empty, one of them matches no file or a file that is known not to be text, or a store
        does not answer.
    """
    found, skipped = set[str](), set[str]()
    # A name with a comma in it is a file before it is a list.
    listed = [patterns] if os.path.exists(patterns) else [part.strip() for part in patterns.split(",")]
    for pattern in filter(None, listed):
        try:
            taken, others = _matches(pattern, tokens)
        except UserError:
            raise
        except Exception as error:  # Of any store: no such protocol, no credentials, no network.
            raise UserError(f"cannot look for {pattern!r} ({_one_line(error)}): {_mend_store(error)}.") from error
        for file in taken:
            if advice := advice_against(file):
                raise UserError(f"{file!r} is not plain text, JSON or Parquet: {advice}.")
        if not taken:
            raise UserError(_nothing_found(pattern, others))
        found.update(taken)
        skipped.update(others)
    if not found:
        raise UserError("dataset 'plain_text' needs files: set `files` to paths or patterns, separated by commas.")
    return FoundFiles(tuple(sorted(found)), Counter(map(label_of, skipped - found)))


def file_identity(file: str) -> list[Any]:
    """Returns what changes when a file does: its name, size, and time or tag of its last change.

    Raises:
      UserError: there is no such file.
    """
    store, path = fsspec.core.url_to_fs(file)
    try:
        info = store.info(path)
    except FileNotFoundError as error:
        raise UserError(f"{file!r} is gone, or a link to a file that is not there: restore or delete it.") from error
    changed = next((info[key] for key in ("mtime", "updated", "LastModified", "ETag", "etag") if key in info), "")
    return [file, info["size"] or 0, str(changed)]  # some servers do not say it


def _matches(pattern: str, tokens: str) -> tuple[list[str], list[str]]:
    """The files that a pattern names, and those below its directories that are not read."""
    store, path = fsspec.core.url_to_fs(os.path.expanduser(pattern))
    # A name with brackets in it is a file before it is a pattern.
    names = [path] if _exists(store, path) else [name for name in store.glob(path) if _is_spelled(name, path)]
    taken, others = list[str](), list[str]()
    made = f"{os.path.abspath(os.path.expanduser(tokens))}/"
    for name in names:
        if not store.isdir(name):
            taken.append(name)
            continue
        for file in store.find(name):
            if not _hidden_names(file.removeprefix(name).split("/")) and not (tokens and file.startswith(made)):
                (taken if is_document_name(file) else others).append(file)
    return _absolute(store, taken), _absolute(store, others)


def _absolute(store: Any, files: Iterable[str]) -> list[str]:
    if "file" not in store.protocol:
        return [store.unstrip_protocol(file) for file in files]
    # Links keep their own names: those of a Hugging Face cache lead to files without a suffix.
    return [str(Path(file).parent.resolve() / Path(file).name) for file in files]


def _hidden_names(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(".") or name == "__MACOSX"]


def _is_spelled(file: str, pattern: str) -> bool:
    """Whether the pattern itself has the dot of every hidden name in a match."""
    parts = pattern.split("/")
    fixed = next((place for place, name in enumerate(parts) if re.search(r"[*?\[]", name)), len(parts))
    spelled = _hidden_names(parts[fixed:])
    return all(any(fnmatch.fnmatch(name, one) for one in spelled) for name in _hidden_names(file.split("/")[fixed:]))


def _nothing_found(pattern: str, others: list[str]) -> str:
    if not others:
        return f"no text file matches {pattern!r}: give an existing file, directory or glob pattern."
    counts = Counter(map(label_of, others))
    most = counts.most_common(1)[0][0]
    example = next(file for file in others if label_of(file) == most)
    if advice := advice_against(example):
        mend = f"to use {example!r}, {advice}" if "leave it out" not in advice else "give files of text"
    else:
        below = pattern.rstrip("/")
        name = "*" if most == "without suffix" else f"*{most}"
        mend = f"to read {most if name != '*' else 'them'} as plain text, give {f'{below}/**/{name}'!r}"
    return f"no text file matches {pattern!r}, which holds {_in_words(counts)}: {mend}."


def _in_words(counts: Mapping[str, int]) -> str:
    """Counts by suffix, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{count:,} {suffix}" for suffix, count in ordered[:5]]
    rest = sum(count for _, count in ordered[5:])
    return ", ".join([*words, f"{rest:,} others"] if rest else words)


def _exists(store: Any, path: str) -> bool:
    try:
        return bool(store.info(path))
    except FileNotFoundError:  # `exists` would answer every error with no.
        return False


def _mend_store(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "install what it names"
    return "check the name, the network, and that this machine has credentials for it"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
