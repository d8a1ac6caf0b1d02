"""The optimizer and its learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

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
    # The loop stops a run of bad steps by itself, so optax must never let one through.
    never = jnp.iinfo(jnp.int32).max
    return optax.apply_if_finite(optax.chain(clip, update), max_consecutive_errors=never)


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
