"""What the measurements of the papers' claims share: flags from settings, and a JSON file that says how it was made."""

import dataclasses
import inspect
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks.environment import describe_environment
from transnormer_jax import command
from transnormer_jax.errors import UserError


def main(name: str, settings: Any, run: Callable[[Any, Path, str], dict[str, Any]]) -> None:
    """The command `python -m benchmarks.NAME`: a flag for each field of the settings, and --output.

    Args:
      name: of the module.
      settings: a dataclass whose docstring explains its fields; texts, numbers and tuples of them with their defaults.
      run: (settings, output, command line) -> summary, which becomes the last line on stdout.
    """
    _define_flags(name, settings)
    command.run(lambda: _run(name, settings, run))


def prepare(output: Path) -> None:
    """Makes the directory of `output`, now rather than after minutes of measuring.

    Raises:
      UserError: it cannot be made, or `output` does not end in `.json`.
    """
    if output.suffix != ".json":
        raise UserError(f"output is {str(output)!r}: give a name that ends in .json.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory of {str(output)!r} ({error}): choose another output.") from error


def write(output: Path, command_line: str, settings: Any, content: dict[str, Any]) -> dict[str, str | int]:
    """Writes the record, and returns the environment that it names."""
    environment = describe_environment()
    record = {"command": command_line, "environment": environment, "settings": dataclasses.asdict(settings), **content}
    output.write_text(json.dumps(record, indent=1) + "\n")
    return environment


def check_positive(settings: Any) -> None:
    """Raises a `UserError` if a number among the settings is not positive, or a tuple of numbers is empty."""
    for name, value in dataclasses.asdict(settings).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or any(isinstance(x, int | float) and not x > 0 for x in numbers):
            raise UserError(f"{name} is {value}: give positive numbers only, one at least.")


def _define_flags(name: str, settings: Any) -> None:
    text = inspect.cleandoc(type(settings).__doc__ or "")
    # An attribute begins two columns in, and what is left of its sentence stands further in.
    matches = re.finditer(r"(?m)^  (\w+): (.*(?:\n    .*)*)", text)
    explained = {found[1]: " ".join(found[2].split()) for found in matches}
    for field in dataclasses.fields(settings):
        default, words = getattr(settings, field.name), explained[field.name]
        if isinstance(default, tuple):
            flags.DEFINE_list(field.name, [str(x) for x in default], words)
        elif isinstance(default, str):
            flags.DEFINE_string(field.name, default, words)
        elif isinstance(default, int):
            flags.DEFINE_integer(field.name, default, words)
        else:
            flags.DEFINE_float(field.name, default, words)
    flags.DEFINE_string("output", None, f"JSON file to write. Default: benchmarks/results/<platform>/{name}.json.")


def _run(name: str, settings: Any, run: Callable[[Any, Path, str], dict[str, Any]]) -> None:
    values = {field.name: getattr(flags.FLAGS, field.name) for field in dataclasses.fields(settings)}
    for field, value in values.items():
        default = getattr(settings, field)
        if isinstance(default, tuple):
            kind = type(default[0]) if default else str
            try:
                values[field] = tuple(kind(x) for x in value)
            except ValueError as error:
                raise UserError(f"{field} is {value}: give numbers, parted by commas.") from error
    output = Path(flags.FLAGS.output or f"benchmarks/results/{jax.default_backend()}/{name}.json")
    command_line = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    print(json.dumps(run(type(settings)(**values), output, command_line)))
