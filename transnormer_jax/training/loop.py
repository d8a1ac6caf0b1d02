"""The training loop, from a configuration to a finished run. Run again, it resumes."""

import dataclasses
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from transnormer_jax import storage
from transnormer_jax.data import load_tokenizer
from transnormer_jax.distributed import make_mesh, multihost
from transnormer_jax.distributed.shared_files import check_same_data, check_shared, prepared_once
from transnormer_jax.errors import UserError
from transnormer_jax.log import log
from transnormer_jax.tasks import Params
from transnormer_jax.training.assembly import Assembly, assemble, jit_train_step
from transnormer_jax.training.batches import batches_on_mesh
from transnormer_jax.training.checkpoints import Checkpoints
from transnormer_jax.training.chosen_step import held_out_losses
from transnormer_jax.training.compilation_cache import use_compilation_cache
from transnormer_jax.training.config import Config
from transnormer_jax.training.curriculum import row_length
from transnormer_jax.training.flops import training_flops_per_token
from transnormer_jax.training.goodput import Stopwatch
from transnormer_jax.training.metrics import MetricWriter, read_metrics
from transnormer_jax.training.parameters import restore_params
from transnormer_jax.training.placement import check_mesh, place_batch
from transnormer_jax.training.profiler import Profiler, serve_profiles
from transnormer_jax.training.progress import Progress, duration, window_means
from transnormer_jax.training.setup import TrainingSetup, load_setup
from transnormer_jax.training.step import StepMetrics, TrainState
from transnormer_jax.training.stop_signal import StopSignal
from transnormer_jax.training.summary import introduce
from transnormer_jax.training.watchdog import Watchdog
from transnormer_jax.training.workdir import (
    changed_rows,
    find_tokenizer,
    keep_tokenizer,
    model_to_begin_with,
    write_config,
)

# Called with a step and its metrics by name.
Callback = Callable[[int, Mapping[str, float]], None]


def train(
    config: Config,
    workdir: storage.AnyPath | str,
    *,
    began: float | None = None,
    print_parameters: bool = False,
    load: Callable[[Config, Mesh], TrainingSetup] = load_setup,
    callbacks: Sequence[Callback] = (),
) -> dict[str, float] | None:
    """Trains until `config.num_steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
      workdir: of its configuration, checkpoints and metrics; made if it does not exist.
      began: unix time in seconds at which this start of the run began, for its goodput; None is now.
      print_parameters: whether the table of the parameters, which `parameters.txt` holds, is printed.
      load: opens the data and the task; a function of your own may replace, for example, the evaluation.
      callbacks: called with the step and every line of metrics. An evaluation has a line of its own, with names that
        begin with "eval/".

    Returns:
      The last evaluation, or None if a signal stopped the run.

    Raises:
      UserError: something in the configuration, the data or the workdir does not fit, or too many steps in a row were
        not finite.
    """
    began = time.time() if began is None else began
    # ---- Devices and data: whatever cannot work fails here, before anything is written. ----
    workdir = storage.absolute(storage.check_workdir(workdir))
    config = find_tokenizer(config, workdir)
    serve_profiles(config.profiler_port)
    config = model_to_begin_with(config, workdir, load_tokenizer(config.data.tokenizer).fingerprint)
    mesh = make_mesh(config.mesh)
    check_mesh(config, mesh)
    check_shared(workdir)
    with prepared_once(config.data.data_dir):
        setup = load(config, mesh)
    check_same_data(setup.training.description, setup.training.rows[0])

    # ---- State: shapes first, then layouts, then arrays: nothing is ever whole on one device. ----
    use_compilation_cache(config.compilation_cache, workdir)
    assembly = assemble(config, setup.task, mesh)
    former = _former_metrics(workdir)
    losses = dict(multihost.broadcast_from_process0(list(held_out_losses(former).items())))
    checkpoints = Checkpoints(workdir, config=config, tokenizer=setup.tokenizer, losses=losses)
    restored = checkpoints.restore(assembly.state)
    with jax.set_mesh(mesh):
        state, rows_read = restored or (_begin(config, assembly), 0)
    first_step = int(state.step)

    # ---- Tell what will run. ----
    if restored and (changed := changed_rows(workdir, config)):
        log(
            f"warning: {' and '.join(changed)} changed since the last start: the run goes on at row {rows_read:,} of "
            "the new rows, so some examples of this epoch may be repeated or skipped."
        )
    with storage.report_write_errors(workdir):
        keep_tokenizer(workdir, config)
        write_config(workdir, config)

    stopwatch = Stopwatch(_last_until(former, first_step), began)
    writer = MetricWriter(
        workdir, first_step=first_step + 1, wandb_project=config.wandb_project, config=dataclasses.asdict(config)
    )
    try:
        introduce(config, workdir, mesh, state, setup, print_parameters=print_parameters)
        loop = _Loop(
            config, workdir, mesh, setup, assembly, checkpoints, writer, stopwatch, state, rows_read, callbacks
        )
        return loop.run()
    finally:
        writer.close()


class _Loop:
    """The steps of one start of a run: what is due after each of them, and in which order.

    Step i + 1 is dispatched before the metrics of step i are awaited, and metrics are read when a line of them is due.
    A checkpoint is begun before the evaluation of the same step, which then overlaps with its being written.
    """

    def __init__(
        self,
        config: Config,
        workdir: epath.Path,
        mesh: Mesh,
        setup: TrainingSetup,
        assembly: Assembly,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        stopwatch: Stopwatch,
        state: TrainState,
        rows_read: int,
        callbacks: Sequence[Callback],
    ):
        self._config, self._mesh, self._setup, self._assembly = config, mesh, setup, assembly
        self._checkpoints, self._writer, self._stopwatch = checkpoints, writer, stopwatch
        self._state, self._rows_read, self._callbacks = state, rows_read, callbacks
        self._first_step, self._first_row = int(state.step), rows_read
        self._requests = multihost.Requests()
        self._watchdog = Watchdog(config.watchdog_seconds)
        self._profiler = Profiler(workdir / "tensorboard", config.profile_at, config.profile_steps)
        self._progress = Progress(config, training_flops_per_token(config.model, state.params), stopwatch)
        self._window: list[tuple[int, StepMetrics]] = []  # steps whose metrics have not been read
        self._stopped_by = ""
        self._save_requested, self._save_due, self._saved_at = False, False, time.monotonic()

    def run(self) -> dict[str, float] | None:
        """Trains; returns the last evaluation, or None if a signal stopped the run."""
        stop = StopSignal(lambda name: self._requests.make("stop", f"{name} on {socket.gethostname()}"))
        with stop, self._requests, self._checkpoints, self._watchdog, self._profiler, jax.set_mesh(self._mesh):
            try:
                return self._run()
            except UserError:  # of the loop itself, which keeps the checkpoints that it has
                raise
            except (Exception, KeyboardInterrupt):
                self._checkpoints.save_in_emergency(self._state, rows=self._rows_read)
                raise

    def _run(self) -> dict[str, float] | None:
        config, first, last = self._config, self._first_step + 1, self._config.num_steps
        batches = batches_on_mesh(
            self._setup.training.rows, config.batch_size, self._first_row, self._mesh, config.data
        )
        compiled = self._compile(first)
        self._stopwatch.begin("step")
        for step in range(first, last + 1):
            if step > first and row_length(config, step) != row_length(config, step - 1):
                compiled = self._compile(step)
            if config.checkpoint_every and step - 1 - max(self._checkpoints.complete, 0) > config.checkpoint_every:
                with self._stopwatch.during("save"):  # a failure costs no more than the interval and one step
                    self._checkpoints.wait()
            self._profiler.begin_step(step)
            with self._stopwatch.during("data"):
                batch = next(batches)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                self._state, metrics = compiled(self._state, batch)
            self._rows_read += config.batch_size
            self._window.append((step, metrics))
            self._poll()
            self._log(step - 1)
            self._watchdog.step()
            self._profiler.end_step(step, self._state)
            periodic = config.checkpoint_every and step % config.checkpoint_every == 0
            if self._stopped_by or self._save_due or periodic or step == last:
                self._save()
            if config.evaluation.every and step % config.evaluation.every == 0 and step != last:
                self._log(step)
                self._evaluate(step)
            if self._stopped_by:
                break
        step = int(self._state.step)
        self._log(step)
        result = self._evaluate(step) if step >= last else None
        with self._stopwatch.during("save"):
            self._checkpoints.wait()
        log(self._progress.summary())
        if self._stopped_by:
            self._writer.write(step, self._stopwatch.metrics())
            log(f"stopped by {self._stopped_by} after step {step}; run the same command to resume")
            return None
        return result

    def _compile(self, step: int) -> jax.stages.Compiled:
        """Compiles ahead, so that the time it takes is known and not part of any rate."""
        config = self._config
        length = row_length(config, step)
        batch = place_batch(self._setup.training.rows[0], config.batch_size, self._mesh)
        begin = time.perf_counter()
        self._watchdog.pause()
        with self._stopwatch.during("compile"):
            compiled = jit_train_step(config, self._assembly, length).lower(self._assembly.state, batch).compile()
            # The first step opens connections between the devices, which give up after 30 s on a CPU.
            multihost.barrier("compiling the training step")
        self._watchdog.step()
        seconds = time.perf_counter() - begin
        rows_in_words = f" for rows of {length:,} tokens" if config.curriculum else ""
        log(f"compiled the training step{rows_in_words} in {seconds:.1f} s")
        self._writer.write(step - 1, {"compile_seconds": seconds})
        return compiled

    def _poll(self) -> None:
        """Notes what falls due here, on all processes alike, and whether the last save has ended."""
        self._checkpoints.check()
        minutes = self._config.checkpoint_minutes
        old = minutes and time.monotonic() - self._saved_at >= 60 * minutes
        if old and not self._save_requested and jax.process_index() == 0:
            self._save_requested = True
            self._requests.make("save", f"{minutes} minutes")
        due = self._requests.poll()
        self._save_due |= "save" in due
        self._stopped_by = self._stopped_by or due.get("stop", "")

    def _log(self, step: int) -> None:
        """Reads the metrics of all steps up to this one, if a line of them is due."""
        if len(self._window) > 1:
            jax.block_until_ready(self._window[-2])  # no more than one step ahead of the devices
        if not self._window or (step % self._config.log_every and step != self._config.num_steps):
            return
        window = [metrics for number, metrics in self._window if number <= step]
        self._window = [(number, metrics) for number, metrics in self._window if number > step]
        if not window:
            return
        scalars = window_means(jax.device_get(window))
        if scalars["skipped_in_a_row"] >= self._config.max_skipped_steps:
            raise UserError(
                f"the loss or gradient was not finite in {scalars['skipped_in_a_row']:.0f} steps in a row, up to step "
                f"{step}: lower config.optimizer.learning_rate or look at the data; checkpoints are kept."
            )
        rows = self._first_row + (step - self._first_step) * self._config.batch_size
        scalars |= self._progress.rates(scalars["tokens"], len(window)) | self._setup.training.consumption(rows)
        scalars |= self._stopwatch.metrics()
        self._writer.write(step, scalars)
        log(self._progress.line(step, scalars))
        self._call(step, scalars)

    def _save(self) -> None:
        with self._stopwatch.during("save"):
            self._checkpoints.save(self._state, rows=self._rows_read)
        self._writer.flush()
        self._save_requested, self._save_due, self._saved_at = False, False, time.monotonic()

    def _evaluate(self, step: int) -> dict[str, float] | None:
        """The evaluation of the present parameters; None if a signal stops it, with a checkpoint of the step."""
        if self._stopped_by:
            return None
        self._watchdog.pause()
        try:
            with self._stopwatch.during("evaluate"):
                result = self._setup.evaluate(self._state.params, self._stop_evaluation)
        except _EvaluationStoppedError:
            if self._checkpoints.newest != step:
                self._save()
            return None
        self._watchdog.step()
        self._progress.evaluated(result["seconds"])
        scalars = {f"eval/{name}": value for name, value in result.items()}
        self._checkpoints.evaluated(held_out_losses([{"step": step, **scalars}]))
        self._writer.write(step, scalars | self._stopwatch.metrics())
        log(f"step {step} | held out: {_one_line(result)}")
        self._call(step, scalars)
        return result

    def _call(self, step: int, metrics: Mapping[str, float]) -> None:
        for callback in self._callbacks:
            callback(step, metrics)

    def _stop_evaluation(self) -> None:
        """Called between the batches of an evaluation."""
        self._poll()
        if self._stopped_by:
            raise _EvaluationStoppedError


class _EvaluationStoppedError(Exception):
    """A signal asks the run to stop."""


def _begin(config: Config, assembly: Assembly) -> TrainState:
    """The state of step 0, every part made where it belongs."""

    def around(params: Params) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, assembly.optimizer.init(params))

    if config.init_from:
        step, params = restore_params(storage.as_path(config.init_from), assembly.state.params)
        log(f"begins with the parameters of step {step} of {config.init_from}")
        return jax.jit(around, out_shardings=assembly.shardings, donate_argnums=0)(params)
    begin = jax.jit(lambda key: around(assembly.task.init(key)), out_shardings=assembly.shardings)
    return begin(jax.random.key(config.seed))


def _former_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """The metrics of former starts of the run; in process 0 alone, which writes them."""
    there = jax.process_index() == 0 and (workdir / "metrics.jsonl").exists()
    return read_metrics(workdir) if there else []


def _last_until(lines: list[dict[str, Any]], step: int) -> dict[str, Any] | None:
    timed = [line for line in lines if line["step"] <= step and "seconds/step" in line]
    return timed[-1] if timed else None


def _one_line(result: dict[str, float]) -> str:
    """The metrics of an evaluation, in one line."""
    words = [f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4f}" for name, value in result.items()]
    return " | ".join([*words[:-1], duration(result["seconds"])])
