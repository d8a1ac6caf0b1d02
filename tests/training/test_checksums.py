"""Checksums do not depend on sharding, and notice every changed byte."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from transnormer_jax.training.checksums import CorruptError, checksums, verify

ARRAYS = {
    "matrix": np.random.default_rng(0).standard_normal((16, 24, 8)).astype(np.float32),
    "half": np.random.default_rng(1).standard_normal((40, 3)).astype(jnp.bfloat16),
    "count": np.array(7, np.int32),
    "flags": np.array([True, False, True]),
    "empty": np.zeros((0, 4), np.float32),
}


def test_a_sum_that_can_be_computed_by_hand():
    assert checksums([np.array([5, 7, 11], np.int32)]) == [f"int32:{5 * 1 + 7 * 3 + 11 * 5}"]
    assert checksums([np.array([-1], np.int32)]) == [f"int32:{2**32 - 1}"]


def test_the_same_on_hosts_and_on_devices_of_every_sharding():
    expected = checksums(ARRAYS)
    assert checksums(jax.device_put(ARRAYS)) == expected
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    for spec in (PartitionSpec("a", "b"), PartitionSpec("b", None, "a"), PartitionSpec(None, ("a", "b"))):
        sharded = jax.device_put(ARRAYS["matrix"], NamedSharding(mesh, spec))
        assert checksums([sharded]) == checksums([ARRAYS["matrix"]])


@pytest.mark.parametrize("name", ["matrix", "half", "count", "flags"])
def test_any_flipped_bit_is_noticed_and_its_array_named(name):
    expected = checksums(ARRAYS)
    rng = np.random.default_rng(2)
    for _ in range(20):
        torn = {key: x.copy() for key, x in ARRAYS.items()}
        bits = torn[name].reshape(-1).view(np.uint8)
        bits[rng.integers(len(bits))] ^= 1 << rng.integers(8) if name != "flags" else 1
        with pytest.raises(CorruptError, match=name):
            verify(torn, expected)
    verify(ARRAYS, expected)


def test_an_array_that_was_read_as_another_dtype_is_not_compared():
    verify([ARRAYS["matrix"].astype(np.float16)], checksums([ARRAYS["matrix"]]))
