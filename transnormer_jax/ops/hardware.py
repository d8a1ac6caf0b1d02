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
    """That of the current mesh where it names one, as in ahead-of-time compilation, else the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        kind = device.device_kind
        platform = "tpu" if kind.startswith("TPU") else "cpu" if kind == "cpu" else "gpu"
        return Hardware(platform, kind)
    device = default_device()
    return Hardware({"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform), device.device_kind)


def default_device() -> jax.Device:
    """The device on which JAX computes: that of `jax.default_device`, or the first of this process."""
    device = jax.config.jax_default_device
    if isinstance(device, str):
        return jax.local_devices(backend=device)[0]
    return device or jax.local_devices()[0]


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
