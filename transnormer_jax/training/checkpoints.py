"""Checkpoints: Orbax, asynchronous and atomic, with parameters, optimizer state and metadata as separate items.

A checkpoint's metadata holds the architecture and the tokenizer's fingerprint, to refuse another model's, and the
position in the data.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from transnormer_jax.errors import UserError
from transnormer_jax.training.config import Config
from transnormer_jax.training.step import TrainState

# Fields of the architecture that may change between two starts of a run: they alter speed or memory alone.
_FREE_FIELDS = ("remat", "backend", "dtype", "dropout")


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/`."""

    def __init__(self, workdir: Path, *, keep: int, config: Config, tokenizer: str):
        """Opens the directory, and makes it if need be; `tokenizer` is a fingerprint."""
        self._directory = workdir.absolute() / "checkpoints"
        self._config, self._tokenizer = config, tokenizer
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, state: TrainState, *, rows: int) -> None:
        """Begins to save `state`, which may be donated at once, and the number of rows of data consumed."""
        metadata = {"model": _identity(self._config), "tokenizer": self._tokenizer, "rows": rows}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(_as_tree(state.opt_state)),
            metadata=ocp.args.JsonSave(metadata),
        )
        self._manager.save(int(state.step), args=items, force=True)

    def restore(self, abstract: TrainState) -> tuple[TrainState, int] | None:
        """Returns the newest state that can be read and its rows of data, or None in a new run.

        A checkpoint that cannot be read is set aside in `workdir/broken_checkpoints/`, and the one before is taken.

        Args:
          abstract: shapes, dtypes and shardings.

        Raises:
          UserError: the checkpoints are another model's, or none of them can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        broken: dict[int, Exception] = {}
        for step in steps:
            try:
                restored = self._restore_step(step, abstract)
            except (UserError, MemoryError, jax.errors.JaxRuntimeError):
                raise  # not the checkpoint's fault
            except Exception as error:
                # Whatever a torn file made Orbax raise: an older checkpoint is better than none.
                broken[step] = error
                continue
            for newer, reason in broken.items():
                aside = self._set_aside(newer)
                print(f"warning: checkpoint {newer} is broken ({_first_line(reason)}); it is now in {aside}.")
            print(f"resumed from checkpoint {step}", flush=True)
            return restored
        if steps:
            raise _none_readable(self._directory, len(steps))
        return None

    def close(self) -> None:
        """Finishes what is under way."""
        self._manager.close()

    def _restore_step(self, step: int, abstract: TrainState) -> tuple[TrainState, int]:
        metadata = self._manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())).metadata
        _check_identity(metadata["model"], self._config)
        if metadata["tokenizer"] != self._tokenizer:
            raise UserError(
                "the workdir's model was trained with another tokenizer: use another --workdir, or that tokenizer."
            )
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                opt_state=ocp.args.StandardRestore(_as_tree(abstract.opt_state)),
            ),
        )
        opt_state = jax.tree.unflatten(jax.tree.structure(abstract.opt_state), jax.tree.leaves(items.opt_state))
        count = jax.device_put(jax.numpy.asarray(step, abstract.step.dtype), abstract.step.sharding)
        return TrainState(count, items.params, opt_state), metadata["rows"]

    def _set_aside(self, step: int) -> Path:
        aside = self._directory.parent / "broken_checkpoints" / str(step)
        aside.parent.mkdir(exist_ok=True)
        while aside.exists():
            aside = aside.with_name(aside.name + "_")
        (self._directory / str(step)).rename(aside)
        self._manager.reload()
        return aside


def restore_params(workdir: Path, abstract: PyTree) -> tuple[int, PyTree]:
    """Returns the newest step that can be read, and its parameters alone, on one device: for evaluation and generation.

    Raises:
      UserError: there is no checkpoint, or none that can be read.
    """
    directory = workdir.absolute() / "checkpoints"
    steps = sorted((int(path.name) for path in directory.glob("*") if path.name.isdigit()), reverse=True)
    if not steps:
        raise UserError(f"{str(workdir)!r} holds no checkpoint yet: train first.")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)
    with ocp.StandardCheckpointer() as checkpointer:
        for step in steps:
            try:
                return step, checkpointer.restore(directory / str(step) / "params", target)
            except Exception as error:  # as in Checkpoints.restore
                print(
                    f"warning: checkpoint {step} is broken ({_first_line(error)}); trying the one before.",
                    file=sys.stderr,
                )
    raise _none_readable(directory, len(steps))


def _identity(config: Config) -> dict[str, Any]:
    """What decides which parameters there are and what they mean, as plain values."""
    fields = dataclasses.asdict(config.model) | dataclasses.asdict(config.task)
    return json.loads(json.dumps({"architecture": config.architecture, **fields, "task": config.task.name}))


def _check_identity(saved: dict[str, Any], config: Config) -> None:
    # A field that a checkpoint does not know yet meant what is now its default.
    default = _identity(Config(architecture=config.architecture, model=type(config.model)()))
    for field, value in _identity(config).items():
        found = saved.get(field, default[field])
        if field not in _FREE_FIELDS and found != value:
            raise UserError(
                f"the workdir holds a model with {field}={found!r}, the config says {value!r}: "
                "use another --workdir or the config of that run."
            )


def _as_tree(opt_state: Any) -> list[Any]:
    # As a list of arrays: optax's own state types may change between versions, the order of their leaves seldom does.
    return jax.tree.leaves(opt_state)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _none_readable(directory: Path, count: int) -> UserError:
    return UserError(f"none of the {count} checkpoints in {str(directory)!r} can be read: train in a new --workdir.")
