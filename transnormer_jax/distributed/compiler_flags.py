"""Compiler flags that overlap communication with computation, as MaxText sets them.

They are read once, when JAX starts its backend, from the environment: libtpu reads LIBTPU_INIT_ARGS, and XLA for GPUs
XLA_FLAGS. A flag that is already set there keeps its value. A flag that a compiler does not know ends the process, so a
test asks the installed compilers about each of them.
"""

import importlib.util
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

TPU_FLAGS = {
    # Collectives run while the core computes, fused with matrix products, over several steps of a loop.
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    # Sums of gradients over `data` start as soon as each gradient is there.
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}
GPU_FLAGS = {
    # Collectives start as early, and are waited for as late, as the data allow.
    "xla_gpu_enable_latency_hiding_scheduler": "true",
    "xla_gpu_enable_highest_priority_async_stream": "true",
    # The gather for a layer runs during the layer before it.
    "xla_gpu_enable_while_loop_double_buffering": "true",
    "xla_gpu_enable_pipelined_all_gather": "true",
    "xla_gpu_enable_pipelined_reduce_scatter": "true",
    # Messages of a size that fills the network.
    "xla_gpu_all_reduce_combine_threshold_bytes": "134217728",
    "xla_gpu_all_gather_combine_threshold_bytes": "134217728",
    "xla_gpu_reduce_scatter_combine_threshold_bytes": "67108864",
}


def use_compiler_flags(environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds the flags of the platform that is present; call it before JAX finds its devices.

    Args:
      environment: of the process.
    """
    if _is_wanted("tpu", environment) and importlib.util.find_spec("libtpu") is not None:
        environment["LIBTPU_INIT_ARGS"] = with_flags(environment.get("LIBTPU_INIT_ARGS", ""), TPU_FLAGS)
    if _is_wanted("cuda", environment) and Path("/dev/nvidiactl").exists():
        environment["XLA_FLAGS"] = with_flags(environment.get("XLA_FLAGS", ""), GPU_FLAGS)


def with_flags(given: str, flags: Mapping[str, str]) -> str:
    """The flags that are given, and after them those that they do not set.

    >>> with_flags("--xla_a=false", {"xla_a": "true", "xla_b": "1"})
    '--xla_a=false --xla_b=1'
    """
    names = {word.lstrip("-").partition("=")[0] for word in given.split()}
    added = [f"--{name}={value}" for name, value in flags.items() if name not in names]
    return " ".join([*given.split(), *added])


def _is_wanted(platform: str, environment: Mapping[str, str]) -> bool:
    chosen = environment.get("JAX_PLATFORMS", "")
    return not chosen or platform in chosen.replace("gpu", "cuda").split(",")
