"""Reversible residual blocks: what is inside a sublayer is computed again, so memory hardly grows with depth."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.models.block import dropout, feed_forward, norm_of
from transnormer_jax.models.mixers import make_attention
from transnormer_jax.models.model_config import ModelConfig

Streams = tuple[Array, Array]
_RANDOM_STREAMS = ("dropout", "hash")


class ReversibleBlocks(nn.Module):
    """Y1 = X1 + attention(X2), Y2 = X2 + feed_forward(Y1) for each block (Reformer, arXiv 2001.04451, eq. 7 to 9).

    Both streams start as x, and the output is their mean. The backward pass undoes one sublayer after the other, with
    the same dropout and hashes, and keeps no activations between them. The streams are float32, whatever the sublayers
    compute in: what is undone must be what was done.

    Attributes:
      blocks: pairs (attention, feed_forward) of modules from (x [B, N, D], positions) to [B, N, D], norm included,
        made with parent=None. Their parameters are "attention_0", "feed_forward_0", and so on; they may have no
        variables but parameters, and no random streams but "dropout" and "hash".
    """

    blocks: tuple[tuple[nn.Module, nn.Module], ...]

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], positions: TokenPositions) -> Float[Array, "B N D"]:
        """Returns [B, N, D] in x's dtype."""
        modules, params, rngs = [], [], []
        for i, block in enumerate(self.blocks):
            for name, module in zip(("attention", "feed_forward"), block, strict=True):
                module = module.clone(parent=None, name=None)
                modules.append(module)
                rngs.append({stream: self.make_rng(stream) for stream in _RANDOM_STREAMS if self.has_rng(stream)})
                params.append(self.param(f"{name}_{i}", _init(module), x, positions, rngs[-1]))
        return _run(tuple(modules), params, rngs, positions, x.astype(jnp.float32)).astype(x.dtype)


def _init(module: nn.Module) -> Any:
    def init(key: Array, x: Array, positions: TokenPositions, rngs: dict[str, Array]) -> Any:
        return module.init({"params": key, **rngs}, x, positions).get("params", {})

    return init


def _run(
    modules: tuple[nn.Module, ...], params: list[Any], rngs: list[Any], positions: TokenPositions, x: Array
) -> Array:
    """All sublayers, with a gradient that keeps the last two streams and nothing else."""

    def sublayer(i: int, params: Any, rngs: Any, positions: TokenPositions, x: Array) -> Array:
        return jnp.asarray(modules[i].apply({"params": params}, x, positions, rngs=rngs), jnp.float32)

    def forward(params: list[Any], rngs: list[Any], positions: TokenPositions, x: Array) -> Streams:
        # Sublayers add to the streams by turns, so a swap after each makes them all alike.
        first, second = x, x
        for i in range(len(modules)):
            first, second = second, first + sublayer(i, params[i], rngs[i], positions, second)
        return first, second

    @jax.custom_vjp
    def mean_of_streams(params: list[Any], rngs: list[Any], positions: TokenPositions, x: Array) -> Array:
        first, second = forward(params, rngs, positions, x)
        return (first + second) / 2

    def run_forward(params: list[Any], rngs: list[Any], positions: TokenPositions, x: Array) -> tuple[Array, Any]:
        first, second = forward(params, rngs, positions, x)
        return (first + second) / 2, (params, rngs, positions, first, second)

    def run_backward(residuals: Any, d_out: Array) -> tuple[list[Any], None, None, Array]:
        params, rngs, positions, first, second = residuals
        d_first = d_second = d_out / 2
        d_params: list[Any] = [None] * len(modules)
        for i in reversed(range(len(modules))):

            def added(params: Any, x: Array, i: int = i) -> Array:
                return sublayer(i, params, rngs[i], positions, x)

            what_was_added, pull_back = jax.vjp(added, params[i], first)
            d_params[i], d_input = pull_back(d_second)
            first, second = second - what_was_added, first
            d_first, d_second = d_second, d_first + d_input
            # Gradients of parameters that were left for later would keep the activations they need.
            d_params[i], first, second, d_first, d_second = jax.lax.optimization_barrier(
                (d_params[i], first, second, d_first, d_second)
            )
        return d_params, None, None, d_first + d_second

    mean_of_streams.defvjp(run_forward, run_backward)
    return mean_of_streams(params, rngs, positions, x)


class _Attention(nn.Module):
    """What the attention of a layer adds to the tokens."""

    config: ModelConfig
    layer: int

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], positions: TokenPositions) -> Float[Array, "B N D"]:
        x = norm_of(self.config, "attention_norm")(x)
        return dropout(self, make_attention(self.config, self.layer, None, name="attention")(x, positions)[0])


class _FeedForward(nn.Module):
    """What the feed-forward layer adds to each token."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], positions: TokenPositions) -> Float[Array, "B N D"]:
        del positions
        return dropout(self, feed_forward(self.config)(norm_of(self.config, "glu_norm")(x)))


def reversible_blocks(config: ModelConfig, **module: Any) -> ReversibleBlocks:
    """The layers of a configuration, with the modules of `models.Block`, as reversible blocks."""
    layers = range(config.num_layers)
    blocks = tuple((_Attention(config, i, parent=None), _FeedForward(config, parent=None)) for i in layers)
    return ReversibleBlocks(blocks, **module)
