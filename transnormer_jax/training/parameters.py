"""Restores only the parameters of a checkpoint, for evaluation, generation and conversion."""

import json
import sys
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from transnormer_jax import storage
from transnormer_jax.errors import UserError
from transnormer_jax.training.checksums import checksums, verify
from transnormer_jax.training.reading import each_for_itself, newest_readable

_CHECKSUMS = "params_checksums.json"  # of `save_params`; those of a run are in its metadata
_FILE_BYTES = 64 * 2**20  # of the files in which `save_params` lays parameters


def save_params(workdir: storage.AnyPath, params: PyTree) -> None:
    """Writes parameters as the checkpoint of step 0, which `restore_params` finds."""
    # What is compressed waits in memory until a file is full: by default nearly as much again as the parameters.
    args = ocp.args.PyTreeSave(params, ocdbt_target_data_file_size=_FILE_BYTES)
    directory = _directory(workdir) / "0"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(directory / "params", args)
    storage.write_text(directory / _CHECKSUMS, json.dumps({"checksums": {"params": checksums(params)}}))


def saved_steps(workdir: storage.AnyPath) -> list[int]:
    """Returns the steps of the checkpoints in a workdir, rising."""
    return sorted(int(path.name) for path in storage.children(_directory(workdir)) if path.name.isdigit())


def restore_params(workdir: storage.AnyPath, abstract: PyTree, step: int | None = None) -> tuple[int, PyTree]:
    """Returns the newest step that can be read, and its parameters alone.

    Called by all processes alike.

    Args:
      abstract: shapes and dtypes, with shardings; where there is none, the array comes whole onto one device. In place
        of an array of NumPy comes one of NumPy, in half the memory: none is there twice.
      step: of the checkpoint, instead of the newest.

    Raises:
      UserError: there is no checkpoint, or none that can be read.
    """
    directory = _directory(workdir)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def described(x: Any) -> Any:
        on_host = isinstance(x, np.ndarray)
        return x if on_host else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or device)

    target = jax.tree.map(described, abstract)
    with ocp.StandardCheckpointer(multiprocessing_options=each_for_itself()) as checkpointer:
        found = newest_readable(
            directory,
            saved_steps(workdir) if step is None else [step],
            lambda step: (
                checkpointer.restore(directory / str(step) / "params", target),
                _saved_checksums(directory / str(step)),
            ),
            lambda found: verify(*found),
        )
    if found is None:
        raise UserError(f"{str(workdir)!r} holds no checkpoint yet: train first.")
    for broken, reason in found.broken.items():
        print(f"warning: checkpoint {broken} is broken ({reason}); took the one before.", file=sys.stderr)
    params, _ = found.content
    return found.step, params


def _saved_checksums(directory: epath.Path) -> list[str] | None:
    """Those of the parameters, of a run or of `save_params`; None in checkpoints that are older."""
    for name in ("metadata/metadata", _CHECKSUMS):
        if (directory / name).exists():
            return json.loads((directory / name).read_text()).get("checksums", {}).get("params")
    return None


def _directory(workdir: storage.AnyPath) -> epath.Path:
    return storage.absolute(workdir) / "checkpoints"
