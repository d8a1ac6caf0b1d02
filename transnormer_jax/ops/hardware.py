"""Which hardware a kernel is traced for, and whether to interpret kernels instead of running them."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

_INTERPRET: contextvars.ContextVar[Any] = contextvars.ContextVar("interpret", default=False)


class Hardware(NamedTuple):
    """What a program is compiled for.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      kind: the name that the vendor gives the device, such as "TPU v5 lite" or "NVIDIA H200".
    """

    platform: str
    kind: str


def target_hardware() -> Hardware:
    """That of the mesh at hand where it names one, as in ahead-of-time compilation, else the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        kind = device.device_kind
        platform = "tpu" if kind.startswith("TPU") else "cpu" if kind == "cpu" else "gpu"
        return Hardware(platform, kind)
    return Hardware(jax.default_backend(), jax.devices()[0].device_kind)


@contextlib.contextmanager
def interpret_kernels(mode: Any = True) -> Iterator[None]:
    """Within it, kernels traced for another platform are emulated on the CPU: slow, for tests and for debugging.

    Args:
      mode: True, or parameters of an emulator, such as `pltpu.InterpretParams()`.
    """
    token = _INTERPRET.set(mode)
    try:
        yield
    finally:
        _INTERPRET.reset(token)


def interpret_mode() -> Any:
    """The mode of the innermost `interpret_kernels`, or False."""
    return _INTERPRET.get()
