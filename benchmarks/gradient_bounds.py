"""The largest derivative of an attention's output by its scores, as features shrink, beside its theoretical bound.

Scaled linear attention p = s / sum(s) of s_j = phi(q) . phi(k_j) has |dp_j / ds_k| <= 1 / (4 |s_k|), which nothing
bounds as features shrink; softmax has 1/4 whatever the scores; and NormAttention o = t / sqrt(mean(t^2) + eps), which
has no p, has |do_j / dt_k| <= 3 / (2 sqrt(eps)) (arXiv 2210.10340, section 3.1 and appendix). Derivatives are exact, by
JAX, and each row is the largest over all queries, in float64. Queries and keys are Gaussian; 1 + elu of them, or for
softmax they themselves, are multiplied by the scale; t is NormAttention's product with Gaussian values.

    python -m benchmarks.gradient_bounds
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Panel, Record, check_positive, main
from transnormer_jax.ops import activation, simple_rms_norm

NAMES = ("1+elu", "softmax", "norm")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to sweep.

    Attributes:
      scales: of the features.
      num_tokens: N.
      head_dim: K.
      norm_eps: of NormAttention's norm, inside the root as in the paper's bound.
    """

    scales: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    num_tokens: int = 64
    head_dim: int = 16
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_positive(self)


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Sweeps, prints, records and plots, and returns the summary."""
    rows = [largest_derivatives(settings, scale) for scale in settings.scales]
    for row in rows:
        print({name: float(f"{x:.4g}") for name, x in row.items()})
    summary = {
        "within_bounds": all(row[f"{name} derivative"] <= row[f"{name} bound"] for row in rows for name in NAMES),
        "at_smallest_scale": min(rows, key=lambda row: row["scale"]),
    }
    record.write(rows=rows, summary=summary)
    panels = []
    for name in NAMES:
        lines = {what: [(row["scale"], row[f"{name} {what}"]) for row in rows] for what in ("derivative", "bound")}
        panels.append(Panel(name, "largest derivative", lines))
    title = f"Derivative of attention by its scores, N = {settings.num_tokens}, K = {settings.head_dim}"
    record.plot(panels, title=title, xlabel="scale of the features")
    return summary


def largest_derivatives(settings: Settings, scale: float) -> dict[str, float]:
    """The largest derivative of each attention over all queries at one scale, and its bound there."""
    generator = np.random.default_rng(0)
    with jax.enable_x64(True):
        shape = (settings.num_tokens, settings.head_dim)
        q, k, v = (jnp.asarray(generator.normal(size=shape)) for _ in range(3))
        phi = activation("1+elu")
        linear = scale**2 * phi(q) @ phi(k).T
        softmax = scale**2 * (q @ k.T) / settings.head_dim**0.5
        found = {
            "1+elu derivative": _largest(lambda s: s / jnp.sum(s), linear),
            "1+elu bound": 1 / (4 * jnp.min(linear)),
            "softmax derivative": _largest(jax.nn.softmax, softmax),
            "softmax bound": 0.25,
            "norm derivative": _largest(lambda t: simple_rms_norm(t, settings.norm_eps), linear @ v),
            "norm bound": 1.5 / settings.norm_eps**0.5,
        }
        return {"scale": scale, **{name: float(x) for name, x in found.items()}}


def _largest(function: Any, rows: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(jax.vmap(jax.jacfwd(function))(rows)))


if __name__ == "__main__":
    main("gradient_bounds", Settings(), run)
