"""How every command starts and fails: a mistake is one sentence and exit status 2, never a traceback.

Models, data and configurations are imported by the functions that need them, so that a command that needs none of them
starts at once, and where their packages are missing.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from transnormer_jax import start
from transnormer_jax.command_help import command_help
from transnormer_jax.errors import UserError, did_you_mean, exit_on_user_error

if TYPE_CHECKING:
    from transnormer_jax.inference import Generator
    from transnormer_jax.training.config import Config

# Flags defined here belong to the command that asks for them, and its --help shows them.
flags.disclaim_key_flags()


def run(main: Callable[[], None]) -> None:
    """Parses the flags, then runs `main`, which reads them from where they are defined.

    `--help` prints the docstring of the command's module, and the flags that the module defines.
    """

    def parse_and_run() -> None:
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(command_help())
            return
        logging.set_verbosity(logging.ERROR)  # Orbax and TFDS tell of every step they take.
        sys.argv[1:] = _with_config_path(sys.argv[1:])
        _check_config_arguments(sys.argv[1:])
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
        main()

    start.run_interruptible(lambda: exit_on_user_error(parse_and_run))


def load_generator(workdir: str, *, int8: bool = False) -> Generator:
    """The model of a run of train.py, ready to generate; with `int8`, its matrices rounded.

    Raises:
      UserError: there is none, or it is no TransNormerLLM.
    """
    from transnormer_jax.inference import Generator, quantize
    from transnormer_jax.models import TransNormerLLMConfig, unstack_layers
    from transnormer_jax.training import load_workdir

    run = load_workdir(workdir)
    if not isinstance(run.model_config, TransNormerLLMConfig):
        raise UserError(f"{workdir!r} holds a {run.config.architecture!r}: give a run of a TransNormerLLM.")
    params = quantize(run.params) if int8 else run.params
    return Generator(*unstack_layers(run.model_config, params, donate=True), run.tokenizer)


@contextmanager
def extra(name: str, *modules: str) -> Iterator[None]:
    """Imports of what an extra of the package installs.

    Args:
      name: of the extra.
      modules: that it installs.

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


def define_config_flag(*, required: bool = True) -> flags.FlagHolder:
    """Defines --config=FILE with its overrides --config.KEY=VALUE."""
    from ml_collections import config_flags

    words = f"Python file with get_config(), or the name of one that comes with the package: {', '.join(_shipped())}."
    holder = config_flags.DEFINE_config_file("config", None, words, lock_config=True)
    if required:
        flags.mark_flag_as_required("config")
    return holder


def read_config_flag(holder: flags.FlagHolder) -> Config:
    """The configuration with its overrides, checked and frozen."""
    from transnormer_jax.training.config import Config

    return Config.from_dict(holder.value.to_dict())


def _shipped() -> dict[str, Path]:
    """The configurations of the papers' experiments: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    directory = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(directory.glob("*.py"))}


def _with_config_path(arguments: Sequence[str]) -> list[str]:
    """The arguments with the file of a named configuration; `--config NAME` is `--config=NAME`."""
    given = iter(arguments)
    found = []
    for argument in given:
        argument = f"--config={next(given, '')}" if argument == "--config" else argument
        name, _, value = argument.partition("=")
        is_name = name == "--config" and value in _shipped() and not Path(value).is_file()
        found.append(f"--config={_shipped()[value]}" if is_name else argument)
    return found


def _check_config_arguments(arguments: Sequence[str]) -> None:
    # ml_collections answers both mistakes with a traceback.
    values = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    path = values.get("--config")
    if path is not None and not Path(path).is_file():
        raise UserError(f"there is no config file {path!r}: {did_you_mean(Path(path).stem, _shipped())}")
    overridden = [name for argument in arguments if (name := argument.partition("=")[0]).startswith("--config.")]
    if path is None and not overridden:
        return
    known = [f"--config.{key}" for key in _keys(_config_of(path))]
    for name in overridden:
        if name not in known:
            section = name.rpartition(".")[0] + "."
            beside = [key for key in known if key.startswith(section)]
            raise UserError(f"unknown config key {name}: {did_you_mean(name, beside or known)}")


def _config_of(path: str | None) -> Mapping[str, Any]:
    if path is None:
        from transnormer_jax.training.config import default_config

        return default_config()
    names = runpy.run_path(path)
    if "get_config" not in names:
        raise UserError(f"{path!r} has no function get_config(): see the files in configs/ for what it returns.")
    return names["get_config"]()


def _keys(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if hasattr(value, "items"):  # a section
            yield from (f"{name}.{key}" for key in _keys(value))
        else:
            yield name
