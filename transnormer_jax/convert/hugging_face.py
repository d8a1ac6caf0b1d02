"""Reads and writes checkpoints in the layout of the released TransNormerLLMs."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transnormer_jax.convert.configuration import read_configuration, write_configuration
from transnormer_jax.convert.names import HEAD, Part, tensor_parts
from transnormer_jax.convert.tensors import open_tensors, read_json, write_tensors
from transnormer_jax.data import load_tokenizer
from transnormer_jax.data.tokenizer_export import write_tokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig

_EMBEDDING = "model.embed_tokens.weight"
_ALIGNMENT = 64  # bytes, of JAX's own arrays
_DTYPES = ("float32", "bfloat16", "float16")


def load_hugging_face(directory: Path | str) -> tuple[TransNormerLLMConfig, Any]:
    """Reads a released checkpoint: safetensors or PyTorch's `.bin`, in one file or in shards. PyTorch is not needed.

    Tensors are read one at a time, so that no more memory is taken than the parameters need.

    Args:
      directory: with `config.json` and the weights.

    Returns:
      The configuration, whose `dtype` and `param_dtype` are those of the weights, and the parameters: NumPy arrays of
      that dtype, as `TransNormerLLM.init` lays them out.

    Raises:
      UserError: a file is missing or damaged, a tensor is missing, unknown or of the wrong shape, or the model is of
        another kind.
    """
    directory = Path(directory)
    fields = read_json(directory / "config.json")
    tensors = open_tensors(directory)
    if _EMBEDDING not in tensors:
        raise UserError(
            f"{str(directory)!r} has no tensor {_EMBEDDING!r}: these are not the weights of a TransNormerLLM."
        )
    dtype = tensors[_EMBEDDING]().dtype.name
    if dtype not in _DTYPES:
        raise UserError(f"the weights are {dtype}: convert them to one of {', '.join(_DTYPES)}.")
    config = read_configuration(fields, dtype)
    parts = tensor_parts(config)
    _check_names(parts, tensors, directory)
    params = jax.tree.map(lambda x: _aligned_empty(x.shape, x.dtype), empty_params(config))
    for name, pieces in parts.items():
        _fill(params, name, tensors[name](), pieces)
    if HEAD in tensors and HEAD not in parts and not np.array_equal(tensors[HEAD](), params["embedding"]):
        raise UserError(
            f"{HEAD!r} is not the embedding, though config.json ties the two: set its tie_word_embeddings to false."
        )
    return config, params


def save_hugging_face(
    directory: Path | str, config: TransNormerLLMConfig, params: Any, tokenizer: str | None = None
) -> None:
    """Writes `config.json` and safetensors for the released code; the dtype of the weights is that of the parameters.

    Args:
      directory: to be made; it must not exist yet.
      tokenizer: "bytes", or the directory of a tokenizer or its file; it is written too, in a form that `transformers`
        reads, and `config.json` has its begin and end.

    Raises:
      UserError: the directory exists, the tokenizer cannot be read, or the model has something that the released code
        cannot do.
    """
    directory = Path(directory)
    fields = write_configuration(config, **({} if tokenizer is None else _border_ids(tokenizer)))
    if directory.exists():
        raise UserError(f"{str(directory)!r} already exists: give the name of a new directory.")
    scratch = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write_tensors(scratch, _tensors(config, params))
    fields["torch_dtype"] = params["embedding"].dtype.name
    (scratch / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    if tokenizer is not None:
        write_tokenizer(scratch, tokenizer)
    scratch.rename(directory)


def empty_params(config: TransNormerLLMConfig) -> Any:
    """The tree of parameters, of NumPy arrays of the right shapes and dtypes that take no memory."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    abstract = jax.eval_shape(TransNormerLLM(config).init, jax.random.key(0), tokens)["params"]
    return jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), abstract)


def _border_ids(tokenizer: str) -> dict[str, int]:
    read = load_tokenizer(tokenizer)
    return {"bos_id": read.bos_id, "eos_id": read.eos_id}


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that `jax.device_put` uses on a CPU without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _check_names(parts: Mapping[str, Any], tensors: Mapping[str, Any], directory: Path) -> None:
    missing = sorted(parts.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - parts.keys() - {HEAD})
    if missing or unknown:
        lists = [f"{kind}: {', '.join(names)}" for kind, names in (("missing", missing), ("unknown", unknown)) if names]
        raise UserError(f"the tensors in {str(directory)!r} are not those of its config.json; {'; '.join(lists)}.")


def _fill(params: Any, name: str, tensor: np.ndarray, pieces: tuple[Part, ...]) -> None:
    targets = [_leaf(params, piece) for piece in pieces]
    rows = sum(piece.to_torch(target).shape[0] for piece, target in zip(pieces, targets, strict=True))
    expected = (rows, *pieces[0].to_torch(targets[0]).shape[1:])
    if tensor.shape != expected:
        raise UserError(f"tensor {name!r} has shape {tensor.shape}, by config.json it should have {expected}.")
    if tensor.dtype != targets[0].dtype:
        raise UserError(
            f"tensor {name!r} is {tensor.dtype.name}, the embedding {targets[0].dtype.name}: use one dtype."
        )
    for part, target, array in zip(pieces, targets, np.split(tensor, len(pieces)), strict=True):
        target[...] = part.from_torch(array)


def _tensors(config: TransNormerLLMConfig, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    for name, pieces in tensor_parts(config).items():
        yield name, np.concatenate([piece.to_torch(np.asarray(_leaf(params, piece))) for piece in pieces])
    if config.tie_embeddings:  # the released files hold it twice
        yield HEAD, np.asarray(params["embedding"])


def _leaf(params: Any, part: Part) -> Any:
    for key in part.path:
        params = params[key]
    return params if part.layer is None else params[part.layer]
