"""The block into which every token mixer fits, and the stack of blocks of every model."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.distributed import constrain
from transnormer_jax.errors import UserError
from transnormer_jax.layers import FeedForward, TokenPositions, make_norm
from transnormer_jax.models.mixers import make_attention, make_shared
from transnormer_jax.models.model_config import ModelConfig

State = Any


def _all_but_layouts(primitive: jax.extend.core.Primitive, *_: Any, **__: Any) -> bool:
    """Keeps what was computed, but no other layout of it: gathered, the matrices of all layers are the whole model."""
    return primitive.name != "sharding_constraint"


# What the backward pass finds kept.
_REMAT = {
    "none": _all_but_layouts,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Stack(nn.Module):
    """All blocks, [B, N, D] to [B, N, D], and the norm after the last one.

    Neighbouring layers that are alike are one scan over stacked parameters, "layers_0" for those that begin with layer
    0, so that compile time does not grow with depth; with `config.scan_layers=False` each layer has its own.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], positions: TokenPositions, states: tuple[State, ...] | None = None
    ) -> tuple[Float[Array, "B N D"], tuple[State, ...]]:
        """Returns the tokens and, if states were given (one for each group of layers), the states after them."""
        config = self.config
        groups = layer_groups(config)
        new_states: list[State] = []
        custom = config.custom_layers(name="layers")
        if custom is not None:
            if states is not None:
                raise UserError(f"{type(custom).__name__} have no cache: pass whole sequences.")
            x = custom(x, positions)
        else:
            shared = make_shared(config, name="length_projection")
            log_decay = config.log_decays()
            for i, group in enumerate(groups):
                decay = None if log_decay is None else jnp.asarray(log_decay[group[0] : group[-1] + 1])
                state = None if states is None else states[i]
                if config.scan_layers and shared is None:
                    layers = _scanned(config, group)
                else:
                    layers = _alone(config, group[0], shared, init=self.is_initializing())
                x, state = layers(x, decay, state, positions)
                new_states.append(state)
        if config.final_norm:
            x = norm_of(config, "final_norm")(x)
        return x, () if states is None else tuple(new_states)


class Block(nn.Module):
    """x + mixer(norm(x)), then x + feed_forward(norm(x)); or with each norm after its sum.

    Attributes:
      layer: index of the layer, or of the first of those that are scanned.
      shared: the module that the mixers of all layers share, if there is one.
    """

    config: ModelConfig
    layer: int
    shared: nn.Module | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], log_decay: Float[Array, " H"] | None, state: State, positions: TokenPositions
    ) -> tuple[Float[Array, "B N D"], State]:
        """Returns the tokens and, if a state was given, the mixer's state after them."""
        config = self.config
        attention_norm, feed_norm = norm_of(config, "attention_norm"), norm_of(config, "glu_norm")
        attention = make_attention(config, self.layer, self.shared, name="attention")
        decay = () if log_decay is None else (log_decay,)
        mixed, state = attention(attention_norm(x) if config.norm_first else x, positions, state, *decay)
        x = constrain(x + dropout(self, mixed), "batch", "sequence", None)
        if not config.norm_first:
            x = attention_norm(x)
        fed = feed_forward(config)(feed_norm(x) if config.norm_first else x)
        x = constrain(x + dropout(self, fed), "batch", "sequence", None)
        if not config.norm_first:
            x = feed_norm(x)
        self.sow("intermediates", "hidden", x)
        return x, state


def layer_groups(config: ModelConfig) -> list[list[int]]:
    """Runs of neighbouring layers that are alike: each is one scan over stacked parameters."""
    layers = range(config.num_layers)
    if not config.scan_layers or make_shared(config, parent=None) is not None:
        return [[layer] for layer in layers]
    return [list(group) for _, group in itertools.groupby(layers, config.layer_kind)]


def init_states(config: ModelConfig, batch_size: int, max_length: int = 0) -> tuple[State, ...]:
    """The states of each group of layers before the first token, [layers, B, ...].

    Raises:
      UserError: the model is not causal, or one of its mixers has no recurrent form.
    """
    states = []
    for group in layer_groups(config):
        attention = make_attention(config, group[0], None, parent=None)
        if not config.causal or not hasattr(attention, "init_state"):
            name = config.attentions[group[0]]
            raise UserError(f"attention {name!r} has no recurrent form here: pass whole sequences without a cache.")
        state = attention.init_state(batch_size, max_length or config.max_length, config.model_dim)
        states.append(jax.tree.map(functools.partial(_stacked, len(group)), state))
    return tuple(states)


@functools.cache
def has_states(config: ModelConfig) -> bool:
    """Whether the model can be run token by token."""
    if not config.causal or config.custom_layers(parent=None) is not None:
        return False
    mixers = [make_attention(config, group[0], None, parent=None) for group in layer_groups(config)]
    return all(hasattr(mixer, "init_state") for mixer in mixers)


@functools.cache
def has_constant_state(config: ModelConfig) -> bool:
    """Whether the model can read texts of any length with a memory of constant size."""
    if config.position == "learned" or not has_states(config):
        return False
    short, long = (jax.eval_shape(functools.partial(init_states, config, 1, length)) for length in (1, 2))
    return short == long


def _stacked(count: int, x: Array) -> Array:
    return jnp.repeat(x[None], count, axis=0)


def feed_forward(config: ModelConfig) -> FeedForward:
    """The feed-forward layer of a block, "glu" or "feed_forward"; for use inside a compact method."""
    gated = config.feed_forward == "glu"
    options: dict[str, Any] = {}
    if config.init_std is not None:
        options["kernel_init"] = nn.initializers.normal(config.init_std)
    return FeedForward(
        config.feed_forward_dim,
        activation=config.glu_activation if gated else config.feed_forward,
        gated=gated,
        use_bias=config.use_bias,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        name="glu" if gated else "feed_forward",
        **options,
    )


def norm_of(config: ModelConfig, name: str) -> Callable[[Float[Array, "B N D"]], Float[Array, "B N D"]]:
    """The norm of a configuration; for use inside a compact method."""
    dtypes = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
    return make_norm(config.norm_function, config.norm_eps, *dtypes, name)


def dropout(module: nn.Module, x: Array) -> Array:
    """Dropout, where the caller of `apply` gave a key named "dropout"."""
    rate = module.config.dropout
    return nn.Dropout(rate, deterministic=not module.has_rng("dropout"))(x) if rate else x


def _scanned(config: ModelConfig, group: Sequence[int]) -> Callable[..., Any]:
    """Blocks, rematerialised by the named policy and scanned over the layers."""
    scanned = nn.scan(
        nn.remat(Block, prevent_cse=False, policy=_REMAT[config.remat]),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True, "hash": True},
        in_axes=(0, 0, nn.broadcast),
        length=len(group),
    )
    return scanned(config, group[0], name=f"layers_{group[0]}")


def _alone(config: ModelConfig, layer: int, shared: nn.Module | None, *, init: bool) -> Callable[..., Any]:
    """The block of one layer, whose parameters and state are stacks of one all the same."""
    block = Block if config.remat == "none" else nn.remat(Block, prevent_cse=False, policy=_REMAT[config.remat])
    if shared is None:  # a module that several layers share is no part of a stack
        block = nn.map_variables(block, "params", _first, _stack_of_one, init=init)
    module = block(config, layer, shared, name=f"layers_{layer}")

    def run(x: Array, log_decay: Array | None, state: State, positions: TokenPositions) -> tuple[Array, State]:
        x, state = module(x, _first(log_decay), _first(state), positions)
        return x, _stack_of_one(state)

    return run


def _first(stack: Any) -> Any:
    return jax.tree.map(lambda x: x[0], stack)


def _stack_of_one(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[None], tree)
