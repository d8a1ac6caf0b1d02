"""Reads the tensors of a `torch.save` file without PyTorch and without executing its pickle.

Since PyTorch 1.6 such a file is a zip archive, not compressed: a pickle of names and shapes, and the numbers of each
storage as an entry of its own, which is mapped into memory here.
"""

import collections
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from transnormer_jax.errors import UserError

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# What a state dict of another form makes the reading of it raise.
_MALFORMED = (AttributeError, EOFError, LookupError, TypeError, ValueError)
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip entry: 26 bytes, then the lengths of its name and its extra field


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str


class TorchTensor(NamedTuple):
    """A tensor that has not been read yet.

    Attributes:
      start: byte at which the storage begins.
      offset: of the first number in the storage.
      strides: in numbers.
    """

    path: Path
    start: int
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The numbers, mapped from the file."""
        start = self.start + self.offset * self.dtype.itemsize
        if not all(self.shape):
            return np.empty(self.shape, self.dtype)
        numbers = np.memmap(self.path, self.dtype, "r", start, _span(self.shape, self.strides))
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """From the first number of a view to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def open_torch_file(path: Path) -> dict[str, TorchTensor]:
    """The tensors of a state dict, by name.

    Raises:
      UserError: the file is no archive of that kind, or holds something else than tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries = {entry.filename: entry for entry in archive.infolist()}
            pickled = next(name for name in entries if name.endswith("/data.pkl"))
            state = _Unpickler(archive.open(pickled)).load()
            starts = dict[str, int]()
            for tensor in state.values():
                # A view with these would reach outside the storage.
                if min(tensor.offset, *tensor.shape, *tensor.strides, 0) < 0:
                    raise ValueError("a negative offset, size or stride")
            for key in {tensor.storage.key for tensor in state.values()}:
                entry = entries[pickled.removesuffix("data.pkl") + f"data/{key}"]
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("a compressed entry")
                file.seek(entry.header_offset)
                lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                starts[key] = entry.header_offset + _LOCAL_HEADER.size + sum(lengths)
            for tensor in state.values():
                entry = entries[pickled.removesuffix("data.pkl") + f"data/{tensor.storage.key}"]
                end = tensor.offset + _span(tensor.shape, tensor.strides)
                if all(tensor.shape) and end * tensor.storage.dtype.itemsize > entry.file_size:
                    raise ValueError("a view that ends outside its storage")
    except (OSError, zipfile.BadZipFile, StopIteration, pickle.UnpicklingError, *_MALFORMED) as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{str(path)!r} is no file of tensors that PyTorch 1.6 or later has saved ({reason}): save the weights as "
            "safetensors."
        ) from error
    return {
        name: TorchTensor(path, starts[x.storage.key], x.storage.dtype, x.offset, x.shape, x.strides)
        for name, x in state.items()
    }


class _Rebuilt(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Knows what a state dict is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Rebuilt(storage, offset, shape, strides)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"it refers to a {kind}")
        return _Storage(dtype, key)
