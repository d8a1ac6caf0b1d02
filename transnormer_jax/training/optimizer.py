"""The optimizer and its learning rate."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.tasks import Params
from transnormer_jax.training.config import OptimizerConfig

_DECAYED = ("kernel", "embedding", "head")


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate as a function of the step, counted from 0.

    Raises:
      UserError: the schedule is unknown, or its phases are longer than the run.
    """
    peak, end = config.learning_rate, config.learning_rate * config.final_fraction
    if config.warmup_steps >= num_steps:
        raise UserError(f"warmup_steps={config.warmup_steps} must be less than num_steps={num_steps}.")
    # The first step has a rate above 0: a step at rate 0 would only waste its batch.
    warmup = optax.linear_schedule(peak / max(config.warmup_steps, 1), peak, max(config.warmup_steps - 1, 1))
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, num_steps - config.warmup_steps, alpha=config.final_fraction)
        return optax.join_schedules([warmup, after], [config.warmup_steps])
    if config.schedule == "inverse_sqrt":
        after = _inverse_sqrt(peak, config.warmup_steps)
        return optax.join_schedules([warmup, after], [config.warmup_steps])
    if config.schedule in ("wsd", "step"):
        decay_steps = round(config.decay_fraction * num_steps)
        stable_end = num_steps - decay_steps
        if not config.warmup_steps <= stable_end < num_steps:
            raise UserError(f"warmup_steps and decay_fraction leave no room in num_steps={num_steps}: shorten one.")
        stable = optax.constant_schedule(peak)
        first_of_last = end if config.schedule == "step" else peak
        last = optax.linear_schedule(first_of_last, end, decay_steps)
        return optax.join_schedules([warmup, stable, last], [config.warmup_steps, stable_end])
    known = ("cosine", "wsd", "step", "inverse_sqrt")
    raise UserError(f"unknown schedule {config.schedule!r}: {did_you_mean(config.schedule, known)}")


def _inverse_sqrt(peak: float, warmup_steps: int) -> optax.Schedule:
    first = max(warmup_steps, 1)
    return lambda step: peak * jnp.sqrt(first / (first + step))


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Clipping, then the optimizer; a gradient that is not finite changes nothing and is counted.

    `update` also takes what the training step knows already, so that on a mesh nothing is summed twice: `norm`, the
    global norm of the gradient; `finite`, whether loss and norm are; and `empty`, whether the batch had nothing to
    learn from: then nothing changes, and nothing is counted.

    Raises:
      UserError: the optimizer is unknown.
    """
    moments: Any = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    known = {
        "adamw": lambda: optax.scale_by_adam(**moments),
        "radam": lambda: optax.scale_by_radam(**moments),
        "adafactor": lambda: optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
        "muon": lambda: _scale_by_muon(config),
    }
    if config.name not in known:
        raise UserError(f"unknown optimizer {config.name!r}: {did_you_mean(config.name, known)}")
    scale = known[config.name]()
    decay = optax.add_decayed_weights(config.weight_decay, mask=_decay_mask)
    update = optax.chain(scale, decay, optax.scale_by_learning_rate(schedule))
    return _clipped_if_finite(update, config.clip_norm)


def learning_rate(opt_state: optax.ApplyIfFiniteState, schedule: optax.Schedule) -> Array:
    """The rate of the next update: a function of the updates so far, skipped steps not counted."""
    return schedule(opt_state.inner_state[1][2].count)


def _clipped_if_finite(update: optax.GradientTransformation, clip_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.apply_if_finite(optax.chain(clip_by_global_norm, update))`, with one norm for all that it decides."""

    def init(params: Params) -> optax.ApplyIfFiniteState:
        zero = jnp.zeros((), jnp.int32)
        return optax.ApplyIfFiniteState(zero, jnp.array(True), zero, (optax.EmptyState(), update.init(params)))

    def apply(
        gradients: Params,
        state: optax.ApplyIfFiniteState,
        params: Params | None = None,
        *,
        norm: Array | None = None,
        finite: Array | None = None,
        empty: Array | bool = False,
    ) -> tuple[Params, optax.ApplyIfFiniteState]:
        norm = global_norm(gradients) if norm is None else norm
        finite = jnp.isfinite(norm) if finite is None else finite
        bad, applied = ~finite & ~jnp.asarray(empty), finite & ~jnp.asarray(empty)
        if clip_norm:
            clip = lambda g: jnp.where(norm < clip_norm, g, g / norm.astype(g.dtype) * clip_norm)  # noqa: E731
            gradients = jax.tree.map(clip, gradients)
        unclipped, inner = state.inner_state
        updates, new_inner = update.update(gradients, inner, params)
        choose = lambda new, old: jnp.where(applied, new, old)  # noqa: E731
        count = jnp.where(bad, state.notfinite_count + 1, jnp.where(applied, 0, state.notfinite_count))
        return jax.tree.map(lambda u: choose(u, jnp.zeros_like(u)), updates), optax.ApplyIfFiniteState(
            notfinite_count=count,
            last_finite=jnp.where(bad, False, jnp.where(applied, True, state.last_finite)),
            total_notfinite=state.total_notfinite + bad,
            inner_state=(unclipped, jax.tree.map(choose, new_inner, inner)),
        )

    return optax.GradientTransformationExtraArgs(init, apply)


def global_norm(gradients: Params, layout: Any = None) -> Float[Array, ""]:
    """The square root of the sum of all squares, in float32.

    Args:
      layout: their shardings, on the mesh that is set. With them, devices exchange one number; else XLA sums over the
        devices one number for each array.
    """

    def squares(gradients: Params) -> Array:
        return jnp.stack([jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradients)])

    shardings = jax.tree.leaves(layout)
    if all(sharding.is_fully_replicated for sharding in shardings):
        return jnp.sqrt(jnp.sum(squares(gradients)))
    mesh = shardings[0].mesh
    # An array that is not divided over all devices would be counted several times.
    copies = [
        mesh.size // (math.prod(g.shape) // math.prod(sharding.shard_shape(g.shape)))
        for g, sharding in zip(jax.tree.leaves(gradients), shardings, strict=True)
    ]
    weights = 1 / jnp.array(copies, jnp.float32)
    on_device = jax.shard_map(
        lambda gradients: jnp.sum(squares(gradients) * weights, keepdims=True),
        in_specs=(jax.tree.map(lambda x: x.spec, layout),),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,
    )
    return jnp.sqrt(jnp.sum(on_device(gradients)))


def _scale_by_muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Muon on the matrices of the layers, Adam on all else; its updates are as large as Adam's (arXiv 2502.16982)."""

    def matrices(params: Any) -> Any:
        # Layers may be stacked in front.
        axes = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
        return jax.tree_util.tree_map_with_path(lambda path, _: axes if path[-1].key == "kernel" else None, params)

    muon = optax.contrib.muon(
        learning_rate=1.0,
        eps=config.eps,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
    )
    return optax.chain(muon, optax.scale(-1.0))  # the rate, and with it the sign, comes after the decay


def _decay_mask(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)
