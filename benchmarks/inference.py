"""What generation costs, by the length of the context: time to the first token, tokens per second, bytes remembered.

A TransNormerLLM, by the functions that `Generator` calls, and a softmax Transformer of as many parameters with a KV
cache. Weights are random: speed does not depend on them.

- Times are medians. A prompt of at most --read_tokens is read whole; that is the time to the first token.
- Otherwise a state is placed at the end of the context instead: that of a shorter prompt with its position changed, or
  a KV cache of zeros. A decoding step does the same work on it. The rows of the record say "read" or "placed".
- A batch is that text several times over. The blocks of linear attention at all contexts are timed in turn, so that
  what else the machine does affects all alike. A state that takes too much memory is left out, and its row says so.

    python -m benchmarks.inference
    python -m benchmarks.inference --kinds=linear --weights=int8
"""

import dataclasses
import functools
import json
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import (
    Panel,
    Record,
    check_known,
    check_positive,
    main,
    time_calls,
    time_in_turn,
    tree_bytes,
    tree_size,
)
from transnormer_jax.errors import UserError
from transnormer_jax.inference import SamplingSettings, quantize
from transnormer_jax.inference.decoding import WINDOW, DecodeState, decode, empty_state, prefill, take_rows
from transnormer_jax.inference.precision import at_compute_dtype
from transnormer_jax.inference.sampling import stack_settings
from transnormer_jax.models import Cache, TransNormer, TransNormerConfig, TransNormerLLM, TransNormerLLMConfig

MODELS: dict[str, TransNormerLLMConfig] = {
    "tiny": TransNormerLLMConfig.preset("tiny"),
    "100m": TransNormerLLMConfig(vocab_size=8192, num_layers=12, model_dim=768, num_heads=12, glu_dim=2112),
}

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      models: sizes, "tiny" or "100m".
      kinds: "linear" or "softmax".
      batch_sizes: numbers of texts written at once.
      contexts: numbers of tokens before those that are written.
      dtype: of weights and computation; states of linear attention are float32 always.
      weights: of linear attention, as `dtype` or int8.
      block_size: tokens that one call writes, as `Generator.generate` does.
      seconds: how long the calls at each context are repeated, three times at least.
      read_tokens: prompts up to this are read.
      max_gigabytes: states that need more are left out; 10^9 bytes.
    """

    models: tuple[str, ...] = tuple(MODELS)
    kinds: tuple[str, ...] = ("linear", "softmax")
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    contexts: tuple[int, ...] = (1024, 4096, 16384, 65536, 262144, 1048576)
    dtype: str = "float32"
    weights: str = "dtype"
    block_size: int = 16
    seconds: float = 1.0
    read_tokens: int = 4096
    max_gigabytes: float = 1.0

    def __post_init__(self):
        check_positive(self)
        check_known("models", self.models, MODELS)
        check_known("kinds", self.kinds, KINDS)
        check_known("dtype", [self.dtype], ("float32", "bfloat16"))
        check_known("weights", [self.weights], ("dtype", "int8"))
        if min(self.contexts) > self.read_tokens:
            raise UserError(f"read_tokens is {self.read_tokens}: one of the contexts must be no longer.")


class Linear:
    """A TransNormerLLM, by the functions that `Generator` calls."""

    constant = True  # the size of a state, whatever the context

    def __init__(self, config: TransNormerLLMConfig, settings: "Settings"):
        """Draws parameters."""
        self._config, self._block_size = config, settings.block_size
        config = dataclasses.replace(config, dtype=settings.dtype, scan_layers=False)  # as `Generator` has it
        self._model = TransNormerLLM(config)
        params = jax.jit(self._model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        self.num_parameters = tree_size(params)
        self._params = at_compute_dtype(quantize(params) if settings.weights == "int8" else params, settings.dtype)
        self.parameter_bytes = tree_bytes(self._params)

    def state_bytes(self, batch_size: int, context: int) -> int:
        """Of what is remembered of `batch_size` texts of `context` tokens."""
        del context
        return tree_bytes(jax.eval_shape(lambda: self._model.init_cache(batch_size)))

    def read(self, context: int) -> DecodeState:
        """Reads a prompt of `context` tokens and writes a token; the state of this one text."""
        state = empty_state(self._model, self._params, 1, self._config.vocab_size)
        return self._write(prefill(self._model, self._params, state, [_prompt(context, self._config.vocab_size)]), 1)

    def place(self, state: DecodeState, context: int) -> DecodeState:
        """A state of a shorter text, as if it had `context` tokens: the position changes, and the angles of LRPE."""
        position = jnp.full_like(state.cache.position, context)
        return state._replace(cache=state.cache._replace(position=position))

    def repeat(self, state: DecodeState, batch_size: int) -> DecodeState:
        """A new state, of `batch_size` times the same text."""
        return take_rows(state, np.zeros(batch_size, np.int32))

    def decode(self, state: DecodeState) -> DecodeState:
        """The state after a block of tokens. The state given is donated."""
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
    """A softmax Transformer of the same size with the methods of `Linear`.

    Its cache has room for the context and two blocks of tokens, and every block is written over the one before.
    """

    constant = False

    def __init__(self, config: TransNormerLLMConfig, settings: "Settings"):
        """Draws parameters."""
        self._config, self._block_size = softmax_config(config, settings.dtype), settings.block_size
        self._model = TransNormer(self._config)
        params = jax.jit(self._model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        self._params = jax.tree.map(lambda x: x.astype(settings.dtype), params)
        self.num_parameters, self.parameter_bytes = tree_size(params), tree_bytes(self._params)

    def state_bytes(self, batch_size: int, context: int) -> int:
        """As of `Linear`."""
        return tree_bytes(jax.eval_shape(lambda: self._empty(batch_size, context)))

    def read(self, context: int) -> SoftmaxState:
        """As of `Linear`, by windows of as many tokens."""
        cache, token = self._empty(1, context), jnp.zeros(1, jnp.int32)
        prompt = _prompt(context, self._config.vocab_size)
        for start in range(0, context, WINDOW):
            window = np.array([prompt[start : start + WINDOW]], np.int32)
            cache, token = _read_softmax(self._model, self._params, cache, window)
        return SoftmaxState(cache, token)

    def place(self, state: Any, context: int) -> SoftmaxState:
        """As of `Linear`; keys and values are zero."""
        del state
        cache = self._empty(1, context)
        return SoftmaxState(cache._replace(position=jnp.full_like(cache.position, context)), jnp.zeros(1, jnp.int32))

    def repeat(self, state: SoftmaxState, batch_size: int) -> SoftmaxState:
        """As of `Linear`."""
        states = jax.tree.map(lambda x: jnp.repeat(x, batch_size, axis=1), state.cache.states)
        position, token = (jnp.repeat(x, batch_size, axis=0) for x in (state.cache.position, state.token))
        return SoftmaxState(Cache(position, states), token)

    def decode(self, state: SoftmaxState) -> SoftmaxState:
        """As of `Linear`."""
        return _write_softmax(self._model, self._params, state, self._block_size)

    def _empty(self, batch_size: int, context: int) -> Cache:
        return self._model.init_cache(batch_size, context + 2 * self._block_size)


KINDS: dict[str, type[Linear] | type[Softmax]] = {"linear": Linear, "softmax": Softmax}


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
        scan_layers=False,  # as `Generator` has it
    )


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Measures, prints and records as it goes, then plots, and returns the summary."""
    contexts = tuple(sorted(set(settings.contexts)))
    rows, parameters = list[Row](), dict[str, dict[str, Any]]()
    summary = dict[str, Any]()
    for model in settings.models:
        parameters[model] = {}
        for kind in settings.kinds:
            subject = KINDS[kind](MODELS[model], settings)
            parameters[model][kind] = {"number": subject.num_parameters, "bytes": subject.parameter_bytes}
            for found in _measure(subject, contexts, settings):
                rows.append({"model": model, "kind": kind, **found})
                print(json.dumps(rows[-1]), flush=True)
        summary[model] = _summary(model, rows, contexts[0])
        record.write(parameters=parameters, rows=rows, summary=summary)
    panels = [_panel(model, rows, settings) for model in settings.models]
    record.plot(panels, title=f"Generation, {settings.dtype}", xlabel="tokens of context")
    return summary


def _measure(subject: Linear | Softmax, contexts: Sequence[int], settings: Settings) -> Iterator[Row]:
    """Rows of first tokens and of decoding, context by context, or for all at once where a state has one size."""
    newest: Any = None  # the last state that was read
    for group in [contexts] if subject.constant else [(context,) for context in contexts]:
        ones = dict[int, Any]()
        for context in group:
            if context <= settings.read_tokens:
                times = time_calls(lambda context=context: subject.read(context), seconds=settings.seconds)
                newest = ones[context] = subject.read(context)
                yield {"what": "first token", "context": context, "milliseconds": 1e3 * statistics.median(times)}
        for batch in settings.batch_sizes:
            states = dict[int, Any]()
            for context in group:
                size = subject.state_bytes(batch, context)
                if size <= settings.max_gigabytes * 1e9:
                    one = ones[context] if context in ones else subject.place(newest, context)
                    states[context] = subject.repeat(one, batch)
                else:
                    reason = f"the state needs {size / 1e9:.1f} GB, the limit is {settings.max_gigabytes:g} GB"
                    yield {"what": "decode", "batch": batch, "context": context, "skipped": reason}
            steps = dict.fromkeys(states, subject.decode)
            for context, times in time_in_turn(steps, states, seconds=settings.seconds).items():
                median = statistics.median(times)
                yield {
                    "what": "decode",
                    "batch": batch,
                    "context": context,
                    "state_bytes": subject.state_bytes(batch, context),
                    "state": "read" if context in ones else "placed",
                    "milliseconds": 1e3 * median / settings.block_size,
                    "min_milliseconds": 1e3 * min(times) / settings.block_size,
                    "tokens_per_second": batch * settings.block_size / median,
                    "calls": len(times),
                }


def _summary(model: str, rows: Sequence[Row], first: int) -> dict[str, Any]:
    """Ratios: to the first context, and to softmax attention."""
    linear, softmax = (
        {
            (row["batch"], row["context"]): row["tokens_per_second"]
            for row in rows
            if (row["model"], row["kind"], row["what"]) == (model, kind, "decode") and "skipped" not in row
        }
        for kind in ("linear", "softmax")
    )
    return {
        "time_of_a_token_over_that_at_the_shortest_context": {
            f"batch {batch}, {context}": round(linear[batch, first] / speed, 3)
            for (batch, context), speed in linear.items()
            if context != first
        },
        "linear_over_softmax": {
            f"batch {batch}, {context}": round(linear[batch, context] / speed, 2)
            for (batch, context), speed in softmax.items()
            if (batch, context) in linear
        },
    }


def _panel(model: str, rows: Sequence[Row], settings: Settings) -> Panel:
    """Tokens per second."""
    lines = {
        f"{kind}, batch {batch}": [
            (row["context"], row["tokens_per_second"])
            for row in rows
            if (row["model"], row["kind"], row.get("batch")) == (model, kind, batch) and "skipped" not in row
        ]
        for kind in settings.kinds
        for batch in settings.batch_sizes
    }
    return Panel(model, "tokens per second", lines)


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


if __name__ == "__main__":
    main("inference", Settings(), run)
