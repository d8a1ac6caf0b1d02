"""One way to launch a Triton kernel from JAX, whatever the version of jax-triton, or to interpret it on the CPU."""

import importlib.metadata
import importlib.util
import inspect
from collections.abc import Sequence
from typing import Any

import jax

from transnormer_jax.ops.hardware import Hardware, interpret_mode, target_hardware

# The interpreter is given the blocks of an H100.
_INTERPRETED = 90


def interpreted(hardware: Hardware) -> bool:
    """Whether kernels are emulated rather than compiled."""
    return hardware.platform == "cpu" and bool(interpret_mode())


def compute_capability(hardware: Hardware) -> int:
    """Ten times the compute capability of this machine's GPU; 0 where it is not NVIDIA's."""
    if interpreted(hardware):
        return _INTERPRETED
    capability = getattr(jax.devices()[0], "compute_capability", "")
    return round(10 * float(capability)) if capability[:1].isdigit() else 0


def what_is_missing(hardware: Hardware) -> str | None:
    """The package that is not installed, or not in a version that works, as half a sentence."""
    for package in ("triton",) if interpreted(hardware) else ("triton", "jax_triton"):
        if importlib.util.find_spec(package) is None:
            return f"it needs the package {package}: in a clone, pip install -e '.[cuda]'"
    if interpreted(hardware) or jax.__version_info__ < (0, 12):
        return None
    version = importlib.metadata.version("jax-triton")
    if version in ("0.4.0", "0.4.1"):
        return f"jax-triton {version} fails under jax {jax.__version__}: pip install jax-triton==0.3.1"
    return None


def launch(
    kernel: Any,
    operands: Sequence[jax.Array | int],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    programs: int,
    num_warps: int,
    num_stages: int,
    compute_capability: int,
    constants: dict[str, int | bool],
) -> list[jax.Array]:
    """Runs `programs` programs of a `triton.jit` kernel and returns its outputs.

    The kernel takes pointers to the arrays among the operands, the integers among them, pointers to the outputs, and
    `constants`, its `tl.constexpr` parameters by name.
    """
    if interpreted(target_hardware()):
        from transnormer_jax.ops.linear_attention.triton.interpreter import interpret

        return interpret(kernel, operands, outputs, programs=programs, constants=constants)

    import jax_triton  # 0.3 raises ImportError where JAX has no GPU

    # The parameter got another name in 0.4.
    parameters = inspect.signature(jax_triton.triton_call).parameters
    out_keyword = "out_type" if "out_type" in parameters else "out_shape"
    return jax_triton.triton_call(
        *operands,
        kernel=kernel,
        grid=(programs,),
        num_warps=num_warps,
        num_stages=num_stages,
        compute_capability=compute_capability,
        **{out_keyword: list(outputs)},
        **constants,
    )
