"""What benchmarks share: flags from settings, and a JSON file that says how it was made."""

import dataclasses
import inspect
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.environment import Environment, describe_environment, results_directory
from transnormer_jax import command
from transnormer_jax.errors import UserError, did_you_mean


def main(name: str, settings: Any, run: Callable[..., dict[str, Any]], *, output: str | None = "") -> None:
    """The command `python -m benchmarks.NAME`: a flag for each field of the settings, and --output.

    Args:
      name: of the module.
      settings: a dataclass whose docstring explains its fields; texts, numbers and tuples of them with their defaults.
      run: (settings, output, command line) -> summary, which becomes the last line on stdout.
      output: the JSON file where no flag names one; "" is benchmarks/results/<device>/NAME.json, and None too, but for
        `run` to find, where this process must not start JAX.
    """
    _define_flags(name, settings, output)
    command.run(lambda: _run(name, settings, run, output))


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


def write(
    output: Path, command_line: str, settings: Any, content: dict[str, Any], environment: Environment | None = None
) -> Environment:
    """Writes the record, and returns the environment that it names: this process's, where none is given.

    A benchmark calls it after everything that it has measured: what ends it in between does not take that away.
    """
    environment = environment or describe_environment()
    record = {"command": command_line, "environment": environment, "settings": dataclasses.asdict(settings), **content}
    unfinished = output.with_name(f"{output.name}.unfinished")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(output)
    return environment


def check_positive(settings: Any) -> None:
    """Raises a `UserError` if a number among the settings is not positive, or a tuple is empty that need not be."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers and field.default != ():
            raise UserError(f"{field.name} is empty: give one at least.")
        if any(isinstance(x, int | float) and not x > 0 for x in numbers):
            raise UserError(f"{field.name} is {value}: give positive numbers only.")


def check_known(field: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises a `UserError` if a name is not known."""
    for name in names:
        if name not in known:
            raise UserError(f"unknown name {name!r} in {field}: {did_you_mean(name, known)}")


def _define_flags(name: str, settings: Any, output: str | None) -> None:
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
    place = output or f"benchmarks/results/<device>/{name}.json"
    flags.DEFINE_string("output", None, f"JSON file to write. Default: {place}.")


def _run(name: str, settings: Any, run: Callable[..., dict[str, Any]], output: str | None) -> None:
    values = {field.name: getattr(flags.FLAGS, field.name) for field in dataclasses.fields(settings)}
    for field, value in values.items():
        default = getattr(settings, field)
        if isinstance(default, tuple):
            kind = type(default[0]) if default else str
            try:
                values[field] = tuple(kind(x) for x in value)
            except ValueError as error:
                raise UserError(f"{field} is {value}: give numbers, separated by commas.") from error
    chosen = type(settings)(**values)
    command_line = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    named = flags.FLAGS.output or output
    if named == "":
        named = results_directory(describe_environment()) / f"{name}.json"
    print(json.dumps(run(chosen, named and Path(named), command_line)))
