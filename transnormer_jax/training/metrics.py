"""Writes metrics: JSON lines, TensorBoard, and Weights & Biases if configured. Only process 0 writes."""

import json
import math
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from transnormer_jax import storage
from transnormer_jax.errors import UserError

# Of a line of metrics, what is no metric.
_LABELS = ("step", "time", "host")
_FLUSH_SECONDS = 30.0


class MetricWriter:
    """Writes scalars by step to `metrics.jsonl` and TensorBoard events in the workdir.

    On a store, both are written to a local directory and copied from there: whole, at most every half minute, at every
    evaluation, and at the end. TensorBoard's own remote writers would need other packages and credentials.
    """

    def __init__(
        self,
        workdir: storage.AnyPath,
        *,
        first_step: int,
        wandb_project: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        """Drops lines from `first_step` on, which a run that died wrote after its last checkpoint.

        Args:
          first_step: of this start of the run.
          wandb_project: of Weights & Biases; empty for none.
          config: what Weights & Biases shows as the configuration.

        Raises:
          UserError: the files cannot be written, or wandb is not installed.
        """
        self._first_process = jax.process_index() == 0
        self._wandb: Any = None
        self._mirror: storage.Mirror | None = None
        if not self._first_process:
            return
        self._workdir, remote = workdir, storage.is_remote(workdir)
        self._scratch = tempfile.TemporaryDirectory(prefix="transnormer.metrics.") if remote else None
        directory = Path(self._scratch.name if self._scratch else workdir)
        self._host = socket.gethostname().partition(".")[0]
        if wandb_project:
            self._wandb = _start_wandb(wandb_project, workdir, directory, config or {})
        with self._room(), ExitStack() as opened:
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / "metrics.jsonl"
            if storage.as_path(workdir / "metrics.jsonl").is_file():
                kept = [line for line in read_metrics(workdir) if line["step"] < first_step]
                storage.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
            self._lines = opened.enter_context(path.open("a"))
            self._tensorboard = _TensorBoard(directory / "tensorboard", first_step)
            opened.pop_all()
        if remote:
            self._mirror = storage.Mirror(directory, workdir, every_seconds=_FLUSH_SECONDS)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line: `step`, the time of day in seconds since 1970, the host's name, and the scalars.

        Raises:
          UserError: the disk refuses it.
        """
        if not self._first_process:
            return
        labels = {"step": step, "time": round(time.time(), 3), "host": self._host}
        with self._room():
            self._lines.write(json.dumps(labels | finite(scalars)) + "\n")
            self._lines.flush()
            self._tensorboard.write(step, scalars)
        if self._wandb is not None:
            self._wandb.log(dict(scalars), step=step)
        if any(name.startswith("eval/") for name in scalars):
            self.flush()

    def flush(self) -> None:
        """Begins to bring a store up to date, without waiting for it; a local file is."""
        if self._mirror is not None:
            self._tensorboard.flush()
            self._mirror.copy_soon()

    def close(self) -> None:
        """Writes all that is left.

        Raises:
          UserError: the store refuses it.
        """
        if not self._first_process:
            return
        with suppress(OSError):  # of what a full disk refused already; every line is flushed when it is written
            self._lines.close()
        with suppress(OSError):
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        try:
            if self._mirror is not None:
                self._mirror.close()
        finally:
            if self._scratch is not None:
                self._scratch.cleanup()

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"metrics cannot be written in {str(self._workdir)!r} ({error.strerror or error}): make room, and run "
                "the same command to resume from the newest checkpoint."
            ) from error


class _TensorBoard:
    """A file of events, written in the calling thread: tensorboardX's own thread dies of a full disk, in silence."""

    def __init__(self, directory: Path, first_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(directory / "events"), f".{first_step}")
        # TensorBoard forgets what an earlier start of the run said from this step on.
        self._events.write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        self._events.flush()
        self._flushed = time.monotonic()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        now = time.time()
        for name, value in scalars.items():
            self._events.write_event(Event(step=step, wall_time=now, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._events.close()


def read_metrics(workdir: storage.AnyPath) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, each with its `step`, without the last one of a run that was killed writing it.

    Raises:
      UserError: there is no such file.
    """
    path = storage.as_path(workdir / "metrics.jsonl")
    if not path.is_file():
        raise UserError(f"{str(workdir)!r} has no metrics.jsonl: give the workdir of a run of train.py.")
    lines = []
    for text in path.read_text().splitlines():
        with suppress(ValueError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def metrics_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics in a line of `metrics.jsonl`, without its step, time and host."""
    return {name: value for name, value in line.items() if name not in _LABELS}


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with None for what is infinite or NaN, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def _start_wandb(project: str, workdir: storage.AnyPath, directory: Path, config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise UserError(
            "config.wandb_project is set, wandb is missing: in a clone, pip install -e '.[wandb]', or leave it empty."
        ) from error
    # Two runs may have workdirs of one name; and a workdir that is moved is the same run.
    path = storage.as_path(workdir / "wandb_id")
    if not path.is_file():
        storage.write_text(path, secrets.token_hex(8))
    return wandb.init(
        project=project,
        dir=str(directory),
        id=path.read_text().strip(),
        name=workdir.name,
        config=dict(config),
        resume="allow",
    )
