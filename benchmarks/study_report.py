"""What is made of the runs of a study: rows for JSON, a table, a plot."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.studies import Study
from benchmarks.study_runs import Job, Result
from benchmarks.trees import tree_size
from transnormer_jax.training.setup import make_task
from transnormer_jax.training.workdir import read_config

_HEADER = f"{'variant':<30} {'parameters':>12} {'steps':>7} {'final':>9} {'best':>9} {'published':>9} {'minutes':>8}"


@dataclasses.dataclass(frozen=True)
class Row:
    """A variant and what became of it."""

    job: Job
    result: Result
    published: float | None
    metric: str
    higher_is_better: bool

    @property
    def final(self) -> float:
        """The metric after the last step."""
        return self.result.evaluations[-1][self.metric]

    @property
    def best(self) -> float:
        """The best of the metric over the evaluations, chosen by the metric itself: it flatters."""
        values = [line[self.metric] for line in self.result.evaluations]
        return max(values) if self.higher_is_better else min(values)

    def as_json(self) -> dict[str, Any]:
        """Returns one object."""
        row: dict[str, Any] = {"variant": self.job.label, "command": str(self.job), "published": self.published}
        if self.result.failed is not None:
            row["failed"] = self.result.failed
        else:
            config = read_config(self.job.workdir)
            row |= {
                "parameters": num_parameters(self.job.workdir),
                "seed": config.seed,
                "steps": config.num_steps,
                "batch_size": config.batch_size,
                "training_seconds": round(self.result.seconds, 1),
                "made": dict(self.result.made),
                "final": self.final,
                "best": self.best,
            }
        curve = [{"step": line["step"], "loss": line["loss"]} for line in self.result.training]
        return row | {"evaluations": list(self.result.evaluations), "training": curve}

    def line(self) -> str:
        """Returns a line of the table."""
        if self.result.failed is not None:
            return f"{self.job.label:<30} failed: {self.result.failed}"
        published = "" if self.published is None else f"{self.published:g}"
        return (
            f"{self.job.label:<30} {num_parameters(self.job.workdir):>12,} {self.result.evaluations[-1]['step']:>7} "
            f"{self.final:>9.4f} {self.best:>9.4f} {published:>9} {self.result.seconds / 60:>8.1f}"
        )


def table(study: Study, rows: Sequence[Row], references: Mapping[str, float]) -> str:
    """The table that a person reads."""
    direction = "higher" if study.higher_is_better else "lower"
    return "\n".join(
        [
            f"{study.name}: {study.metric}, {direction} is better",
            _HEADER,
            *(row.line() for row in rows),
            *(f"{name:<51} {value:>9.4f}" for name, value in references.items()),
            f"published: {study.published}",
            f"reduced: {study.reduced}",
        ]
    )


@functools.cache
def num_parameters(workdir: Path) -> int:
    """Numbers in the model of a run, those included that are not trained."""
    return tree_size(jax.eval_shape(make_task(read_config(workdir)).init, jax.random.key(0)))


def save_curves(study: Study, rows: Sequence[Row], references: Mapping[str, float], *, title: str, path: Path) -> None:
    """Writes the training loss and the held-out metric over the steps as a PNG file."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(title)
    training, held_out = figure.subplots(1, 2)
    for i, row in enumerate(rows):
        style = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--", "label": row.job.label}
        _draw(training, row.result.training, "loss", **style)
        _draw(held_out, row.result.evaluations, study.metric, marker="o", markersize=3, **style)
    for i, (name, value) in enumerate(references.items()):
        held_out.axhline(value, color="grey", linestyle=("--", ":")[i % 2], label=name)
    training.set(title="training", xlabel="step", ylabel="loss, nats")
    held_out.set(title="held out", xlabel="step", ylabel=study.metric.replace("_", " "))
    figure.legend(*held_out.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=120)


def _draw(ax: Axes, lines: Sequence[Mapping[str, float]], name: str, **style: Any) -> None:
    ax.plot([line["step"] for line in lines], [line[name] for line in lines], **style)
    ax.grid(alpha=0.3)
