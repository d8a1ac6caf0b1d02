"""The optimizer and its learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from transnormer_jax.errors import UserError, did_you_mean
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


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping, then the optimizer; a gradient that is not finite changes nothing and is counted.

    Raises:
      UserError: the optimizer is unknown.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    moments: Any = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    if config.name == "adamw":
        scale = optax.scale_by_adam(**moments)
    elif config.name == "radam":
        scale = optax.scale_by_radam(**moments)
    else:
        raise UserError(f"unknown optimizer {config.name!r}: {did_you_mean(config.name, ('adamw', 'radam'))}")
    decay = optax.add_decayed_weights(config.weight_decay, mask=_decay_mask)
    update = optax.chain(scale, decay, optax.scale_by_learning_rate(schedule))
    # The loop stops a run of bad steps by itself, so optax must never let one through.
    never = jnp.iinfo(jnp.int32).max
    return optax.apply_if_finite(optax.chain(clip, update), max_consecutive_errors=never)


def _decay_mask(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)
