"""Gradients of a small model on CPUs of several hosts: parameters gathered in one message, gradients summed in one.

On TPUs and GPUs, XLA joins the arrays of a collective. On CPUs each array goes over TCP by itself and waits for the one
before, two round trips each: with 50 ms between two hosts, a step of 28,000 parameters took 5 s. Here every device
makes all parameters one array for the gather, and gradients and counts one array for the sum.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from transnormer_jax.distributed import batch_sharding
from transnormer_jax.tasks import Batch, LossSums, Params

# Beyond this, the time of a message is that of its bytes, and the model should not be whole on every device.
MAX_BYTES = 2**28
_AXES = ("data", "fsdp")

# (params, batch, key) -> gradient of the summed loss, and the sums.
Gradient = Callable[[Params, Batch, Array], tuple[Params, LossSums]]


def saves_messages(params: Params, mesh: Mesh) -> bool:
    """Whether the devices are CPUs of several processes that split rows and parameters alone, of a small model."""
    devices = mesh.devices.flat
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    return (
        devices[0].platform == "cpu"
        and len({device.process_index for device in devices}) > 1
        and math.prod(mesh.shape[axis] for axis in _AXES) == mesh.size
        and size <= MAX_BYTES
    )


def joined(gradient: Gradient, layout: Any) -> Gradient:
    """The function on each device's own rows, for a mesh that splits rows and parameters alone.

    Args:
      gradient: of the rows of one device. It must draw no random numbers: each device would draw the same.
      layout: shardings of the parameters.

    Returns:
      The same function of parameters so divided and of whole batches; its results are equal up to rounding.
    """
    shardings, tree = jax.tree.flatten(layout)
    mesh, specs = shardings[0].mesh, [sharding.spec for sharding in shardings]

    def on_device(params: Params, batch: Batch, key: Array) -> tuple[Params, LossSums]:
        shards = jax.tree.leaves(params)
        gradients, sums = gradient(jax.tree.unflatten(tree, _gathered(shards, specs)), batch, key)
        whole = jax.tree.leaves(gradients)
        total = jax.lax.psum(_flat([*whole, *sums]), _AXES)
        *whole, loss, predictions, correct, tokens = _split(total, [*whole, *sums])
        own = [_own(x, spec) for x, spec in zip(whole, specs, strict=True)]
        return jax.tree.unflatten(tree, own), LossSums(loss, predictions, correct, tokens)

    def call(params: Params, batch: Batch, key: Array) -> tuple[Params, LossSums]:
        spec_tree = jax.tree.unflatten(tree, specs)
        rows = {name: batch_sharding(mesh, x.shape).spec for name, x in batch.items()}
        whole = PartitionSpec()
        on_mesh = jax.shard_map(
            on_device, in_specs=(spec_tree, rows, whole), out_specs=(spec_tree, whole), check_vma=False
        )
        return on_mesh(params, dict(batch), key)

    return call


def _gathered(shards: list[Array], specs: list[PartitionSpec]) -> list[Array]:
    """Whole parameters from each device's shards; those that are not divided over `fsdp` are whole already."""
    dimensions = [_divided(spec) for spec in specs]
    divided = [shard for shard, dimension in zip(shards, dimensions, strict=True) if dimension is not None]
    if not divided:
        return shards
    parts = jax.lax.all_gather(_flat(divided), "fsdp")  # [devices, numbers]
    stacked = iter(jax.vmap(lambda part: _split(part, divided))(parts))
    return [
        shard if dimension is None else jnp.concatenate(list(next(stacked)), axis=dimension)
        for shard, dimension in zip(shards, dimensions, strict=True)
    ]


def _own(whole: Array, spec: PartitionSpec) -> Array:
    """This device's shard."""
    dimension = _divided(spec)
    if dimension is None:
        return whole
    size = whole.shape[dimension] // jax.lax.axis_size("fsdp")
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index("fsdp") * size, size, dimension)


def _divided(spec: PartitionSpec) -> int | None:
    """The dimension that is sharded over `fsdp`, if there is one."""
    return next((i for i, axes in enumerate(spec) if axes == "fsdp" or "fsdp" in (axes or ())), None)


def _flat(arrays: list[Array]) -> Float[Array, " numbers"]:
    return jnp.concatenate([x.astype(jnp.float32).reshape(-1) for x in arrays])


def _split(flat: Array, like: list[Array]) -> list[Array]:
    """Undoes `_flat`."""
    ends = [sum(x.size for x in like[: i + 1]) for i in range(len(like))]
    return [flat[end - x.size : end].reshape(x.shape).astype(x.dtype) for x, end in zip(like, ends, strict=True)]
