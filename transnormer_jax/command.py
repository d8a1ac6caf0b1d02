"""How every command starts and fails: a mistake is one sentence and exit status 2, never a traceback.

Models, data and configurations are imported by the functions that need them, so that a command that needs none of them
starts at once, and where their packages are missing.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import absl.logging
from absl import flags

from transnormer_jax import config_flag, start
from transnormer_jax.command_help import command_help
from transnormer_jax.errors import UserError, exit_on_user_error


def run(main: Callable[[], None]) -> None:
    """Parses the flags, then runs `main`, which reads them from where they are defined.

    `--help` prints the docstring of the command's module, and the flags that the module defines.
    """

    def parse_and_run() -> None:
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(command_help())
            return
        absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax and TFDS log every step they take.
        sys.argv[1:] = config_flag.prepared(sys.argv[1:])
        try:
            left_over = flags.FLAGS(sys.argv)[1:]
        except flags.Error as error:
            missing = re.search(r"Flag --(\w+) must have a value other than None", str(error))
            message = f"--{missing[1]}=... is missing" if missing else str(error).rstrip(".")
            message = message.replace("is not integer >=", "is less than")
            message = re.sub(r"invalid literal for int\(\) with base 10: ('.*')", r"\1 is not an integer", message)
            raise UserError(f"{message}; --help lists the flags.") from error
        if left_over:
            raise UserError(f"unexpected argument {left_over[0]!r}: flags have the form --name=value; see --help.")
        if flags.FLAGS["verbosity"].present:
            _log_from(flags.FLAGS.verbosity)
        main()

    start.run_interruptible(lambda: exit_on_user_error(parse_and_run))


def _log_from(verbosity: int) -> None:
    """Shows the messages of all libraries from a level on: -2 errors, -1 warnings, 0 information, 1 and more all."""
    absl.logging.use_absl_handler()
    level = {-3: logging.CRITICAL, -2: logging.ERROR, -1: logging.WARNING, 0: logging.INFO}.get(
        max(verbosity, -3), logging.DEBUG
    )
    logging.getLogger().setLevel(level)
    # Loggers with a level of their own do not follow the root: Orbax and TFDS log by absl's.
    for name in ("absl", "jax"):
        logging.getLogger(name).setLevel(level)


@contextmanager
def extra(name: str, *modules: str) -> Iterator[None]:
    """Imports of what an extra of the package installs.

    Raises:
      UserError: one of these modules is missing; whatever else cannot be imported is no mistake of the user.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in modules:
            raise
        raise UserError(f"{missing} is missing: in a clone, pip install -e '.[{name}]'.") from error
