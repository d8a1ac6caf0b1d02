"""What the processes of a run do together: wait, hear the first one, agree. One process alone agrees with itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@contextmanager
def first_process_first(name: str) -> Iterator[None]:
    """Process 0 does what is inside, then all others: it fills a cache that they read. All or none of them call it."""
    if jax.process_index() == 0:
        try:
            yield
        finally:
            meet(name)
    else:
        meet(name)
        yield


def meet(name: str) -> None:
    """Waits until all processes are here; `name` is the same on all of them."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def first_process_says(number: int) -> int:
    """What process 0 passes (int32), on all processes."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def all_agree(flag: bool) -> bool:
    """Whether every process passes True; the same answer on all."""
    if jax.process_count() == 1:
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.bool_(flag))))


class AnyProcess:
    """Whether any process raises its flag, asked by all once a step: the same answer on all, at the same step.

    On several processes that is the answer to the question of one step before, so that no device waits for the host.
    """

    def __init__(self, mesh: Mesh):
        """Asks nothing yet."""
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._previous: jax.Array | None = None

    def __call__(self, flag: bool) -> bool:
        """Passes this process's flag."""
        if jax.process_count() == 1:
            return flag
        shape = (self._sharding.mesh.size,)
        flags_ = jax.make_array_from_callback(shape, self._sharding, lambda _: np.array([flag]))
        previous, self._previous = self._previous, self._any(flags_)
        return previous is not None and bool(previous)
