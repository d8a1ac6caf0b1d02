"""Errors that a user can cause and fix: one sentence that says what is wrong and what to do."""

import difflib
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn


class UserError(ValueError):
    """A mistake outside the program: a command prints it without a traceback and exits with status 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error message: the closest known name, or all of them."""
    known = sorted(known)
    # By the last parts of dotted names: the same section does not make two keys alike.
    ends = {key.rpartition(".")[2]: key for key in known}
    close = [ends[end] for end in difflib.get_close_matches(name.rpartition(".")[2], ends, n=1)]
    return f"did you mean {close[0]!r}?" if close else f"choose one of: {', '.join(known)}."


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Runs `main`; a `UserError` becomes one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """Prints `error: message` to stderr and exits with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says, for a sentence about it."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
