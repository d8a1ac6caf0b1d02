"""Runs a Triton kernel in Triton's own NumPy interpreter, as a callback of a JAX program on the CPU.

For tests and for debugging: an operation on a block takes tens of microseconds, and programs run one after the other.
"""

import threading
from collections.abc import Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter

# The interpreter keeps the position in the grid, and the language that it patches, in global variables.
_ONE_AT_A_TIME = threading.Lock()

_TYPE_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32"}


def interpret(
    kernel: Any,
    operands: Sequence[jax.Array | int],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    programs: int,
    constants: dict[str, int | bool],
) -> list[jax.Array]:
    """As `launch`, on the CPU. Floats that the kernel leaves unwritten are NaN."""
    numbers = {i: x for i, x in enumerate(operands) if isinstance(x, int)}
    arrays = [x for x in operands if not isinstance(x, int)]
    names = kernel.fn.__globals__

    def run(*arrays: Any) -> list[np.ndarray]:
        inputs = iter([_Buffer(np.ascontiguousarray(x)) for x in arrays])
        results = [np.full(x.shape, np.nan, x.dtype) for x in outputs]
        arguments = [numbers[i] if i in numbers else next(inputs) for i in range(len(operands))]
        with _ONE_AT_A_TIME, _Bfloat16():
            compiled = {name: x for name, x in names.items() if isinstance(x, triton.JITFunction)}
            names.update({name: interpreter.InterpretedFunction(x.fn) for name, x in compiled.items()})
            try:
                names[kernel.fn.__name__].run(
                    *arguments, *map(_Buffer, results), grid=(programs,), warmup=False, **constants
                )
            finally:
                names.update(compiled)
        return results

    return jax.pure_callback(run, list(outputs), *arrays)


class _Buffer:
    """A NumPy array with what the interpreter asks of a PyTorch tensor: it copies storages to and from the CPU."""

    def __init__(self, array: np.ndarray):
        self._array = array
        self.dtype = _TYPE_NAMES[array.dtype.name]

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def itself(self, *args: Any, **kwargs: Any) -> "_Buffer":
        del args, kwargs
        return self

    untyped_storage = cpu = new_empty = set_ = storage_offset = size = stride = copy_ = itself


class _Bfloat16:
    """Within it the interpreter is right about bfloat16, which it holds as 16-bit integers.

    Else it would multiply these integers, and round towards zero.
    """

    def __enter__(self) -> None:
        builder = interpreter.interpreter_builder
        dot, cast = builder.create_dot, builder.cast_impl

        def create_dot(a: Any, b: Any, *args: Any) -> Any:
            return dot(_widen(a), _widen(b), *args)

        def cast_impl(x: Any, dtype: Any) -> Any:
            if dtype.scalar != tl.bfloat16 or x.dtype.scalar != tl.float32:
                return cast(x, dtype)
            return interpreter.TensorHandle(x.data.astype(ml_dtypes.bfloat16).view(np.uint16), tl.bfloat16)

        builder.create_dot, builder.cast_impl = create_dot, cast_impl

    def __exit__(self, *error: Any) -> None:
        builder = interpreter.interpreter_builder
        del builder.create_dot, builder.cast_impl


def _widen(x: Any) -> Any:
    if x.dtype.scalar != tl.bfloat16:
        return x
    return interpreter.TensorHandle(x.data.view(ml_dtypes.bfloat16).astype(np.float32), tl.float32)
