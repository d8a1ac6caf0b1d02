"""What devices send each other in a training step: few messages beside parameters and gradients, in every dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.distributed import MeshConfig, batch_sharding, make_mesh
from transnormer_jax.distributed.hlo import Module
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.config import OptimizerConfig
from transnormer_jax.training.joined_gradients import saves_messages
from transnormer_jax.training.optimizer import make_optimizer, make_schedule
from transnormer_jax.training.placement import place_state
from transnormer_jax.training.step import TrainState, make_train_step

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def make_task(dtype: str = "bfloat16") -> CausalLM:
    sizes = {"num_layers": 1, "model_dim": 32, "num_heads": 4, "glu_dim": 64, "vocab_size": 96}
    return CausalLM(TransNormerLLM(TransNormerLLMConfig(**sizes, dtype=dtype, init_std=0.1)))


def make_batch() -> dict[str, np.ndarray]:
    inputs, targets = np.random.default_rng(0).integers(3, 96, (2, 8, 32), dtype=np.int32)
    segment_ids = np.repeat(np.arange(1, 33) <= np.arange(4, 36, 4)[:, None], 1, axis=0).astype(np.int32)
    return {"inputs": inputs, "targets": targets, "segment_ids": segment_ids}


def compiled_step(sizes: dict[str, int], dtype: str = "bfloat16", *, join: bool = False, steps: int = 1):
    """The compiled step on the first devices, its state and its batch."""
    task, config = make_task(dtype), OptimizerConfig(warmup_steps=2)
    schedule = make_schedule(config, 20)
    optimizer = make_optimizer(config, schedule)
    mesh = make_mesh(MeshConfig(**{"fsdp": 1} | sizes), jax.devices()[: int(np.prod(list(sizes.values())))])
    shardings = jax.tree.map(lambda x: x.sharding, place_state(task, optimizer, mesh))
    step = make_train_step(task, optimizer, schedule, steps, layout=shardings.params, join=join)

    def begin(key) -> TrainState:
        params = task.init(key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    state = jax.device_put(jax.jit(begin)(jax.random.key(0)), shardings)
    batch = {name: jax.device_put(x, batch_sharding(mesh, x.shape)) for name, x in make_batch().items()}
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, out_shardings=(shardings, None)).lower(state, batch).compile()
    return compiled, state, batch


def messages(compiled) -> list[tuple[str, int]]:
    """Every collective of the program: its kind, and the numbers that it sends."""
    return [
        (one.operation, sum(int(np.prod(array.shape)) for array in one.results))
        for run in Module(compiled.as_text()).runs()
        for one in run.computation.values()
        if one.operation in _COLLECTIVES
    ]


@functools.cache
def gradient(*sizes: tuple[str, int], dtype: str = "bfloat16", join: bool = False, steps: int = 1):
    """Adam's first moment after one step, which is a multiple of the gradient; and what the step reports."""
    compiled, state, batch = compiled_step(dict(sizes), dtype, join=join, steps=steps)
    state, metrics = compiled(state, batch)
    return jax.device_get((state.opt_state.inner_state[1][0].mu, metrics))


def assert_close(actual, expected, tolerance: float):
    for a, b in zip(jax.tree.leaves(actual[0]), jax.tree.leaves(expected[0]), strict=True):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)
    for name in ("loss", "grad_norm", "predictions", "correct", "tokens"):
        expected_value = getattr(expected[1], name)
        np.testing.assert_allclose(getattr(actual[1], name), expected_value, rtol=tolerance, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"data": 2, "fsdp": 2}, id="data x fsdp"),
        pytest.param({"fsdp": 2, "context": 2, "tensor": 2}, id="fsdp x context x tensor"),
    ],
)
def test_bfloat16_trains_on_simulated_devices(sizes):
    """XLA ends the process where a bfloat16 sum stands in a shard_map that leaves an axis to it."""
    actual = gradient(*sizes.items())
    # Rounding of partial sums; two of the devices may be right about a token that the other sum has wrong.
    expected = gradient(("data", 1))
    for a, b in zip(jax.tree.leaves(actual[0]), jax.tree.leaves(expected[0]), strict=True):
        assert np.linalg.norm(a - b) <= 0.03 * np.linalg.norm(b)
    np.testing.assert_allclose(actual[1].loss, expected[1].loss, rtol=1e-2)
    assert actual[1].predictions == expected[1].predictions == make_batch()["segment_ids"].sum()


@pytest.mark.slow
def test_beside_parameters_and_gradients_two_sums_are_sent():
    """The loss and its counts, and the norm of the gradient; XLA may send the former along with the gradient."""
    compiled, _, _ = compiled_step({"data": 2, "fsdp": 2}, "float32")
    small = [one for one in messages(compiled) if one[1] < 8]
    assert len(small) <= 2, small
    assert {kind for kind, _ in small} <= {"all-reduce"}


@pytest.mark.slow
def test_joined_gradients_are_one_gather_and_one_sum():
    sizes = {"data": 2, "fsdp": 2}
    compiled, _, _ = compiled_step(sizes, "float32", join=True)
    large = [kind for kind, size in messages(compiled) if size >= 8]
    assert sorted(large) == ["all-gather", "all-reduce"]
    assert len(messages(compiled)) <= len(large) + 1
    for steps in (1, 2):
        actual = gradient(*sizes.items(), dtype="float32", join=True, steps=steps)
        assert_close(actual, gradient(("data", 1), dtype="float32"), 1e-5)


def test_gradients_are_joined_between_cpus_of_several_processes_only():
    """These devices are of one process; the tests of several processes train by the other way."""
    params = {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
    assert not saves_messages(params, make_mesh(MeshConfig()))
