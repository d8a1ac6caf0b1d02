"""How many floating-point operations a model needs, and how many a device can do."""

from transnormer_jax.models import TransNormerLLMConfig

# Dense bfloat16 peak of one device, FLOP/s, as its maker publishes it; keys are the beginning of jax's device_kind.
# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm; NVIDIA data sheets (figures without sparsity).
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of one device in bfloat16, or None for a device that is not in the table."""
    return next((peak for kind, peak in _PEAKS.items() if device_kind.startswith(kind)), None)


def training_flops_per_token(config: TransNormerLLMConfig) -> float:
    """Model FLOPs of forward and backward pass per token: what the mathematics needs, recomputation not counted.

    Each weight of a projection costs one multiplication and one addition forward and twice that backward, so does each
    number of the state when it is written (k v^T) and when it is read (q S). What chunks add inside themselves is the
    implementation's affair and is left out, as are elementwise operations.
    """
    d, f, k = config.model_dim, config.glu_dim, config.head_dim
    weights = config.num_layers * (5 * d * d + 3 * d * f) + config.vocab_size * d
    layers = config.num_layers + len(config.lrpe_layers)  # LRPE doubles the state
    return 3.0 * 2.0 * (weights + 2 * layers * config.num_heads * k * k)
