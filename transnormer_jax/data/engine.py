"""The engine of parallel passes over text: datatrove's executors, on this machine, under Slurm or on Ray."""

import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import multiprocess
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from transnormer_jax.errors import UserError


class EachTask(PipelineStep):
    """A stage of one step, which calls a function with the number of each task."""

    type = "Task"

    def __init__(self, name: str, work: Callable[[int], object]):
        """`work` must be picklable."""
        super().__init__()
        self.name, self._work = name, work

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> Iterator[None]:
        """Does the work of task `rank`."""
        del data, world_size
        self._work(rank)
        yield from ()


def run_stage(name: str, steps: Sequence[PipelineStep], tasks: int, workers: int, logs: Path) -> None:
    """Runs the tasks of a stage in processes of this machine; those that are complete according to `logs` are skipped.

    Raises:
      UserError: a step raises it, or anything else.
    """
    # The threads of the `tokenizers` library: the processes share the cores.
    os.environ.setdefault("RAYON_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    # The engine would fork this process for its manager, and JAX has threads.
    multiprocess.set_start_method("forkserver", force=True)
    multiprocess.set_forkserver_preload(["transnormer_jax.data.engine_process"])
    try:
        with _quiet(logs.with_name(f"{logs.name}.txt")):
            LocalPipelineExecutor([*steps], tasks, min(workers, tasks), str(logs)).run()
    except UserError:
        raise
    except Exception as error:  # The engine is foreign code.
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"stage {name!r} failed ({message}); the log is {str(logs)!r}. Run again to continue from there."
        ) from error


def submit_stage(
    name: str, steps: Sequence[PipelineStep], tasks: int, workers: int, logs: Path, *, partition: str, time: str
) -> None:
    """Submits the tasks of a stage as a Slurm array job, at most `workers` at one time; returns at once.

    Raises:
      UserError: Slurm refuses the job.
    """
    executor = SlurmPipelineExecutor(
        [*steps],
        tasks,
        time=time,
        partition=partition,
        workers=workers,
        job_name=name,
        qos="",  # the partition's own
        logging_dir=str(logs),
        env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
    )
    try:
        with _quiet(logs.with_name(f"{logs.name}.txt")):
            executor.run()
    except Exception as error:  # The engine is foreign code, and runs sbatch.
        shutil.rmtree(logs, ignore_errors=True)  # the next call submits again
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"Slurm did not take the job ({message}): correct that, and run again.") from error


def run_stage_on_ray(
    name: str, steps: Sequence[PipelineStep], tasks: int, workers: int, logs: Path, *, address: str
) -> None:
    """Runs the tasks of a stage on a Ray cluster, at most `workers` at one time, and waits for them.

    Each task takes one CPU of a node with this package. A task may fail without an exception here.

    Raises:
      UserError: Ray is not installed, or there is no cluster at the address.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("Ray is not installed: pip install ray, here and on the nodes of the cluster.")
    import ray

    with _quiet(logs.with_name(f"{logs.name}.txt")):
        try:
            ray.init(address, log_to_driver=False)
        except Exception as error:
            message = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"there is no Ray cluster at {address!r} ({message}): give another --ray_address."
            ) from error
        try:
            RayPipelineExecutor([*steps], tasks, workers, logging_dir=str(logs), mem_per_cpu_gb=1).run()
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Turns the standard error of this process and its children, where the engine logs every step, into a file."""
    sys.stderr.flush()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
