"""Cross-entropy over a large vocabulary, in slices of the sequence, on each device for its own tokens."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from transnormer_jax.distributed import RULES, auto_axes, that_divide
from transnormer_jax.tasks.task import LossSums

# Logits that exist at one time on a device, in numbers: at a vocabulary of 64,000 this is 1,024 tokens and 256 MB.
_MAX_LOGITS = 2**26


def cross_entropy_sums(
    unembed: Callable[[Any, Array], Array],
    readout: Any,
    hidden: Float[Array, "B N D"],
    targets: Array,
    weights: Float[Array, "B N"],
    vocab_size: int,
) -> LossSums:
    """Cross-entropy of `unembed(readout, hidden)` [B, N, V] with targets [B, N], by slices of the sequence.

    The logits of a slice are made again in the backward pass, so that all of them never exist at one time. On a mesh
    each device slices its own tokens, and the gradient of `readout` is summed over devices once: if XLA divided the
    loop over slices, it would sum it in every slice.

    Args:
      unembed: (readout, [b, n, D]) -> logits [b, n, V] float32.
      readout: parameters that `unembed` reads.
      weights: [B, N], 0 where there is nothing to predict.
    """
    mesh = auto_axes()
    rows = RULES.spec(("batch", "sequence"), targets.shape, mesh)
    manual = tuple(axis for axis in (*RULES.batch, *RULES.sequence) if mesh.get(axis, 1) > 1)
    split_vocab = math.prod(mesh[axis] for axis in that_divide(vocab_size, RULES.vocab, mesh))
    # Axes that do not divide the batch or the sequence do the same work many times, and must not count it so.
    counted = tuple(axis for axis in manual if any(axis in (entry or ()) for entry in map(_as_tuple, rows)))
    if not manual:
        return _sums_by_slices(unembed, readout, hidden, targets, weights, vocab_size // split_vocab)

    # Nothing is summed inside `shard_map`: XLA cannot compile a bfloat16 sum there for CPUs while `tensor` is left to
    # it. So each device gets a copy of `readout` of its own, and returns sums of its own.
    def on_device(readout: Any, hidden: Array, targets: Array, weights: Array) -> Array:
        own = jax.tree.map(lambda x: x[0], readout)
        sums = _sums_by_slices(unembed, own, hidden, targets, weights, vocab_size // split_vocab)
        return jnp.stack(sums)[None]

    devices = math.prod(mesh[axis] for axis in manual)
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (devices, *x.shape)), readout)
    in_specs = (PartitionSpec(manual), PartitionSpec(*rows, None), rows, rows)
    on_mesh = jax.shard_map(
        on_device, in_specs=in_specs, out_specs=PartitionSpec(counted or None), axis_names=set(manual), check_vma=False
    )
    return LossSums(*jnp.sum(on_mesh(copies, hidden, targets, weights), axis=0))


def _sums_by_slices(
    unembed: Callable[[Any, Array], Array], readout: Any, hidden: Array, targets: Array, weights: Array, vocab_size: int
) -> LossSums:
    def slice_sums(readout: Any, hidden: Array, targets: Array, weights: Array) -> LossSums:
        logits = unembed(readout, hidden)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        correct = jnp.argmax(logits, axis=-1) == targets
        count = jnp.sum(weights)
        return LossSums(jnp.sum(loss * weights), count, jnp.sum(correct * weights), count)

    batch, length = targets.shape
    slices = _num_slices(length, batch * length * vocab_size)
    if slices == 1:
        return slice_sums(readout, hidden, targets, weights)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(batch, slices, length // slices, *x.shape[2:]), 1, 0)

    def add(total: LossSums, one: tuple[Array, ...]) -> tuple[LossSums, None]:
        return jax.tree.map(jnp.add, total, jax.checkpoint(slice_sums)(readout, *one)), None

    return jax.lax.scan(add, LossSums.zero(), (split(hidden), split(targets), split(weights)))[0]


def _num_slices(length: int, num_logits: int) -> int:
    """The fewest equal slices of the sequence whose logits stay within the bound (one token each, at the least)."""
    return next(n for n in range(1, length + 1) if length % n == 0 and (num_logits // n <= _MAX_LOGITS or n == length))


def _as_tuple(entry: Any) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
