"""What `benchmarks.tpu_schedule` compiles: the operator alone, between projections, and in the model's layer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from transnormer_jax.layers.gated_linear_attention import GatedLinearAttention

from benchmarks.least_bytes import least_bytes
from benchmarks.tpu_compiler import Job
from transnormer_jax.ops.linear_attention import linear_attention

_MODEL_DIM = 2048
_BACKEND = "pallas_tpu"

type _Function = Callable[..., Array]
type _Operands = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A use of the operator with q, k [B, N, H, K] and v [B, N, H, V].

    Attributes:
      around: "nothing"; "projections" from [B, N, 2048] to q, k and v and back; or the model's "layer", which is one
        with LRPE where K = 2V.
      training: whether the gradients of all floating-point operands are taken, too, but that of a constant decay.
      gates: whether there is a decay per token and head, not a constant one per head.
      documents: whether rows are packed documents.
      states: number of documents of a row whose states are given and returned, or 0.
      batch: rows B.
      num_tokens: tokens N.
      heads: heads H.
      key_dim: features K.
      value_dim: features V.
      dtype: of q, k and v.
    """

    around: str = "nothing"
    training: bool = False
    gates: bool = False
    documents: bool = False
    states: int = 0
    batch: int = 8
    num_tokens: int = 8192
    heads: int = 32
    key_dim: int = 128
    value_dim: int = 128
    dtype: str = "bfloat16"

    @property
    def token_heads(self) -> int:
        """B N H."""
        return self.batch * self.num_tokens * self.heads

    def least_bytes(self, role: str) -> int:
        """The bytes that "forward" or "backward" cannot avoid to move."""
        states = 2 * 4 * self.batch * self.states * self.heads * self.key_dim * self.value_dim
        itemsize = jnp.dtype(self.dtype).itemsize
        return states + least_bytes(role, self.token_heads, self.key_dim, self.value_dim, itemsize)


_TRAINING = Program(training=True)
_GATES = dataclasses.replace(_TRAINING, gates=True)
_PREFILL = Program(documents=True, batch=1, num_tokens=16384, heads=64)
_LONG = Program(training=True, batch=1, num_tokens=131072, heads=16)
# XLA hands a program operands of such an N with B among the tiles, and copies them: that is no copy in a model.
_RAGGED = Program(training=True, documents=True, num_tokens=4100, heads=16)

PROGRAMS = {
    "forward": Program(),
    "forward_64": Program(key_dim=64, value_dim=64),
    "training": _TRAINING,
    "training_64": dataclasses.replace(_TRAINING, key_dim=64, value_dim=64),
    "training_lrpe": dataclasses.replace(_TRAINING, key_dim=128, value_dim=64),
    "training_documents": dataclasses.replace(_TRAINING, documents=True),
    "training_gates": _GATES,
    "training_gates_64": dataclasses.replace(_GATES, key_dim=64, value_dim=64),
    "training_gates_documents": dataclasses.replace(_GATES, documents=True),
    "prefill": _PREFILL,
    **{f"prefill_states_{n}": dataclasses.replace(_PREFILL, states=n) for n in (1, 4, 16)},
    "training_float32": dataclasses.replace(_TRAINING, dtype="float32"),
    "projections": Program("projections"),
    "projections_training": Program("projections", training=True),
    "layer_training": Program("layer", training=True, heads=16),
    "layer_training_lrpe": Program("layer", training=True, key_dim=128, value_dim=64),
    **{
        f"{name}_{size}_{dtype}": dataclasses.replace(program, key_dim=size, value_dim=size, dtype=dtype)
        for name, program, sizes in (("long", _LONG, (64, 128, 192)), ("ragged", _RAGGED, (32, 96, 256)))
        for size in sizes
        for dtype in ("bfloat16", "float32")
    },
}


def program_job(generation: str, program: Program) -> Job:
    """What `compile_programs` takes."""
    turns = program.states - 1 if program.states else None  # one for each border between documents
    return Job(generation, f"{build.__module__}:{build.__name__}", dataclasses.asdict(program), turns)


def build(**fields: Any) -> tuple[Callable[..., Any], _Operands]:
    """Returns the function of `Program(**fields)`, and its operands as `jax.ShapeDtypeStruct`s."""
    program = Program(**fields)
    kinds = {"nothing": _alone, "projections": _between_projections, "layer": _layer}
    function, differentiable = kinds[program.around](program)
    tokens, state = (program.batch, program.num_tokens), (program.heads, program.key_dim, program.value_dim)
    # The decay, and the documents and their states if there are any.
    more = [jax.ShapeDtypeStruct((*tokens, program.heads) if program.gates else (program.heads,), jnp.float32)]
    if program.documents:
        more.append(jax.ShapeDtypeStruct(tokens, jnp.int32))
    if program.states:
        more.append(jax.ShapeDtypeStruct((program.batch, program.states, *state), jnp.float32))
    if not program.training:
        return function, (*differentiable, more)

    def training(*operands: Any) -> Any:
        *inputs, (decay, *others), cotangent = operands
        if program.gates:
            out, pullback = jax.vjp(lambda decay, *inputs: function(*inputs, [decay, *others]), decay, *inputs)
        else:
            out, pullback = jax.vjp(lambda *inputs: function(*inputs, [decay, *others]), *inputs)
        return out, pullback(cotangent)

    return training, (*differentiable, more, jax.eval_shape(function, *differentiable, more))


def _alone(program: Program) -> tuple[_Function, _Operands]:
    """The operator on what a projection leaves, [B, N, H * K]: a TPU lays [B, N, H, K] out differently in memory."""

    def function(q: Array, k: Array, v: Array, more: list[Array]) -> Array:
        return _attend(program, [q, k, v], more)

    return function, tuple(_tokens(program, program.heads * size) for size in _feature_sizes(program))


def _between_projections(program: Program) -> tuple[_Function, _Operands]:
    def function(x: Array, weights: list[Array], back: Array, more: list[Array]) -> Array:
        return _attend(program, [x @ weight for weight in weights], more) @ back

    widths = [program.heads * size for size in _feature_sizes(program)]
    weights = [jax.ShapeDtypeStruct((_MODEL_DIM, width), program.dtype) for width in widths]
    back = jax.ShapeDtypeStruct((widths[-1], _MODEL_DIM), program.dtype)
    return function, (_tokens(program, _MODEL_DIM), weights, back)


def _layer(program: Program) -> tuple[_Function, _Operands]:
    layer = GatedLinearAttention(
        num_heads=program.heads,
        head_dim=program.value_dim,
        use_lrpe=program.key_dim == 2 * program.value_dim,
        activation="silu",
        use_bias=False,
        norm_eps=1e-6,
        init_std=0.02,
        dtype=jnp.dtype(program.dtype),
        param_dtype=jnp.dtype(program.dtype),
        backend=_BACKEND,
    )
    position = jnp.arange(program.num_tokens)[None]

    def function(parameters: Any, x: Array, more: list[Array]) -> Array:
        log_decay, documents, _ = _decay_and_documents(more)
        return layer.apply(parameters, x, log_decay, position, documents, None)[0]

    x, log_decay = _tokens(program, _MODEL_DIM), jax.ShapeDtypeStruct((program.heads,), jnp.float32)
    parameters = jax.eval_shape(
        lambda key, x, log_decay: layer.init(key, x, log_decay, position, None, None), jax.random.key(0), x, log_decay
    )
    return function, (parameters, x)


def _attend(program: Program, flat: list[Array], more: list[Array]) -> Array:
    q, k, v = (x.reshape(*x.shape[:2], program.heads, -1) for x in flat)
    log_decay, documents, states = _decay_and_documents(more)
    out, _ = linear_attention(
        q,
        k,
        v,
        log_decay,
        initial_state=states,
        segment_ids=documents,
        max_segments=program.states or None,
        backend=_BACKEND,
    )
    return out.reshape(*out.shape[:2], -1)


def _decay_and_documents(more: list[Array]) -> list[Any]:
    """The decay, the documents or None, and their states or None."""
    return [*more, None, None][:3]


def _feature_sizes(program: Program) -> tuple[int, int, int]:
    return program.key_dim, program.key_dim, program.value_dim


def _tokens(program: Program, width: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((program.batch, program.num_tokens, width), program.dtype)
