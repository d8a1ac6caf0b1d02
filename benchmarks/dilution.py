"""Where attention falls, and of which rank it is, by layer: attention dilution and Linformer's low rank.

- l(i, r, N) is the sum of p_ij over a window of r N tokens around token i (arXiv 2210.10340, section 3). At the ends of
  a row the window is shifted to stay within it, so that l is 1 at r = 1. "uniform" is a token that attends to all
  tokens that it may see alike.
- The spectrum is the sum of the largest singular values of the N x N matrix over that of all (arXiv 2006.04768, figure
  1, which says: most of the sum is in few values, the more so in higher layers).

Both are means over heads and rows (l over tokens, too). p_ij is softmax(s) or s / sum(s); where the attention is not
normalised (norm_t1, norm_t2, diag_t1), it is |s| or relu(s) over its sum, and a diagonal attention has weights in its
block alone. Rows are of the evaluation split of each run.

    python -m benchmarks.dilution --workdirs=runs/softmax,runs/linear,runs/t2
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.attention_maps import Caught, catch, check_mapped, distribution, positions, scores, visible
from benchmarks.common import Panel, Record, check_positive, main
from transnormer_jax.distributed import make_mesh
from transnormer_jax.errors import UserError
from transnormer_jax.models import unstack_layers
from transnormer_jax.training import load_workdir
from transnormer_jax.training.setup import load_setup

_SUMMARY_SHARE, _MASS = 0.2, 0.9
_TRIED_ROWS = 50  # for each row that is wanted


@dataclasses.dataclass(frozen=True)
class Settings:
    """Whose attention to look at.

    Attributes:
      workdirs: of train.py with architecture transnormer.
      rows: how many rows to read.
      length: tokens per row, N, at most those of the run.
      shares: values of r.
    """

    workdirs: tuple[str, ...] = ()
    rows: int = 8
    length: int = 256
    shares: tuple[float, ...] = tuple(i / 20 for i in range(1, 21))

    def __post_init__(self):
        check_positive(self)


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Reads the matrices, prints, records and plots, and returns the summary."""
    if not settings.workdirs:
        raise UserError("there is no run to look at: give --workdirs.")
    models, summary = list[dict[str, Any]](), dict[str, Any]()
    for workdir in settings.workdirs:
        found = load_workdir(workdir)
        config = check_mapped(found.config.model)
        matrices = attention_matrices(found.config, found.params, settings.rows, settings.length)
        num_tokens = matrices[0].shape[-1]
        seen = jnp.tri(num_tokens) if config.causal else jnp.ones((num_tokens, num_tokens))
        model = {
            "name": f"{Path(workdir).name} {config.attention}",
            "step": found.step,
            "attentions": config.attentions,
            "num_tokens": num_tokens,
            "layers": [_mean(p, settings.shares) for p in matrices],
            "uniform": _mean(seen / jnp.sum(seen, axis=1, keepdims=True), settings.shares),
            "spectrum": [cumulative(np.asarray(p)).mean(axis=(0, 1)).round(5).tolist() for p in matrices],
        }
        near = [
            round(float(np.interp(_SUMMARY_SHARE, settings.shares, x)), 4) for x in (*model["layers"], model["uniform"])
        ]
        needed = [int(np.argmax(np.asarray(curve) >= _MASS)) + 1 for curve in model["spectrum"]]
        summary[model["name"]] = {"layers": near[:-1], "uniform": near[-1], "values_for_mass": needed}
        print(model["name"], summary[model["name"]], flush=True)
        models.append(model)
        record.write(models=models, share=_SUMMARY_SHARE, mass=_MASS, summary=summary)

    depth = max(len(model["layers"]) for model in models)
    panels = []
    for model in models:
        curves = {f"layer {i + 1}": model["layers"][i] if i < len(model["layers"]) else () for i in range(depth)}
        lines = {name: list(zip(settings.shares, curve, strict=False)) for name, curve in curves.items()}
        lines["uniform"] = list(zip(settings.shares, model["uniform"], strict=True))
        panels.append(
            Panel(f"{model['name']}, step {model['step']}", "accumulated attention l", lines, log=False, style="-")
        )
    record.plot(panels, title="Attention within a window of r N tokens", xlabel="r")
    return summary


def attention_matrices(config: Any, params: Any, rows: int, length: int) -> list[jax.Array]:
    """p_ij of each layer of a trained model on `rows` rows of the evaluation split, [B, H, N, N] float32.

    Rows are cut to their first `length` tokens, and each is one document to the model.

    Raises:
      UserError: an attention has no N x N matrix, or too few rows are that long.
    """
    model, params = unstack_layers(check_mapped(config.model), params)
    config = dataclasses.replace(config, model=model)
    held_out = dataclasses.replace(config.data, train_split=config.data.eval_split)
    setup = load_setup(dataclasses.replace(config, data=held_out), make_mesh(config.mesh))
    batch = whole_rows(setup.training.rows, rows, min(length, config.sequence_length))

    @jax.jit
    def read(params: Any, batch: dict[str, jax.Array]) -> list[jax.Array]:
        _, caught = catch(lambda: setup.task.loss_and_metrics(params, batch))
        ids, found = batch["segment_ids"], []
        for layer, word in enumerate(model.attentions):
            s = scores(model, layer, params, Caught(**caught[layer]), positions(ids))
            found.append(distribution(word, s, visible(model, layer, ids)))
        return found

    return read(params, batch)


def whole_rows(rows: Any, count: int, length: int) -> dict[str, np.ndarray]:
    """Stacks `count` rows of `length` tokens without padding.

    Raises:
      UserError: there are not so many.
    """
    found = list[dict[str, np.ndarray]]()
    for index in range(min(len(rows), _TRIED_ROWS * count)):
        row = {
            name: x[:length] for name, x in rows[index].items() if name in ("inputs", "targets", "mask", "segment_ids")
        }
        if row["segment_ids"].all():
            found.append(row | {"segment_ids": np.ones_like(row["segment_ids"])})
        if len(found) == count:
            return {name: np.stack([row[name] for row in found]) for name in found[0]}
    raise UserError(f"{len(found)} rows have {length} tokens: ask for fewer rows or a smaller length.")


def accumulated(p: Float[Array, "*rows N N"], share: float) -> Float[Array, "*rows N"]:
    """l(i, r, N): the sum of p_ij over the window of round(r N) tokens around i that lies within the row."""
    num_tokens = p.shape[-1]
    width = min(max(round(share * num_tokens), 1), num_tokens)
    token = jnp.arange(num_tokens)
    start = jnp.clip(token - width // 2, 0, num_tokens - width)[:, None]
    inside = (token[None] >= start) & (token[None] < start + width)
    return jnp.sum(p, axis=-1, where=jnp.broadcast_to(inside, p.shape))


def cumulative(matrices: np.ndarray) -> np.ndarray:
    """Sums of the largest singular values over that of all: [..., N, N] to [..., N], rising to 1."""
    values = np.linalg.svd(matrices.astype(np.float64), compute_uv=False)
    return np.cumsum(values, axis=-1) / np.sum(values, axis=-1, keepdims=True)


def _mean(p: jax.Array, shares: tuple[float, ...]) -> list[float]:
    return [float(jnp.mean(accumulated(p, share))) for share in shares]


if __name__ == "__main__":
    main("dilution", Settings(), run)
