"""One operation with one custom gradient, under every backend.

A backend may bring its own backward pass, which may use what the forward pass saved; otherwise the chunked form's is
used, and no state per token is kept. JAX cannot differentiate kernels: for a gradient of a gradient, the chunked form
stands in for them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jaxtyping import Float

from transnormer_jax.ops.linear_attention import chunked
from transnormer_jax.ops.linear_attention.backends import BACKENDS
from transnormer_jax.ops.linear_attention.decay import log_decay_gradient
from transnormer_jax.ops.linear_attention.operands import Gradients, Operands, State


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(backend: str, chunk_size: int | None, operands: Operands) -> tuple[Float[Array, "B N H V"], State]:
    """Output in v's dtype and final state in float32."""
    return _forward(backend, chunk_size, operands, save=False)[:2]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
    """A Python value among the residuals."""

    value: bool


def _attend_forward(backend: str, chunk_size: int | None, primals: Any) -> tuple[Any, Any]:
    operands = custom_vjp_primal_tree_values(primals)
    out, final, saved = _forward(backend, chunk_size, operands, save=True)
    return (out, final), (operands, saved, _Static(primals.log_decay.perturbed))


def _attend_backward(backend: str, chunk_size: int | None, residuals: Any, cotangents: Any) -> tuple[Any]:
    operands, saved, decay_gradient = residuals
    d_out, d_final = (
        jnp.zeros(x.shape, x.dtype) if isinstance(x, SymbolicZero) else jnp.asarray(x) for x in cotangents
    )
    backward = functools.partial(_backward, backend, chunk_size, decay_gradient.value)
    dq, dk, dv, d_decay, d_state = backward(operands, saved, d_out, d_final)
    if d_decay is not None:
        per_document = operands.state.ndim == 5
        d_decay = log_decay_gradient(d_decay, operands.log_decay, operands.segments, keep_starts=per_document)
    return (operands._replace(q=dq, k=dk, v=dv, log_decay=d_decay, state=d_state, segments=None),)


attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)


def _forward(name: str, chunk_size: int | None, operands: Operands, *, save: bool) -> tuple[Array, Array, Any]:
    backend = BACKENDS[name]
    forward = functools.partial(backend.forward, chunk_size=chunk_size, save=save)
    if not backend.is_kernel:
        return forward(operands)
    return _kernel(forward, functools.partial(attend, "chunked", None), operands)


def _backward(name: str, chunk_size: int | None, decay_gradient: bool, operands: Operands, *rest: Any) -> Gradients:
    backend = BACKENDS[name]
    plain = functools.partial(_chunked_backward, decay_gradient)
    if backend.backward is None or (backend.is_kernel and operands.state.ndim == 5):
        return plain(operands, *rest)
    backward = functools.partial(backend.backward, decay_gradient=decay_gradient, chunk_size=chunk_size)
    return _kernel(backward, plain, operands, *rest) if backend.is_kernel else backward(operands, *rest)


def _chunked_backward(decay_gradient: bool, operands: Operands, saved: Any, d_out: Array, d_final: Array) -> Gradients:
    """The backward pass of the chunked form, from the operands alone."""
    _, _, saved = chunked.forward(operands, save=True)
    return chunked.backward(operands, saved, d_out, d_final, decay_gradient=decay_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kernel(kernel: Callable[..., Any], plain: Callable[..., Any], *arguments: Any) -> Any:
    """A kernel, with the derivatives of `plain`; what only the kernel returns, at the end, has none."""
    return _fold_vmap(kernel)(*arguments)


def _kernel_forward(kernel: Callable[..., Any], plain: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    return _kernel(kernel, plain, *arguments), arguments


def _kernel_backward(_: Any, plain: Callable[..., Any], arguments: Any, cotangents: Any) -> Any:
    results, pull_back = jax.vjp(plain, *arguments)
    leaves, tree = jax.tree.flatten(results)
    return pull_back(jax.tree.unflatten(tree, jax.tree.leaves(cotangents)[: len(leaves)]))


_kernel.defvjp(_kernel_forward, _kernel_backward)


def _fold_vmap(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel of `Operands` and more trees of arrays that can be mapped: what it is mapped over becomes more rows."""

    @jax.custom_batching.custom_vmap
    def call(*arguments: Any) -> Any:
        return kernel(*arguments)

    @call.def_vmap
    def _(size: int, mapped: list[Any], *arguments: Any) -> tuple[Any, Any]:
        log_decay = arguments[0].log_decay
        constant = log_decay.ndim - mapped[0].log_decay == 1
        arguments = jax.tree.map(lambda x, m: x if m else jnp.broadcast_to(x, (size, *x.shape)), [*arguments], mapped)
        if constant and mapped[0].log_decay:  # each call has another decay
            out = jax.lax.map(lambda x: call(*x), arguments)
        else:
            operands, *others = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), arguments)
            if constant:
                operands = operands._replace(log_decay=log_decay)
            out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), call(operands, *others))
        return out, jax.tree.map(lambda _: True, out)

    return call
