"""The tensors of a Hugging Face directory, whichever files hold them: read one at a time, written shard by shard."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from transnormer_jax.convert.torch_file import open_torch_file
from transnormer_jax.errors import UserError

# By preference: one file, or an index of several.
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_SHARD_BYTES = 2**30


def open_tensors(directory: Path) -> Mapping[str, Callable[[], np.ndarray]]:
    """Name -> what reads the tensor.

    Raises:
      UserError: there are no weights, or a file of them is missing or damaged.
    """
    file = next((directory / name for name in _FILES if (directory / name).is_file()), None)
    if file is None:
        raise UserError(f"{str(directory)!r} holds no weights: it should have one of {', '.join(_FILES)}.")
    if file.suffix != ".json":
        return _open_file(file)
    shards = read_json(file).get("weight_map")
    if not isinstance(shards, dict):
        raise UserError(f"{str(file)!r} has no 'weight_map': download it again.")
    opened = dict[str, Mapping[str, Callable[[], np.ndarray]]]()
    for name in sorted(set(shards.values())):
        if not (directory / name).is_file():
            raise UserError(f"{str(file)!r} names {name!r}, which is not there: download it too.")
        opened[name] = _open_file(directory / name)
    absent = [tensor for tensor, name in shards.items() if tensor not in opened[name]]
    if absent:
        raise UserError(f"{str(file)!r} names tensors that are not in their files: {', '.join(absent[:5])} ...")
    return {tensor: opened[name][tensor] for tensor, name in shards.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of Hugging Face.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"cannot read {str(path)!r} ({error.strerror}): give a directory in Hugging Face's layout."
        ) from error
    except ValueError as error:
        raise UserError(f"{str(path)!r} is no JSON ({error}): download it again.") from error


def write_tensors(directory: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes safetensors: one file, or from 1 GiB on several and their index.

    Args:
      tensors: name and numbers, of which one shard is in memory at a time.
    """
    shards = list[list[str]]()
    pending, size, total = dict[str, np.ndarray](), 0, 0

    def flush() -> None:
        nonlocal pending, size
        save_file(pending, directory / f"shard_{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending, size = {}, 0

    for name, array in tensors:
        if pending and size + array.nbytes > _SHARD_BYTES:
            flush()
        pending[name] = np.ascontiguousarray(array)
        size += array.nbytes
        total += array.nbytes
    flush()
    if len(shards) == 1:
        (directory / "shard_0").rename(directory / "model.safetensors")
        return
    weight_map = dict[str, str]()
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"shard_{i}").rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _open_file(path: Path) -> Mapping[str, Callable[[], np.ndarray]]:
    if path.suffix == ".bin":
        return {name: tensor.read for name, tensor in open_torch_file(path).items()}
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: functools.partial(_read, path, name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): download it again.") from error


def _read(path: Path, name: str) -> np.ndarray:
    # Opened for each tensor: the file is mapped, and its pages count as ours while it is.
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor(name)
