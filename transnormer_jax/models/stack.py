"""The block into which every attention fits, and the stack of blocks between embedding and head."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.errors import UserError
from transnormer_jax.layers import FeedForward, GatedFeedForward, Places, ReversibleBlocks
from transnormer_jax.models.cache import Cache
from transnormer_jax.models.mixers import make_attention, make_shared
from transnormer_jax.models.transnormer_config import TransNormerConfig
from transnormer_jax.ops import transnormer_rms_norm

State = Any


class Stack(nn.Module):
    """All blocks: [B, N, D] to [B, N, D], and the norm after the last one.

    TransNormer (arXiv 2210.10340, section 4) and, by `config.attention`, the systems it is compared with.
    """

    config: TransNormerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], places: Places, states: tuple[State, ...] | None = None
    ) -> tuple[Float[Array, "B N D"], tuple[State, ...]]:
        """Returns the tokens and, if states were given (one for each layer), the states after them, else ()."""
        config = self.config
        shared = make_shared(config, name="length_projection")
        if config.reversible:
            if states is not None:
                raise UserError("a reversible model has no cache: pass whole sequences.")
            x = ReversibleBlocks(
                tuple(
                    (AttentionBranch(config, layer, parent=None), FeedForwardBranch(config, parent=None))
                    for layer in range(config.num_layers)
                ),
                name="layers",
            )(x, places)
            return self._final_norm(x), ()
        block = nn.remat(Block) if config.remat else Block
        after = []
        for layer in range(config.num_layers):
            state = None if states is None else states[layer]
            x, state = block(config, layer, shared, name=f"layers_{layer}")(x, places, state)
            after.append(state)
        return self._final_norm(x), () if states is None else tuple(after)

    def _final_norm(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        return Norm(self.config, name="final_norm")(x) if self.config.final_norm else x


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); or with each norm after its sum."""

    config: TransNormerConfig
    layer: int
    length_projection: nn.Module | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], places: Places, state: State = None
    ) -> tuple[Float[Array, "B N D"], State]:
        """Returns the tokens, and the attention's state after them if one was given."""
        config = self.config
        mixed = AttentionBranch(config, self.layer, self.length_projection, name="mix")(x, places, state)
        mixed, state = (mixed, None) if state is None else mixed
        x = x + mixed
        if not config.norm_first:
            x = Norm(config, name="mix_norm")(x)
        x = x + FeedForwardBranch(config, name="feed")(x, places)
        if not config.norm_first:
            x = Norm(config, name="feed_norm")(x)
        self.sow("intermediates", "hidden", x)
        return x, state


class AttentionBranch(nn.Module):
    """What the attention of a layer adds to the tokens."""

    config: TransNormerConfig
    layer: int
    length_projection: nn.Module | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], places: Places, state: State = None) -> Any:
        """Returns [B, N, D]; with a state, the pair of that and the new state."""
        if self.config.norm_first:
            x = Norm(self.config, name="norm")(x)
        attention = make_attention(self.config, self.layer, self.length_projection, name="attention")
        mixed, new_state = attention(x, places, state)
        mixed = dropout(self, mixed)
        return mixed if state is None else (mixed, new_state)


class FeedForwardBranch(nn.Module):
    """What the feed-forward of a layer adds to the tokens."""

    config: TransNormerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], places: Places) -> Float[Array, "B N D"]:
        """Returns [B, N, D]; each token by itself."""
        del places
        config = self.config
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}
        if config.norm_first:
            x = Norm(config, name="norm")(x)
        if config.feed_forward == "glu":
            x = GatedFeedForward(config.feed_forward_dim, activation=config.glu_activation, name="glu", **dtypes)(x)
        else:
            x = FeedForward(config.feed_forward_dim, activation=config.feed_forward, name="feed_forward", **dtypes)(x)
        return dropout(self, x)


class Norm(nn.Module):
    """The norm that the configuration names."""

    config: TransNormerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Normalises each token."""
        if self.config.norm == "simple_rms_norm":
            return transnormer_rms_norm(x)
        dtypes: dict[str, Any] = {
            "dtype": jnp.dtype(self.config.dtype),
            "param_dtype": jnp.dtype(self.config.param_dtype),
        }
        return nn.LayerNorm(epsilon=1e-5, name="layer_norm", **dtypes)(x)


def init_cache(config: TransNormerConfig, batch_size: int, max_length: int) -> Cache:
    """The memory of a stack; see `TransNormer.init_cache`."""
    states = []
    for layer, word in enumerate(config.attentions):
        attention = make_attention(config, layer, None, parent=None)
        if not config.causal or not hasattr(attention, "init_state"):
            raise UserError(f"attention {word!r} has no recurrent form here: pass whole sequences without a cache.")
        states.append(attention.init_state(batch_size, max_length or config.max_length, config.model_dim))
    return Cache(jnp.zeros(batch_size, jnp.int32), tuple(states))


def dropout(module: nn.Module, x: Array) -> Array:
    """Dropout, where the caller of `apply` gave a key named "dropout"."""
    rate = module.config.dropout
    return nn.Dropout(rate, deterministic=not module.has_rng("dropout"))(x)
