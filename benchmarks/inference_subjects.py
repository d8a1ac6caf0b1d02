"""The two models whose generation is timed: a TransNormerLLM, and a softmax Transformer of its size with a KV cache.

Both are driven alike: `read` takes a prompt to its first token, and `decode` writes a block of tokens, greedily, in one
compiled function that donates its state.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.trees import tree_bytes, tree_size
from transnormer_jax.inference import SamplingSettings
from transnormer_jax.inference.decoding import WINDOW, DecodeState, decode, empty_state, prefill, take_rows
from transnormer_jax.inference.precision import at_compute_dtype
from transnormer_jax.inference.sampling import stack_settings
from transnormer_jax.models import Cache, TransNormer, TransNormerConfig, TransNormerLLM, TransNormerLLMConfig

MODELS: dict[str, TransNormerLLMConfig] = {
    "tiny": TransNormerLLMConfig.preset("tiny"),
    "100m": TransNormerLLMConfig(vocab_size=8192, num_layers=12, model_dim=768, num_heads=12, glu_dim=2112),
}


class Subject(Protocol):
    """What is timed.

    Attributes:
      num_parameters: of the model.
      constant: whether the size of a state does not depend on the context.
    """

    num_parameters: int
    constant: bool

    def state_bytes(self, batch_size: int, context: int) -> int:
        """Of what is remembered of `batch_size` texts of `context` tokens, parameters not counted."""

    def read(self, context: int) -> Any:
        """Reads a prompt of `context` tokens and writes a token; the state of this one text."""

    def place(self, state: Any, context: int) -> Any:
        """A state for timing: of one text of `context` tokens that were not all read. `state` is of a shorter one."""

    def repeat(self, state: Any, batch_size: int) -> Any:
        """A new state, of `batch_size` times the same text."""

    def decode(self, state: Any) -> Any:
        """The state after a block of tokens. The state given is donated."""


class Linear:
    """A TransNormerLLM, by the functions that `Generator` calls."""

    constant = True

    def __init__(self, config: TransNormerLLMConfig, dtype: str, block_size: int, params: Any = None):
        """Takes the parameters of unstacked layers, or draws some."""
        self._config, self._block_size = config, block_size
        config = dataclasses.replace(config, dtype=dtype, scan_layers=False)  # as `Generator` has it
        self._model = TransNormerLLM(config)
        if params is None:
            params = jax.jit(self._model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        self._params = at_compute_dtype(params, dtype)
        self.num_parameters = tree_size(params)
        self.parameter_bytes = tree_bytes(self._params)
        self._apply = jax.jit(self._model.apply)

    def logits(self, tokens: Any, segment_ids: Any) -> jax.Array:
        """Of a batch of rows, [B, N, V]."""
        return self._apply({"params": self._params}, tokens, segment_ids=segment_ids)

    def state_bytes(self, batch_size: int, context: int) -> int:
        """See `Subject`."""
        del context
        return tree_bytes(jax.eval_shape(lambda: self._model.init_cache(batch_size)))

    def read(self, context: int) -> DecodeState:
        """See `Subject`."""
        state = empty_state(self._model, self._params, 1, self._config.vocab_size)
        return self._write(prefill(self._model, self._params, state, [_prompt(context, self._config.vocab_size)]), 1)

    def place(self, state: DecodeState, context: int) -> DecodeState:
        """See `Subject`. Only the position changes, and with it the angles of LRPE."""
        position = jnp.full_like(state.cache.position, context)
        return state._replace(cache=state.cache._replace(position=position))

    def repeat(self, state: DecodeState, batch_size: int) -> DecodeState:
        """See `Subject`."""
        return take_rows(state, np.zeros(batch_size, np.int32))

    def decode(self, state: DecodeState) -> DecodeState:
        """See `Subject`."""
        return self._write(state, self._block_size)

    def _write(self, state: DecodeState, block_size: int) -> DecodeState:
        batch_size = len(state.seen)
        return decode(
            self._model,
            self._params,
            state,
            np.zeros(batch_size, np.uint32),
            stack_settings([SamplingSettings(temperature=0.0)] * batch_size),
            np.zeros(batch_size, np.int32),
            np.bool_(False),
            block_size,
        )[0]


class SoftmaxState(NamedTuple):
    """Keys and values, and the token [B] int32 that comes next."""

    cache: Cache
    token: jax.Array


class Softmax:
    """This code base's softmax Transformer.

    Its cache has room for the context and two blocks of tokens, and every block is written over the one before.
    """

    constant = False

    def __init__(self, config: TransNormerLLMConfig, dtype: str, block_size: int):
        """Draws parameters."""
        self._config = softmax_config(config, dtype)
        self._model, self._block_size = TransNormer(self._config), block_size
        params = jax.jit(self._model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        self._params = jax.tree.map(lambda x: x.astype(dtype), params)
        self.num_parameters = tree_size(params)

    def state_bytes(self, batch_size: int, context: int) -> int:
        """See `Subject`."""
        return tree_bytes(jax.eval_shape(lambda: self._empty(batch_size, context)))

    def read(self, context: int) -> SoftmaxState:
        """See `Subject`, by windows of as many tokens as the other model's."""
        cache, token = self._empty(1, context), jnp.zeros(1, jnp.int32)
        prompt = _prompt(context, self._config.vocab_size)
        for start in range(0, context, WINDOW):
            window = np.array([prompt[start : start + WINDOW]], np.int32)
            cache, token = _read_softmax(self._model, self._params, cache, window)
        return SoftmaxState(cache, token)

    def place(self, state: SoftmaxState, context: int) -> SoftmaxState:
        """See `Subject`. Keys and values are zero."""
        del state
        cache = self._empty(1, context)
        return SoftmaxState(cache._replace(position=jnp.full_like(cache.position, context)), jnp.zeros(1, jnp.int32))

    def repeat(self, state: SoftmaxState, batch_size: int) -> SoftmaxState:
        """See `Subject`."""
        return jax.tree.map(lambda x: jnp.repeat(x, batch_size, axis=0), state)

    def decode(self, state: SoftmaxState) -> SoftmaxState:
        """See `Subject`."""
        return _write_softmax(self._model, self._params, state, self._block_size)

    def _empty(self, batch_size: int, context: int) -> Cache:
        return self._model.init_cache(batch_size, context + 2 * self._block_size)


def softmax_config(config: TransNormerLLMConfig, dtype: str) -> TransNormerConfig:
    """Same layers, width, heads and vocabulary, and as many parameters.

    The output gate that it lacks, D x D, is made up for by a wider feed-forward.
    """
    return TransNormerConfig(
        vocab_size=config.vocab_size,
        num_layers=config.num_layers,
        model_dim=config.model_dim,
        num_heads=config.num_heads,
        attention="softmax",
        feed_forward_dim=config.glu_dim + config.model_dim // 3,
        glu_activation=config.glu_activation,
        dropout=0.0,
        dtype=dtype,
    )


KINDS: dict[str, type[Linear] | type[Softmax]] = {"linear": Linear, "softmax": Softmax}


def reference_fields(config: TransNormerLLMConfig) -> dict[str, Any]:
    """The same model for the released code."""
    return {
        "vocab_size": config.vocab_size,
        "decoder_embed_dim": config.model_dim,
        "hidden_dim": config.model_dim,
        "decoder_layers": config.num_layers,
        "decoder_attention_heads": config.num_heads,
        "glu_dim": config.glu_dim,
        "linear_use_lrpe_list": [int(layer in config.lrpe_layers) for layer in range(config.num_layers)],
    }


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _read_softmax(model: TransNormer, params: Any, cache: Cache, tokens: jax.Array) -> tuple[Cache, jax.Array]:
    hidden, cache = model.apply({"params": params}, tokens, cache=cache, method="hidden")
    return cache, _likeliest(model, params, hidden[:, -1:])


@functools.partial(jax.jit, static_argnums=(0, 3), donate_argnums=2)
def _write_softmax(model: TransNormer, params: Any, state: SoftmaxState, block_size: int) -> SoftmaxState:
    def step(state: SoftmaxState, _: None) -> tuple[SoftmaxState, None]:
        hidden, cache = model.apply({"params": params}, state.token[:, None], cache=state.cache, method="hidden")
        return SoftmaxState(cache, _likeliest(model, params, hidden)), None

    after = jax.lax.scan(step, state, None, length=block_size)[0]
    return after._replace(cache=after.cache._replace(position=state.cache.position))


def _likeliest(model: TransNormer, params: Any, hidden: jax.Array) -> jax.Array:
    logits = model.apply({"params": params}, hidden, method="unembed")
    return jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32)


def _prompt(context: int, vocab_size: int) -> list[int]:
    return np.random.default_rng(0).integers(3, vocab_size, context).tolist()
