"""Eight devices, however they are arranged, train as one does."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.distributed import MeshConfig, batch_sharding, make_mesh
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerConfig, TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.ops.hardware import interpret_kernels
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.config import Config, OptimizerConfig
from transnormer_jax.training.optimizer import make_optimizer, make_schedule
from transnormer_jax.training.placement import check_mesh, place_state
from transnormer_jax.training.step import TrainState, make_train_step

MESHES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(sizes) == 8]
BATCH, LENGTH, STEPS = 8, 64, 20


def make_task(backend: str = "auto", num_layers: int = 1) -> CausalLM:
    """Eight heads, so that `tensor` can be 8; a vocabulary that no axis divides."""
    sizes = {"num_layers": num_layers, "model_dim": 64, "num_heads": 8, "glu_dim": 128, "vocab_size": 97}
    config = {"lrpe_layers": tuple(range(num_layers)), "dtype": "float32", "init_std": 0.1, "backend": backend}
    return CausalLM(TransNormerLLM(TransNormerLLMConfig(**sizes | config)))


def make_batch(seed: int) -> dict[str, np.ndarray]:
    """Packed rows: one document, several that end inside parts of rows, padding before, between and after."""
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(0, 97, (2, BATCH, LENGTH), dtype=np.int32)
    segment_ids = np.sort(rng.integers(1, 6, (BATCH, LENGTH)), axis=1).astype(np.int32)
    segment_ids[0] = 1
    segment_ids[1, :20] = 0
    segment_ids[2, 30:] = 0
    segment_ids[3, 10:45] = 0
    return {"inputs": inputs, "targets": targets, "segment_ids": segment_ids}


def make_step(task: CausalLM, name: str, accumulation_steps: int):
    config = OptimizerConfig(name=name, learning_rate=1e-3, warmup_steps=2)
    schedule = make_schedule(config, STEPS)
    optimizer = make_optimizer(config, schedule)
    return optimizer, make_train_step(task, optimizer, schedule, accumulation_steps)


def train(step, state, put):
    """The state after the first step, and the losses of all."""
    first, curve = None, []
    for seed in range(STEPS):
        state, metrics = step(state, put(make_batch(seed % 4)))
        first = first or jax.device_get(state)
        curve.append(float(metrics.loss))
    return first, curve


@functools.cache
def init(name: str, num_layers: int) -> TrainState:
    task = make_task(num_layers=num_layers)
    optimizer, _ = make_step(task, name, accumulation_steps=1)

    def begin(key) -> TrainState:
        params = task.init(key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return jax.device_get(jax.jit(begin)(jax.random.key(0)))


@functools.cache
def on_one_device(name: str = "adamw", num_layers: int = 1):
    task = make_task(num_layers=num_layers)
    _, step = make_step(task, name, accumulation_steps=1)
    return train(jax.jit(step), init(name, num_layers), dict)


def on_mesh(sizes, name: str = "adamw", backend: str = "auto", num_layers: int = 1, accumulation_steps: int = 1):
    mesh, task = make_mesh(MeshConfig(*sizes)), make_task(backend, num_layers=num_layers)
    optimizer, step = make_step(task, name, accumulation_steps)
    shardings = jax.tree.map(lambda x: x.sharding, place_state(task, optimizer, mesh))

    def put(batch):
        return {key: jax.device_put(x, batch_sharding(mesh, x.shape)) for key, x in batch.items()}

    with jax.set_mesh(mesh):
        state = jax.device_put(init(name, num_layers), shardings)
        return train(jax.jit(step, out_shardings=(shardings, None)), state, put)


def assert_same(actual, expected):
    """Losses of 20 steps, and the gradient: Adam's first moment after one step is a multiple of it."""
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5)
    assert expected[1][-1] < 0.9 * expected[1][0]
    moments = [state.opt_state.inner_state[1][0].mu for state, _ in (actual, expected)]
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(moments[0]), jax.tree.leaves(moments[1]), strict=True):
        difference = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert difference < 1e-5, (jax.tree_util.keystr(path), difference)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_every_mesh_of_eight_trains_as_one_device(sizes):
    assert_same(on_mesh(sizes), on_one_device())


@pytest.mark.slow
def test_micro_batches_and_layers_on_a_mesh():
    """Two of each; one layer compiles in two thirds of the time."""
    actual = on_mesh((1, 2, 2, 2), num_layers=2, accumulation_steps=2)
    assert_same(actual, on_one_device(num_layers=2))


@pytest.mark.slow
def test_the_tpu_kernels_train_on_parts_of_rows():
    with interpret_kernels():
        assert_same(on_mesh((1, 2, 2, 2), backend="pallas_tpu"), on_one_device())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_optimizers_with_states_of_other_shapes(name):
    """Ten steps: both divide by what may be small, and rounding grows faster than under Adam."""
    (_, actual), (_, expected) = on_mesh((1, 2, 2, 2), name), on_one_device(name)
    np.testing.assert_allclose(actual[:10], expected[:10], rtol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "fields", "message"),
    [
        ({"data": 3}, {}, "does not fit 8 devices"),
        ({"fsdp": 3}, {}, "does not fit 8 devices"),
        ({"data": -1, "fsdp": -1}, {}, "does not fit 8 devices"),
        ({"data": 1, "tensor": 8}, {"num_heads": 4}, "num_heads = 4 must be a multiple of config.mesh.tensor = 8"),
        ({"data": 1, "tensor": 8}, {"glu_dim": 100}, "glu_dim = 100 must be a multiple of config.mesh.tensor = 8"),
        ({"data": 1, "context": 8}, {"sequence_length": 100}, "100 must be a multiple of config.mesh.context = 8"),
        ({"data": 8}, {"batch_size": 12}, "= 12 must be a multiple of config.mesh data x fsdp = 8"),
    ],
)
def test_a_mesh_that_does_not_divide_is_told(mesh, fields, message):
    run = {"batch_size": 16, "sequence_length": 64} | {
        key: fields[key] for key in ("batch_size", "sequence_length") if key in fields
    }
    model = {key: value for key, value in fields.items() if key not in run}
    sizes = {"num_layers": 1, "model_dim": 64, "num_heads": 8, "glu_dim": 128} | model
    config = Config(mesh=MeshConfig(**mesh), model=TransNormerLLMConfig(**sizes), **run)
    with pytest.raises(UserError, match=message):
        check_mesh(config, make_mesh(config.mesh))


def test_a_baseline_is_not_divided_over_tensor():
    config = Config(architecture="transnormer", model=TransNormerConfig.preset("tiny"), batch_size=16)
    with pytest.raises(UserError, match="'transnormer' cannot be divided over tensor or context"):
        check_mesh(config, make_mesh(MeshConfig(tensor=2)))
