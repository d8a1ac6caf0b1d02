"""A run's directory: config.json, checkpoints/, metrics.jsonl, tokenizer/; and the functions that read it."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from transnormer_jax import storage
from transnormer_jax.data import (
    RELEASED_TEMPLATE,
    Tokenizer,
    copy_tokenizer,
    find_chat_template,
    load_tokenizer,
    tokenizer_directory,
    tokenizer_exists,
)
from transnormer_jax.errors import UserError, first_line
from transnormer_jax.models import ARCHITECTURES
from transnormer_jax.training.config import FREE_MODEL_FIELDS, Config, ModelConfig, default_config
from transnormer_jax.training.identity import check_identity, model_identity
from transnormer_jax.training.parameters import restore_params, save_params, saved_steps
from transnormer_jax.training.placement import abstract_params, place_params
from transnormer_jax.training.setup import make_task

# Keys of the data that say nothing about the rows of training; another tokenizer is refused.
_NO_ROWS = ("tokenizer", "data_dir", "eval_split", "read_threads", "read_ahead")


class Run(NamedTuple):
    """A trained model and all that is needed to use it.

    Attributes:
      config: with which the run was last started.
      params: a tree of arrays.
      step: of the checkpoint that holds `params`.
    """

    config: Config
    params: Any
    tokenizer: Tokenizer
    step: int

    @property
    def model_config(self) -> ModelConfig:
        """The architecture."""
        return self.config.model


def load_workdir(
    workdir: storage.AnyPath | str, mesh: Mesh | None = None, step: int | None = None, config: Config | None = None
) -> Run:
    """Reads a run's newest checkpoint, parameters only.

    Args:
      mesh: over whose devices the parameters are laid as in training; None is one device.
      step: of the checkpoint, instead of the newest.
      config: the run's, with other values where they make no other model.

    Returns:
      The run, its parameters in the `param_dtype` of its model.

    Raises:
      UserError: the directory holds no run, or no checkpoint yet, or `config` is that of another model.
    """
    workdir = storage.as_path(workdir)
    own = read_config(workdir)
    config = own if config is None else find_tokenizer(config, workdir)
    check_identity(model_identity(own), config)
    tokenizer = _tokenizer_of(own, config)
    step, params = load_params(workdir, config, mesh, step)
    return Run(config, params, tokenizer, step)


def load_params(
    workdir: storage.AnyPath, config: Config, mesh: Mesh | None = None, step: int | None = None
) -> tuple[int, Any]:
    """The newest step, or another, and its parameters; for the mesh and for errors see `load_workdir`."""
    abstract = abstract_params(make_task(config))
    return restore_params(workdir, abstract if mesh is None else place_params(abstract, mesh), step)


def _tokenizer_of(own: Config, config: Config) -> Tokenizer:
    """The tokenizer of a run; where another configuration names another file, that must be the same one."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    if config.data.tokenizer == own.data.tokenizer or not tokenizer_exists(own.data.tokenizer):
        return tokenizer
    if tokenizer.fingerprint != load_tokenizer(own.data.tokenizer).fingerprint:
        raise UserError(
            f"the run has tokenizer {own.data.tokenizer!r}, the config {config.data.tokenizer!r}, which is another: "
            "give the run's own."
        )
    return tokenizer


def model_to_begin_with(config: Config, workdir: storage.AnyPath, tokenizer: str) -> Config:
    """The configuration with the model of `config.init_from`, if there is one.

    Args:
      workdir: of the run. Once it has checkpoints, it can do without `config.init_from`: the model is in it too.
      tokenizer: fingerprint of the run's tokenizer.

    Raises:
      UserError: there is no such run, or it has another tokenizer.
    """
    if not config.init_from:
        return config
    origin = storage.as_path(config.init_from)
    if saved_steps(workdir) and not _holds_run(origin):
        other = read_config(workdir)
    else:
        other = read_config(origin)
        if load_tokenizer(other.data.tokenizer).fingerprint != tokenizer:
            raise UserError(
                f"config.init_from={config.init_from!r} was trained with another tokenizer than "
                f"{config.data.tokenizer!r}: set config.data.tokenizer to its own."
            )
    fields = {field.name for field in dataclasses.fields(other.model)} & {*FREE_MODEL_FIELDS, "param_dtype"}
    kept = {name: getattr(config.model, name) for name in fields if hasattr(config.model, name)}
    return dataclasses.replace(config, architecture=other.architecture, model=dataclasses.replace(other.model, **kept))


def changed_rows(workdir: storage.AnyPath, config: Config) -> list[str]:
    """The keys by which a row number may stand for other data than when the run in `workdir` was last started."""
    try:
        former = _row_keys(json.loads(storage.as_path(workdir / "config.json").read_text()))
    except (OSError, ValueError):
        return []  # nothing that could be compared
    ours = _row_keys(json.loads(json.dumps(dataclasses.asdict(config))))
    return [f"config.{key}" for key, value in ours.items() if key in former and former[key] != value]


def _row_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    data = {f"data.{key}": value for key, value in config["data"].items() if key not in _NO_ROWS}
    return {"seed": config["seed"], "sequence_length": config["sequence_length"], **data}


def write_model(workdir: storage.AnyPath, model: ModelConfig, params: Any) -> None:
    """Makes the workdir of a model that was not trained here: its tokenizer is, or will be, in `workdir/tokenizer`."""
    config = default_config().to_dict()
    config["architecture"] = next(name for name, kind in ARCHITECTURES.items() if kind is type(model))
    config["model"] = dataclasses.asdict(model)
    config["data"]["tokenizer"] = str(workdir / "tokenizer")
    save_params(workdir, params)
    write_config(workdir, Config.from_dict(config))


def read_config(workdir: storage.AnyPath) -> Config:
    """The resolved configuration with which a run was last started, with the workdir's own copy of the tokenizer.

    Raises:
      UserError: there is none, or the store cannot be read.
    """
    workdir = storage.as_path(workdir)
    if not _holds_run(workdir):
        raise UserError(f"{str(workdir)!r} holds no run: give the --workdir of a run of train.py.")
    config = Config.from_dict(json.loads((workdir / "config.json").read_text()))
    own = workdir / "tokenizer"
    return _with_tokenizer(config, own) if own.is_dir() else config


def find_tokenizer(config: Config, workdir: storage.AnyPath | str) -> Config:
    """The configuration, with the workdir's own copy of the tokenizer where that of the configuration is not here.

    A workdir that was moved to another machine so needs nothing beside it.
    """
    own = storage.as_path(workdir) / "tokenizer"
    if tokenizer_exists(config.data.tokenizer) or not own.is_dir():
        return config
    return _with_tokenizer(config, own)


def keep_tokenizer(workdir: storage.AnyPath | str, config: Config) -> None:
    """Copies the tokenizer and its chat template into the workdir, from the first process.

    To be called when the checkpoints in the workdir, if there are any, are known to have this tokenizer.
    """
    own = storage.as_path(workdir) / "tokenizer"
    if jax.process_index() != 0 or config.data.tokenizer == str(own):
        return
    if own.is_dir():
        if load_tokenizer(str(own)).fingerprint == load_tokenizer(config.data.tokenizer).fingerprint:
            return
        own.rmtree()  # of a start that saved nothing
    if config.data.tokenizer == "bytes":
        return
    source = storage.local_copy(config.data.tokenizer)
    copy_tokenizer(source, own)
    directory = source if source.is_dir() else source.parent
    if config.task.name == "supervised_lm" and find_chat_template(directory) is None:
        storage.write_text(own / "chat_template.jinja", RELEASED_TEMPLATE)


def chat_template(config: Config) -> str | None:
    """The chat template of a run: that of its tokenizer, else the released one if it was fine-tuned."""
    directory = tokenizer_directory(config.data.tokenizer)
    own = None if directory is None else find_chat_template(directory)
    return own or (RELEASED_TEMPLATE if config.task.name == "supervised_lm" else None)


def _with_tokenizer(config: Config, directory: storage.AnyPath) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=str(directory)))


def _holds_run(workdir: storage.AnyPath) -> bool:
    try:
        return (workdir / "config.json").is_file()
    except Exception as error:  # of any store
        raise UserError(
            f"{str(workdir)!r} cannot be read ({first_line(error)}): check the name, the network and the credentials."
        ) from error


def write_config(workdir: storage.AnyPath, config: Config) -> None:
    """Writes config.json, from the first process."""
    if jax.process_index() == 0:
        write_json(workdir / "config.json", dataclasses.asdict(config))


def write_json(path: storage.AnyPath, content: Any) -> None:
    """Writes a file that appears at once and whole."""
    storage.write_text(path, json.dumps(content, indent=2) + "\n")
