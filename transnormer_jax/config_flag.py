"""--config=FILE and --config.KEY=VALUE: a configuration file, or that of the run in --workdir, with overrides."""

from __future__ import annotations

import runpy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from transnormer_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from transnormer_jax.storage import AnyPath
    from transnormer_jax.training.config import Config

# Flags defined here belong to the command that asks for them, and its --help shows them.
flags.disclaim_key_flags()

# A config file whose get_config() takes a workdir; `--config=FILE:WORKDIR` is how ml_collections passes it.
_CONFIG_OF_RUN = Path(__file__).parent / "training" / "run_config.py"


def define_config_flag(*, required: bool = True, words: str = "") -> flags.FlagHolder:
    """Defines --config=FILE with its overrides --config.KEY=VALUE.

    Args:
      required: whether the command cannot do without.
      words: for --help, after what the flag is.
    """
    from ml_collections import config_flags

    names = f"Python file with get_config(), or the name of one that comes with the package: {', '.join(_shipped())}."
    holder = config_flags.DEFINE_config_file("config", None, f"{names} {words}".strip(), lock_config=True)
    if required:
        flags.mark_flag_as_required("config")
    return holder


def define_run_config_flag(*, file: bool = False) -> flags.FlagHolder:
    """Defines --config.KEY=VALUE, which overrides the configuration of the run in --workdir.

    Args:
      file: whether --config=FILE may replace the run's data and evaluation.
    """
    from ml_collections import config_flags

    if file:
        words = "Its data are evaluated in place of the run's. --config.KEY=VALUE overrides a key of it, or of the run."
        holder = define_config_flag(required=False, words=words)
    else:
        words = "Replaces a key of the run's configuration, such as --config.model.dtype=float32"
        holder = config_flags.DEFINE_config_file("config", None, words, lock_config=True)
    flag: Any = flags.FLAGS["config"]
    flag.of_run, flag.takes_file = True, file
    return holder


def read_config_flag(holder: flags.FlagHolder) -> Config:
    """The configuration with its overrides, checked and frozen."""
    from transnormer_jax.training.config import Config

    return Config.from_dict(holder.value.to_dict())


def override_values(holder: flags.FlagHolder) -> dict[str, Any]:
    """Key -> value of every --config.KEY=VALUE; keys have dots."""
    from ml_collections import config_flags

    return {} if holder.value is None else config_flags.get_override_values(flags.FLAGS["config"])


def read_run_config_flag(holder: flags.FlagHolder, workdir: AnyPath) -> Config | None:
    """The configuration of the run with what the command line puts in its place; None if that is nothing.

    Of --config=FILE, architecture, model and task are left out: they are the run's.

    Raises:
      UserError: the workdir holds no run, or the values do not fit together or make another model.
    """
    from ml_collections import ConfigDict

    from transnormer_jax.training.config import Config
    from transnormer_jax.training.identity import check_identity, model_identity
    from transnormer_jax.training.run_config import get_config

    if holder.value is None:
        return None
    own = get_config(str(workdir))
    values = ConfigDict(holder.value.to_dict() | {key: own[key] for key in ("architecture", "model", "task")})
    values.update_from_flattened_dict(override_values(holder))
    config = Config.from_dict(values.to_dict())
    check_identity(model_identity(Config.from_dict(own.to_dict())), config)
    return config


def prepared(arguments: Sequence[str]) -> list[str]:
    """The arguments as ml_collections needs them: with the file of a named configuration or of the run, and first.

    Raises:
      UserError: the file or a key is unknown, which ml_collections answers with a traceback.
    """
    if "config" not in flags.FLAGS:
        return list(arguments)
    flag = flags.FLAGS["config"]
    value, rest = None, []
    given = iter(arguments)
    for argument in given:
        name, _, text = argument.partition("=")
        if name == "--config":
            value = text if "=" in argument else next(given, "")
        else:
            rest.append(argument)
    overridden = [name for argument in rest if (name := argument.partition("=")[0]).startswith("--config.")]
    if value is None and not overridden:
        return rest
    if value is not None:
        if not getattr(flag, "takes_file", True):
            raise UserError(
                f"--config={value} is of no use here, where the configuration is that of the run in --workdir: "
                "--config.KEY=VALUE overrides a key of it."
            )
        value = _file(value)
        known = _config_of_file(value)
    elif not getattr(flag, "of_run", False):
        from transnormer_jax.training.config import default_config

        known = default_config()
    elif workdir := _value("workdir", rest):
        from transnormer_jax.training.run_config import get_config

        value, known = f"{_CONFIG_OF_RUN}:{workdir}", get_config(workdir)
    else:
        return rest  # the parser says that the workdir is missing
    _check_keys(overridden, [f"--config.{key}" for key in _keys(known)])
    return [*([] if value is None else [f"--config={value}"]), *rest]


def _shipped() -> dict[str, Path]:
    """The configurations of the papers' experiments: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    directory = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(directory.glob("*.py"))}


def _file(value: str) -> str:
    """The path that --config=VALUE means."""
    if Path(value).is_file():
        return value
    shipped = _shipped()
    if value not in shipped:
        raise UserError(f"there is no config file {value!r}: {did_you_mean(Path(value).stem, shipped)}")
    return str(shipped[value])


def _config_of_file(path: str) -> Mapping[str, Any]:
    names = runpy.run_path(path)
    if "get_config" not in names:
        raise UserError(f"{path!r} has no function get_config(): see the files in configs/ for what it returns.")
    return names["get_config"]()


def _value(flag: str, arguments: Sequence[str]) -> str:
    """The value of --flag=VALUE or --flag VALUE; "" if it is not given."""
    found = ""
    for i, argument in enumerate(arguments):
        name, _, text = argument.partition("=")
        if name.lstrip("-") == flag and name.startswith("-"):
            found = text if "=" in argument else " ".join(arguments[i + 1 : i + 2])
    return found


def _check_keys(overridden: Sequence[str], known: Sequence[str]) -> None:
    for name in overridden:
        if name not in known:
            section = name.rpartition(".")[0] + "."
            beside = [key for key in known if key.startswith(section)]
            raise UserError(f"unknown config key {name}: {did_you_mean(name, beside or known)}")


def _keys(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if hasattr(value, "items"):  # a section
            yield from (f"{name}.{key}" for key in _keys(value))
        else:
            yield name
