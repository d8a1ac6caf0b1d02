"""The FLOPs that a model needs, and the peak FLOP/s of a device."""

from typing import Any

import jax

from transnormer_jax.models import ModelConfig as LanguageModelConfig
from transnormer_jax.models.block import has_constant_state, init_states
from transnormer_jax.training.config import ModelConfig

# Dense bfloat16 peak of one device, FLOP/s, as its maker publishes it; keys are the beginning of jax's device_kind.
# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm; NVIDIA data sheets (figures without sparsity).
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,  # a device is one of the two cores of a chip
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of one device in bfloat16, or None for a device that is not in the table."""
    return next((peak for kind, peak in _PEAKS.items() if device_kind.startswith(kind)), None)


def training_flops_per_token(config: ModelConfig, params: Any) -> float:
    """Model FLOPs of forward and backward pass per token: what the mathematics needs, recomputation not counted.

    Each weight of a projection costs one multiplication and one addition forward, and twice that backward. So does,
    in linear attention, each number of the state when it is written (k v^T) and when it is read (q S). What chunks
    add inside themselves is the implementation's affair and is left out, as are elementwise operations and every other
    attention.
    """
    sizes = jax.tree_util.tree_leaves_with_path(params)
    # An embedding that is not also the head is looked up, not multiplied.
    tied = getattr(config, "tie_embeddings", False)
    multiplied = ("kernel", "head", "embedding") if tied else ("kernel", "head")
    weights = sum(x.size for path, x in sizes if path[-1].key in multiplied)
    state = 0
    if isinstance(config, LanguageModelConfig) and has_constant_state(config):
        states = jax.eval_shape(lambda: init_states(config, 1))
        state = 2 * sum(x.size for x in states if not isinstance(x, tuple))
    return 3.0 * 2.0 * (weights + state)
