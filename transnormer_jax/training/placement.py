"""A run's state as shapes with shardings, and the checks of a mesh, before any array exists."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transnormer_jax.distributed import RULES, batch_sharding, optimizer_shardings, parameter_shardings
from transnormer_jax.errors import UserError
from transnormer_jax.models import Cache, ModelConfig
from transnormer_jax.models.block import has_constant_state
from transnormer_jax.models.parameter_axes import parameter_axes
from transnormer_jax.tasks import Params, Task
from transnormer_jax.training.config import Config
from transnormer_jax.training.step import TrainState


def abstract_params(task: Task) -> Params:
    """The shapes and dtypes of a task's parameters."""
    return jax.eval_shape(task.init, jax.random.key(0))


def place_params(params: Params, mesh: Mesh) -> Params:
    """The shapes of parameters (or parameters), with the shardings that they have on a mesh."""
    return _with(params, parameter_shardings(params, mesh, parameter_axes))


def place_state(task: Task, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """A `TrainState` of the shapes, dtypes and shardings of a run."""
    params = abstract_params(task)
    opt_state = jax.eval_shape(optimizer.init, params)
    layout = parameter_shardings(params, mesh, parameter_axes)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    opt_layout = optimizer_shardings(opt_state, params, layout, mesh)
    placed: Any = TrainState
    return placed(step, _with(params, layout), _with(opt_state, opt_layout))


def place_batch(row: Mapping[str, np.ndarray], batch_size: int, mesh: Mesh) -> Mapping[str, jax.ShapeDtypeStruct]:
    """The shapes and shardings of a batch of rows like this one."""
    shapes = {name: (batch_size, *array.shape) for name, array in row.items()}
    return {
        name: jax.ShapeDtypeStruct(shape, row[name].dtype, sharding=batch_sharding(mesh, shape))
        for name, shape in shapes.items()
    }


def place_cache(cache: Cache, mesh: Mesh) -> Any:
    """The shapes of a model's cache (or the cache), with the shardings that it has on a mesh."""

    def sharding(x: Any, *names: str | None) -> NamedSharding:
        names += (None,) * (x.ndim - len(names))
        return NamedSharding(mesh, RULES.spec(names, x.shape, dict(mesh.shape)))

    def of_state(state: Any) -> Any:
        if isinstance(state, tuple):  # of tokens: [layers, B, tokens, ...]
            return jax.tree.map(lambda x: sharding(x, "layers", "batch"), state)
        return sharding(state, "layers", "batch", "heads")  # [layers, B, H, K, V]

    position = sharding(cache.position, "batch")
    return _with(cache, Cache(position, tuple(of_state(state) for state in cache.states)))  # type: ignore[arg-type]


def check_mesh(config: Config, mesh: Mesh) -> None:
    """Checks that the mesh divides what training has to divide.

    Raises:
      UserError: it does not, or the architecture knows no such division.
    """
    rows = rows_of(mesh)
    for name, size in (
        ("config.batch_size / config.accumulation_steps", config.batch_size // config.accumulation_steps),
        ("config.evaluation.batch_size", config.evaluation.batch_size),
    ):
        if size % rows:
            raise UserError(f"{name} = {size} must be a multiple of config.mesh data x fsdp = {rows}.")
    check_model_on_mesh(config, mesh)


def rows_of(mesh: Mesh) -> int:
    """The number of shards of a batch: its rows are a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_model_on_mesh(config: Config, mesh: Mesh) -> None:
    """Checks that the mesh divides the model and the rows of tokens.

    Raises:
      UserError: it does not, or the architecture knows no such division.
    """
    sizes = dict(mesh.shape)
    model = config.model
    if not isinstance(model, ModelConfig) or not has_constant_state(model):
        if sizes["tensor"] * sizes["context"] > 1:
            raise UserError(
                f"architecture {config.architecture!r} cannot be divided over tensor or context with this attention: "
                "set config.mesh.tensor and config.mesh.context to 1."
            )
        return
    width = "glu_dim" if hasattr(model, "glu_dim") else "feed_forward_dim"
    for name, size in (
        ("config.model.num_heads", model.num_heads),
        (f"config.model.{width}", model.feed_forward_dim),
    ):
        if size % sizes["tensor"]:
            raise UserError(f"{name} = {size} must be a multiple of config.mesh.tensor = {sizes['tensor']}.")
    lengths = {"config.sequence_length": config.sequence_length}
    lengths |= {f"the rows of config.curriculum up to step {last}": length for last, length in config.curriculum}
    for name, length in lengths.items():
        if length % sizes["context"]:
            raise UserError(f"{name} = {length} must be a multiple of config.mesh.context = {sizes['context']}.")


def _with(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
