"""What --help prints: the docstring of the command's module, and its flags."""

import inspect
import shutil
import sys
import textwrap

from absl import flags

_PLACEHOLDERS = {"int": "N", "float": "X", "object": "FILE", "strings": "A,B"}


def command_help() -> str:
    """Returns what the module of the command says of itself, and its flags in the order of their definition."""
    width = min(shutil.get_terminal_size().columns, 100)
    lines = [inspect.cleandoc(sys.modules["__main__"].__doc__ or ""), "", "Flags:"]
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        lines.append(f"  {_usage(flag)}")
        words = f"{_words(flag)} {_default(flag)}".rstrip()
        lines += textwrap.wrap(words, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _usage(flag: flags.Flag) -> str:
    if not getattr(flag, "takes_file", True):
        return f"--{flag.name}.KEY=VALUE"
    return f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}={_values(flag)}"


def _values(flag: flags.Flag) -> str:
    choices = getattr(flag.parser, "enum_values", None)
    if choices:
        return "|".join(choices)
    name = flag.flag_type().split()[-1]
    return _PLACEHOLDERS.get(name, name.upper())


def _words(flag: flags.Flag) -> str:
    # absl adds a sentence to what may be given several times.
    return (flag.help or "").partition(";\n")[0].rstrip(".") + "."


def _default(flag: flags.Flag) -> str:
    if any("other than None" in validator.message for validator in flag.validators):
        return "Required."
    if flag.flag_type().startswith("multi"):
        return "May be given several times."
    if flag.default is None or flag.default is False or flag.default in ("", []):
        return ""
    value = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
    return f"Default: {value}."
