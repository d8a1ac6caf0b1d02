"""From the word in a configuration to the module of a layer."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from transnormer_jax.layers import (
    CosformerAttention,
    DiagAttention,
    LengthProjection,
    LightningAttention,
    LinearTransformerAttention,
    LinformerAttention,
    LSHAttention,
    NormAttention,
    PerformerAttention,
    SoftmaxAttention,
)
from transnormer_jax.models.model_config import ModelConfig
from transnormer_jax.models.transnormer_config import TransNormerConfig
from transnormer_jax.models.transnormer_llm_config import TransNormerLLMConfig


def make_attention(
    config: ModelConfig, layer: int, length_projection: LengthProjection | None, **module: Any
) -> nn.Module:
    """The attention of a layer; `length_projection` is the one that all layers of a Linformer share, if they do."""
    word = config.attentions[layer]
    if isinstance(config, TransNormerLLMConfig):
        return LightningAttention(
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            use_lrpe=word == "lightning_lrpe",
            activation=config.activation,
            use_bias=config.use_bias,
            norm_eps=config.norm_eps,
            kernel_init=nn.initializers.normal(config.init_std),
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            backend=config.backend,
            use_gate=config.use_gate,
            norm=config.norm,
            **module,
        )
    assert isinstance(config, TransNormerConfig), config
    shared: dict[str, Any] = {
        "num_heads": config.num_heads,
        "causal": config.causal,
        "dtype": jnp.dtype(config.dtype),
        "param_dtype": jnp.dtype(config.param_dtype),
        **module,
    }
    if word in ("norm_t1", "norm_t2"):
        return NormAttention(variant=word[-2:], backend=config.backend, **shared)
    if word in ("diag_t1", "diag_t2"):
        return DiagAttention(
            variant=word[-2:], block_size=config.block_size, count_padding=config.count_padding, **shared
        )
    if word == "linear":
        return LinearTransformerAttention(backend=config.backend, **shared)
    if word == "performer":
        return PerformerAttention(num_features=config.performer_features, backend=config.backend, **shared)
    if word == "cosformer":
        return CosformerAttention(horizon=config.max_length, backend=config.backend, **shared)
    if word in ("linformer", "linformer_linear"):
        return LinformerAttention(
            attention="softmax" if word == "linformer" else "linear",
            projected_length=config.linformer_dims[layer],
            max_length=config.max_length,
            projection=config.linformer_projection,
            sharing=config.linformer_sharing,
            length_projection=length_projection,
            **shared,
        )
    if word == "lsh":
        return LSHAttention(
            chunk_size=config.lsh_chunk, num_rounds=config.lsh_rounds, num_buckets=config.lsh_buckets, **shared
        )
    assert word == "softmax", word
    return SoftmaxAttention(**shared)


def make_length_projection(config: ModelConfig, **module: Any) -> LengthProjection | None:
    """The projection that all layers share under linformer_sharing="layerwise", else None."""
    if not isinstance(config, TransNormerConfig) or not any("linformer" in word for word in config.attentions):
        return None
    if config.linformer_sharing != "layerwise":
        return None
    return LengthProjection(
        projected_length=config.linformer_dims[0],
        max_length=config.max_length,
        kind=config.linformer_projection,
        param_dtype=jnp.dtype(config.param_dtype),
        **module,
    )
