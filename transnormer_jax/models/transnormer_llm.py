"""TransNormerLLM (arXiv 2307.14995), as the released checkpoints have it."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transnormer_jax.distributed import constrain
from transnormer_jax.layers import GatedLinearAttention, SimpleGLU, make_norm
from transnormer_jax.models.cache import Cache
from transnormer_jax.models.places import places_of
from transnormer_jax.models.transnormer_llm_config import TransNormerLLMConfig
from transnormer_jax.ops import paper_log_decay, released_log_decay, sinusoids


def _all_but_layouts(primitive: jax.extend.core.Primitive, *_: Any, **__: Any) -> bool:
    """Keeps what was computed, but no other layout of it: gathered, the matrices of all layers are the whole model."""
    return primitive.name != "sharding_constraint"


# What the backward pass finds kept.
_REMAT = {
    "none": _all_but_layouts,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class TransNormerLLM(nn.Module):
    """A causal language model on linear attention.

    >>> model = TransNormerLLM(TransNormerLLMConfig.preset("tiny"))
    >>> tokens = jnp.ones((2, 16), jnp.int32)
    >>> variables = model.init(jax.random.key(0), tokens)
    >>> logits, cache = model.apply(variables, tokens, cache=model.init_cache(2))  # prefill
    >>> logits, cache = model.apply(variables, tokens[:, :1], cache=cache)  # one decoding step
    >>> logits.shape
    (2, 1, 259)

    Attributes:
      config: sizes, ablations and dtypes.
    """

    config: TransNormerLLMConfig

    def setup(self) -> None:
        """Declares the embedding, the scanned layers, and the head."""
        config = self.config
        self.embedding = self.param("embedding", _embedding_init, config)
        if not config.tie_embeddings:
            self.head = self.param("head", _embedding_init, config)
        self.layers = [
            _scanned(config, len(group))(config, group[0] in config.lrpe_layers, name=f"layers_{group[0]}")
            for group in layer_groups(config)
        ]
        self.final_norm = _norm(config, "final_norm")

    def __call__(
        self, tokens: Int[Array, "B N"], *, segment_ids: Int[Array, "B N"] | None = None, cache: Cache | None = None
    ) -> Float[Array, "B N V"] | tuple[Float[Array, "B N V"], Cache]:
        """Predicts the token after each token.

        Args:
          tokens: [B, N] int32.
          segment_ids: [B, N] int32, the documents of packed rows; 0 is padding, on either side (`linear_attention`).
          cache: what was read before. Prefill and decoding are the same call.

        Returns:
          Logits [B, N, V] float32; with `cache`, the pair (logits, new cache).
        """
        hidden, cache = self.hidden(tokens, segment_ids=segment_ids, cache=cache)
        logits = self.unembed(hidden)
        return logits if cache is None else (logits, cache)

    def hidden(
        self, tokens: Int[Array, "B N"], *, segment_ids: Int[Array, "B N"] | None = None, cache: Cache | None = None
    ) -> tuple[Float[Array, "B N D"], Cache | None]:
        """Returns what the head reads, [B, N, D], and the new cache: where a loss or a prefill needs not all logits.

        `tokens`, `segment_ids` and `cache` are as for a call.
        """
        config = self.config
        x = self._embed(tokens)
        if config.scale_embedding:
            x *= jnp.asarray(np.sqrt(config.model_dim), x.dtype)
        position = places_of(tokens, segment_ids, cache).position
        if config.sinusoidal_position:
            x += jnp.broadcast_to(sinusoids(position, config.model_dim), x.shape).astype(x.dtype)
        x = constrain(x, "batch", "sequence", None)
        log_decay = log_decays(config)
        states = []
        for i, (group, layers) in enumerate(zip(layer_groups(config), self.layers, strict=True)):
            state = None if cache is None else cache.states[i]
            x, state = layers(x, jnp.asarray(log_decay[group[0] : group[-1] + 1]), state, position, segment_ids)
            states.append(state)
        x = self.final_norm(x)
        if cache is None:
            return x, None
        read = cache.position + tokens.shape[1] if segment_ids is None else position[:, -1] + 1
        return x, Cache(read, tuple(states))

    def unembed(self, hidden: Float[Array, "B N D"]) -> Float[Array, "B N V"]:
        """Logits, float32."""
        name = "embedding" if self.config.tie_embeddings else "head"
        table = self._gathered(self.embedding if self.config.tie_embeddings else self.head)
        logits = jnp.einsum("bnd,vd->bnv", hidden, table, preferred_element_type=jnp.float32)
        if self.has_variable("params", f"{name}_scale"):  # The table is int8, see `inference.quantization`.
            logits *= self.get_variable("params", f"{name}_scale")[None, None]
        return constrain(logits, "batch", "sequence", "vocab")

    def _embed(self, tokens: Int[Array, "B N"]) -> Float[Array, "B N D"]:
        if self.has_variable("params", "embedding_scale"):
            scale: Array = self.get_variable("params", "embedding_scale")[tokens]
            return (self.embedding[tokens] * scale[..., None]).astype(self.config.dtype)
        return self._gathered(self.embedding)[tokens]

    def _gathered(self, table: Float[Array, "V D"]) -> Float[Array, "V D"]:
        # Whole along D: divided as it is stored, a lookup would give all tokens a part of D each, and XLA would then
        # gather the tokens instead.
        return constrain(jnp.asarray(table, self.config.dtype), "vocab", None)

    @nn.nowrap
    def init_cache(self, batch_size: int) -> Cache:
        """The memory of `batch_size` sequences of which nothing has been read."""
        config = self.config
        states = []
        for group in layer_groups(config):
            key_dim = config.head_dim * (2 if group[0] in config.lrpe_layers else 1)
            shape = (len(group), batch_size, config.num_heads, key_dim, config.head_dim)
            states.append(jnp.zeros(shape, jnp.float32))
        return Cache(jnp.zeros(batch_size, jnp.int32), tuple(states))


class Block(nn.Module):
    """x + GLA(norm(x)), then x + SGLU(norm(x))."""

    config: TransNormerLLMConfig
    use_lrpe: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        log_decay: Float[Array, " H"],
        state: Float[Array, "B H K V"] | None,
        position: Int[Array, "#B N"],
        segment_ids: Int[Array, "B N"] | None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B H K V"] | None]:
        """Returns the tokens and, if a state was given, the state after them."""
        config = self.config
        shared: dict[str, Any] = {
            "use_bias": config.use_bias,
            "init_std": config.init_std,
            "dtype": jnp.dtype(config.dtype),
            "param_dtype": jnp.dtype(config.param_dtype),
        }
        mixed, new_state = GatedLinearAttention(
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            use_lrpe=self.use_lrpe,
            activation=config.activation,
            norm_eps=config.norm_eps,
            backend=config.backend,
            use_gate=config.use_gate,
            norm=config.norm,
            name="attention",
            **shared,
        )(_norm(config, "attention_norm")(x), log_decay, position, segment_ids, state)
        x = constrain(x + mixed, "batch", "sequence", None)
        glu = SimpleGLU(config.glu_dim, activation=config.glu_activation, name="glu", **shared)
        x = constrain(x + glu(_norm(config, "glu_norm")(x)), "batch", "sequence", None)
        self.sow("intermediates", "hidden", x)
        return x, None if state is None else new_state


def layer_groups(config: TransNormerLLMConfig) -> list[list[int]]:
    """Runs of neighbouring layers that are alike (with or without LRPE): each is one scan over stacked parameters."""
    layers = range(config.num_layers)
    if not config.scan_layers:
        return [[layer] for layer in layers]
    return [list(group) for _, group in itertools.groupby(layers, lambda layer: layer in config.lrpe_layers)]


def unstack_layers(
    config: TransNormerLLMConfig, params: Mapping[str, Any], *, donate: bool = False
) -> tuple[TransNormerLLMConfig, dict[str, Any]]:
    """The same model with parameters of its own for every layer.

    A scan copies the parameters of each layer out of the stack before it computes with them. Where a token takes no
    longer than reading the weights, as in decoding on a CPU, that takes most of the time.

    Args:
      config: of the model.
      params: its parameters.
      donate: whether the stacked arrays, which must be of JAX then, are deleted one by one, so that not both exist.

    Returns:
      The configuration with `scan_layers=False`, and its parameters.
    """
    if not config.scan_layers:
        return config, dict(params)
    unstacked = dict(params)
    for group in layer_groups(config):
        stacked, treedef = jax.tree.flatten(unstacked.pop(f"layers_{group[0]}"))
        leaves: list[list[Array]] = []
        for leaf in stacked:
            leaves.append([leaf[i : i + 1] for i in range(len(group))] if len(group) > 1 else [leaf])
            if donate and len(group) > 1:
                jax.block_until_ready(leaves[-1])
                leaf.delete()
        for i, layer in enumerate(group):
            unstacked[f"layers_{layer}"] = jax.tree.unflatten(treedef, [parts[i] for parts in leaves])
    return dataclasses.replace(config, scan_layers=False), unstacked


def _scanned(config: TransNormerLLMConfig, length: int) -> type[nn.Module]:
    """Block, rematerialised by the named policy and scanned over `length` layers."""
    return nn.scan(
        nn.remat(Block, prevent_cse=False, policy=_REMAT[config.remat]),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast),
        length=length,
    )


def _norm(config: TransNormerLLMConfig, name: str) -> Callable[[Float[Array, "B N D"]], Float[Array, "B N D"]]:
    return make_norm(config.norm, config.norm_eps, jnp.dtype(config.dtype), jnp.dtype(config.param_dtype), name)


def log_decays(config: TransNormerLLMConfig) -> np.ndarray:
    """Returns the logarithm of what each head keeps of its state from token to token, [L, H] float32."""
    if config.decay == "none":
        return np.zeros((config.num_layers, config.num_heads), np.float32)
    form = released_log_decay if config.decay == "released" else paper_log_decay
    log_decay = form(config.num_heads, config.num_layers)
    return log_decay if config.decay_temperature else np.broadcast_to(log_decay[0], log_decay.shape)


def _embedding_init(key: Array, config: TransNormerLLMConfig) -> Float[Array, "V D"]:
    shape, dtype = (config.vocab_size, config.model_dim), jnp.dtype(config.param_dtype)
    table = nn.initializers.normal(config.init_std)(key, shape, dtype)
    return table.at[config.pad_token_id].set(0)
