"""Eight devices, however they are arranged, train as one does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.distributed import MeshConfig, batch_sharding, make_mesh
from transnormer_jax.errors import UserError
from transnormer_jax.models import LanguageModel, ModelConfig, TransNormerConfig, TransNormerLLMConfig
from transnormer_jax.ops.hardware import interpret_kernels
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.config import Config, OptimizerConfig
from transnormer_jax.training.optimizer import make_optimizer, make_schedule
from transnormer_jax.training.placement import check_mesh, place_state
from transnormer_jax.training.step import TrainState, make_train_step

# Each axis over all devices but `data`, which sums as `fsdp` does, and each pair of axes together.
MESHES = [(1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8), (2, 2, 2, 1), (2, 1, 2, 2), (1, 2, 2, 2)]
BATCH, LENGTH, STEPS = 8, 64, 20


SIZES = {"model_dim": 64, "num_heads": 8, "vocab_size": 97, "dtype": "float32"}
# Eight heads, so that `tensor` can be 8; a vocabulary that no axis divides.
ONE_LAYER = TransNormerLLMConfig(num_layers=1, glu_dim=128, lrpe_layers=(0,), init_std=0.1, **SIZES)
TWO_LAYERS = ONE_LAYER.replace(num_layers=2, lrpe_layers=(0, 1))
TRANSNORMER = TransNormerConfig(num_layers=2, feed_forward_dim=128, block_size=16, dropout=0.0, **SIZES)


def make_task(model: ModelConfig) -> CausalLM:
    return CausalLM(LanguageModel(model))


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
def init(name: str, model: ModelConfig) -> TrainState:
    task = make_task(model)
    optimizer, _ = make_step(task, name, accumulation_steps=1)

    def begin(key) -> TrainState:
        params = task.init(key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return jax.device_get(jax.jit(begin)(jax.random.key(0)))


@functools.cache
def on_one_device(name: str = "adamw", model: ModelConfig = ONE_LAYER):
    _, step = make_step(make_task(model), name, accumulation_steps=1)
    return train(jax.jit(step), init(name, model), dict)


def on_mesh(
    sizes, name: str = "adamw", model: ModelConfig = ONE_LAYER, *, backend: str = "auto", accumulation_steps: int = 1
):
    mesh, task = make_mesh(MeshConfig(*sizes)), make_task(model.replace(backend=backend))
    optimizer, step = make_step(task, name, accumulation_steps)
    shardings = jax.tree.map(lambda x: x.sharding, place_state(task, optimizer, mesh))

    def put(batch):
        return {key: jax.device_put(x, batch_sharding(mesh, x.shape)) for key, x in batch.items()}

    with jax.set_mesh(mesh):
        state = jax.device_put(init(name, model), shardings)
        return train(jax.jit(step, out_shardings=(shardings, None)), state, put)


def assert_same(actual, expected):
    """Losses of 20 steps, and the gradient: Adam's first moment after one step is a multiple of it."""
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5)
    assert expected[1][-1] < 0.9 * expected[1][0]
    moments = [state.opt_state.inner_state[1][0].mu for state, _ in (actual, expected)]
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(moments[0]), jax.tree.leaves(moments[1]), strict=True):
        difference, norm = np.linalg.norm(a - b), np.linalg.norm(b)  # 0 for what is not trained
        assert difference <= 1e-5 * norm, (jax.tree_util.keystr(path), difference, norm)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_every_mesh_of_eight_trains_as_one_device(sizes):
    assert_same(on_mesh(sizes), on_one_device())


@pytest.mark.slow
def test_micro_batches_and_layers_on_a_mesh():
    """Two of each; one layer compiles in two thirds of the time."""
    actual = on_mesh((2, 2, 1, 2), model=TWO_LAYERS, accumulation_steps=2)
    assert_same(actual, on_one_device(model=TWO_LAYERS))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 8, 1, 1), (1, 2, 2, 2)], ids=lambda sizes: "x".join(map(str, sizes)))
def test_transnormer_trains_on_a_mesh_as_on_one_device(sizes):
    assert_same(on_mesh(sizes, model=TRANSNORMER), on_one_device(model=TRANSNORMER))


@pytest.mark.slow
def test_the_tpu_kernels_train_on_parts_of_rows():
    with interpret_kernels():
        assert_same(on_mesh((1, 2, 2, 2), backend="pallas_tpu"), on_one_device())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_optimizers_with_states_of_other_shapes(name):
    """Ten steps: both divide by what may be small, and rounding grows faster than under Adam."""
    (_, actual), (_, expected) = on_mesh((1, 4, 1, 2), name), on_one_device(name)
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
def test_a_mesh_that_does_not_divide_is_refused(mesh, fields, message):
    run = {"batch_size": 16, "sequence_length": 64} | {
        key: fields[key] for key in ("batch_size", "sequence_length") if key in fields
    }
    model = {key: value for key, value in fields.items() if key not in run}
    sizes = {"num_layers": 1, "model_dim": 64, "num_heads": 8, "glu_dim": 128} | model
    config = Config(mesh=MeshConfig(**mesh), model=TransNormerLLMConfig(**sizes), **run)
    with pytest.raises(UserError, match=message):
        check_mesh(config, make_mesh(config.mesh))


def test_a_baseline_is_not_divided_over_tensor():
    model = TransNormerConfig.preset("tiny", attention="softmax")
    config = Config(architecture="transnormer", model=model, batch_size=16)
    with pytest.raises(UserError, match="'transnormer' cannot be divided over tensor or context"):
        check_mesh(config, make_mesh(MeshConfig(tensor=2)))
