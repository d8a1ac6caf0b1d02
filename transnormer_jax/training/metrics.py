"""Where metrics go: JSON lines, TensorBoard, and Weights & Biases if asked. Only the first process writes."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from transnormer_jax.errors import UserError


class MetricWriter:
    """Writes scalars by step to `metrics.jsonl` and TensorBoard events in the workdir."""

    def __init__(self, workdir: Path, *, first_step: int, wandb_project: str = ""):
        """Drops lines from `first_step` on, which a run that died wrote after its last checkpoint."""
        self._first_process = jax.process_index() == 0
        self._wandb = None
        if not self._first_process:
            return
        if wandb_project:
            self._wandb = _start_wandb(wandb_project, workdir)
        path = workdir / "metrics.jsonl"
        if path.exists():
            kept = [line for line in read_metrics(workdir) if line["step"] < first_step]
            path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._lines = path.open("a")
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line: `step` and the scalars."""
        if not self._first_process:
            return
        try:
            self._lines.write(json.dumps({"step": step, **finite(scalars)}) + "\n")
            self._lines.flush()
        except OSError as error:
            raise UserError(
                f"{self._lines.name!r} cannot be written ({error.strerror}): make room, and run the same command to "
                "resume from the newest checkpoint."
            ) from error
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(scalars), step=step)

    def close(self) -> None:
        """Flushes all."""
        if self._first_process:
            with suppress(OSError):  # of what a full disk refused already; every line is flushed when it is written
                self._lines.close()
            self._tensorboard.close()
            if self._wandb is not None:
                self._wandb.finish()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, each with its `step`, without the last one of a run that was killed writing it.

    Raises:
      UserError: there is no such file.
    """
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{str(workdir)!r} has no metrics.jsonl: give the workdir of a run of train.py.")
    lines = []
    for text in path.read_text().splitlines():
        with suppress(ValueError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with None for what is infinite or NaN, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def _start_wandb(project: str, workdir: Path):
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise UserError(
            "config.wandb_project is set, wandb is missing: in a clone, pip install -e '.[wandb]', or leave it empty."
        ) from error
    return wandb.init(project=project, dir=str(workdir), id=workdir.name, resume="allow")
