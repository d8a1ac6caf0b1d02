"""Where metrics go: JSON lines, TensorBoard, and Weights & Biases if asked. Only the first process writes."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

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
        path = workdir / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) < first_step]
            path.write_text("".join(line + "\n" for line in lines))
        self._lines = path.open("a")
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)
        if wandb_project:
            self._wandb = _start_wandb(wandb_project, workdir)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line: `step` and the scalars."""
        if not self._first_process:
            return
        # JSON has no NaN.
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        try:
            self._lines.write(json.dumps({"step": step, **finite}) + "\n")
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


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the last line of a run that was killed
        return math.inf


def _start_wandb(project: str, workdir: Path):
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "config.wandb_project is set: pip install 'transnormer_jax[wandb]', or leave it empty."
        ) from error
    return wandb.init(project=project, dir=str(workdir), id=workdir.name, resume="allow")
