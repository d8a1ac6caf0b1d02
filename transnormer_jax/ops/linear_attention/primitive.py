"""One operation with one custom gradient, under every backend.

A backend may bring its own backward pass, which may use what the forward pass saved; otherwise the chunked form's is
used, and no state per token is kept. JAX cannot differentiate kernels: for a gradient of a gradient, the chunked form
stands in for them.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jaxtyping import Array, Float

from transnormer_jax.ops.linear_attention import chunked
from transnormer_jax.ops.linear_attention.backends import BACKENDS
from transnormer_jax.ops.linear_attention.decay import LogDecay, State, log_decay_gradient
from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.vmap import fold_vmap


@dataclasses.dataclass(frozen=True)
class Options:
    """What is static about a call."""

    backend: str
    chunk_size: int | None


class Operands(NamedTuple):
    """The arrays of a call; `Backend` explains them."""

    q: Float[Array, "B N G K"]
    k: Float[Array, "B N G K"]
    v: Float[Array, "B N H V"]
    log_decay: LogDecay
    state: State
    segments: Segments | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(options: Options, operands: Operands) -> tuple[Float[Array, "B N H V"], State]:
    """Output in v's dtype and final state in float32."""
    return _forward(options, False, operands)[:2]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
    """A Python value among the residuals."""

    value: bool


def _attend_forward(options: Options, primals: Any) -> tuple[Any, Any]:
    operands = custom_vjp_primal_tree_values(primals)
    out, final, saved = _forward(options, True, operands)
    return (out, final), (operands, saved, _Static(primals.log_decay.perturbed))


def _attend_backward(options: Options, residuals: Any, cotangents: Any) -> tuple[Operands]:
    operands, saved, decay_gradient = residuals
    d_out, d_final = (
        jnp.zeros(x.shape, x.dtype) if isinstance(x, SymbolicZero) else jnp.asarray(x) for x in cotangents
    )
    return (_gradients(operands, _backward(options, decay_gradient.value, operands, saved, d_out, d_final)),)


attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)


def _gradients(operands: Operands, results: Any) -> Operands:
    """What `Backend.backward` returns, by operand."""
    dq, dk, dv, d_steps, d_state = results
    _, _, _, log_decay, state, segments = operands
    if d_steps is not None:
        d_steps = log_decay_gradient(d_steps, log_decay, segments, keep_starts=state.ndim == 5)
    return Operands(dq, dk, dv, d_steps, d_state, None)


def _forward(options: Options, save: bool, operands: Operands) -> tuple[Array, Array, Any]:
    backend = BACKENDS[options.backend]
    if backend.is_kernel:
        return _kernel_forward(options, save, operands)
    return backend.forward(*operands, chunk_size=options.chunk_size, save=save)


def _backward(
    options: Options, decay_gradient: bool, operands: Operands, saved: Any, d_out: Array, d_final: Array
) -> Any:
    backend = BACKENDS[options.backend]
    if backend.is_kernel:
        return _kernel_backward(options, decay_gradient, operands, saved, d_out, d_final)
    if backend.backward is None:
        return _chunked_backward(decay_gradient, operands, d_out, d_final)
    static: dict[str, Any] = {"decay_gradient": decay_gradient, "chunk_size": options.chunk_size}
    return backend.backward(*operands, saved, d_out, d_final, **static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kernel_forward(options: Options, save: bool, operands: Operands) -> tuple[Array, Array, Any]:
    call = functools.partial(BACKENDS[options.backend].forward, chunk_size=options.chunk_size, save=save)
    return fold_vmap(call)(*operands)


def _kernel_forward_forward(options: Options, save: bool, operands: Operands) -> tuple[Any, Any]:
    return _kernel_forward(options, save, operands), operands


def _kernel_forward_backward(options: Options, save: bool, operands: Operands, cotangents: Any) -> tuple[Operands]:
    del options, save
    return (_gradients(operands, _chunked_backward(True, operands, *cotangents[:2])),)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kernel_backward(
    options: Options, decay_gradient: bool, operands: Operands, saved: Any, d_out: Array, d_final: Array
) -> Any:
    backend = BACKENDS[options.backend]
    if backend.backward is None or operands.state.ndim == 5:
        return _chunked_backward(decay_gradient, operands, d_out, d_final)
    call = functools.partial(backend.backward, decay_gradient=decay_gradient, chunk_size=options.chunk_size)
    return fold_vmap(call)(*operands, saved, d_out, d_final)


def _kernel_backward_forward(options: Options, decay_gradient: bool, operands: Operands, *rest: Any) -> tuple[Any, Any]:
    return _kernel_backward(options, decay_gradient, operands, *rest), (operands, *rest)


def _kernel_backward_backward(options: Options, decay_gradient: bool, residuals: Any, cotangents: Any) -> Any:
    del options
    operands, saved, d_out, d_final = residuals
    pull_back = jax.vjp(functools.partial(_chunked_backward, decay_gradient), operands, d_out, d_final)[1]
    d_operands, *d_cotangents = pull_back(cotangents)
    return d_operands, jax.tree.map(jnp.zeros_like, saved), *d_cotangents


_kernel_forward.defvjp(_kernel_forward_forward, _kernel_forward_backward)
_kernel_backward.defvjp(_kernel_backward_forward, _kernel_backward_backward)


def _chunked_backward(decay_gradient: bool, operands: Operands, d_out: Array, d_final: Array) -> Any:
    """The backward pass of the chunked form, from the operands alone."""
    _, _, saved = chunked.forward(*operands, save=True)
    return chunked.backward(*operands, saved, d_out, d_final, decay_gradient=decay_gradient)
