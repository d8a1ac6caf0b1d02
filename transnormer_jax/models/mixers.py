"""Token mixers by name: what may take the place of attention in a layer."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from transnormer_jax.layers import DiagAttention, LightningAttention, NormAttention, SoftmaxAttention
from transnormer_jax.registry import Registry

if TYPE_CHECKING:
    from transnormer_jax.models.model_config import ModelConfig
    from transnormer_jax.models.transnormer_config import TransNormerConfig
    from transnormer_jax.models.transnormer_llm_config import TransNormerLLMConfig

MIXERS = Registry[Callable[..., nn.Module]]("attention")
"""The token mixers, by the names that `config.model.attention` may have.

A mixer is a function (config, layer, **fields) -> module. The fields are those of every mixer: `num_heads`, `causal`,
`dtype`, `param_dtype`, and Flax's `name` or `parent`. The module maps (x [B, N, D], positions, state) to (x, state). It
has a method `init_state` if it can be run token by token. A mixer with a method `make_shared` gets what that returns as
`shared`, one module for all layers.
"""


@MIXERS.register("norm_t1")
@MIXERS.register("norm_t2")
def _norm(config: "TransNormerConfig", layer: int, **fields: Any) -> nn.Module:
    return NormAttention(variant=config.attentions[layer][-2:], backend=config.backend, **fields)


@MIXERS.register("diag_t1")
@MIXERS.register("diag_t2")
def _diag(config: "TransNormerConfig", layer: int, **fields: Any) -> nn.Module:
    variant = config.attentions[layer][-2:]
    return DiagAttention(variant=variant, block_size=config.block_size, count_padding=config.count_padding, **fields)


@MIXERS.register("softmax")
def _softmax(config: "TransNormerConfig", layer: int, **fields: Any) -> nn.Module:
    del config, layer
    return SoftmaxAttention(**fields)


def _lightning(config: "TransNormerLLMConfig", layer: int, *, causal: bool, **fields: Any) -> nn.Module:
    del causal
    return LightningAttention(
        head_dim=config.head_dim,
        use_lrpe=config.attentions[layer] == "lightning_lrpe",
        activation=config.activation,
        use_bias=config.use_bias,
        norm_eps=config.norm_eps,
        kernel_init=nn.initializers.normal(config.init_std),
        backend=config.backend,
        use_gate=config.use_gate,
        norm=config.norm,
        **fields,
    )


# Of TransNormerLLM alone, whose configuration has the options.
_LIGHTNING = {"lightning": _lightning, "lightning_lrpe": _lightning}


def make_attention(config: "ModelConfig", layer: int, shared: nn.Module | None, **module: Any) -> nn.Module:
    """The mixer of a layer; `shared` is that of `make_shared`."""
    mixer = _mixer(config.attentions[layer])
    if hasattr(mixer, "make_shared"):
        module["shared"] = shared
    return mixer(
        config,
        layer,
        num_heads=config.num_heads,
        causal=config.causal,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        **module,
    )


def make_shared(config: "ModelConfig", **module: Any) -> nn.Module | None:
    """The module that the mixers of all layers share, if there is one."""
    makers = [mixer.make_shared for name in config.attentions if hasattr(mixer := _mixer(name), "make_shared")]
    return makers[0](config, **module) if makers else None


def _mixer(name: str) -> Callable[..., nn.Module]:
    return _LIGHTNING.get(name) or MIXERS[name]
