"""The training program, from a configuration to a finished run. Run again, it resumes."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from transnormer_jax.data import load_tokenizer
from transnormer_jax.distributed import make_mesh, multihost, placement_table, shared_files
from transnormer_jax.errors import UserError
from transnormer_jax.tasks import Params
from transnormer_jax.training.assembly import Assembly, assemble, jit_train_step
from transnormer_jax.training.batches import batches_on_mesh
from transnormer_jax.training.checkpoints import Checkpoints
from transnormer_jax.training.config import Config
from transnormer_jax.training.curriculum import row_length
from transnormer_jax.training.flops import training_flops_per_token
from transnormer_jax.training.metrics import MetricWriter
from transnormer_jax.training.parameters import restore_params
from transnormer_jax.training.placement import check_mesh, place_batch
from transnormer_jax.training.profiler import Profiler
from transnormer_jax.training.progress import Progress, duration
from transnormer_jax.training.setup import TrainingSetup, load_setup
from transnormer_jax.training.step import StepMetrics, TrainState
from transnormer_jax.training.stop_signal import StopSignal
from transnormer_jax.training.watchdog import Watchdog
from transnormer_jax.training.workdir import changed_rows, model_to_begin_with, write_config


def train(config: Config, workdir: Path) -> dict[str, float] | None:
    """Trains until `config.num_steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: of the run.
      workdir: of its configuration, checkpoints and metrics; made if it does not exist.

    Returns:
      The last evaluation, or None if a signal stopped the run.

    Raises:
      UserError: something in the configuration, the data or the workdir does not fit, or too many steps in a row were
        not finite.
    """
    # ---- Devices and data: whatever cannot work fails here, before anything is written. ----
    shared_files.check_shared(workdir)
    config = model_to_begin_with(config, workdir, load_tokenizer(config.data.tokenizer).fingerprint)
    mesh = make_mesh(config.mesh)
    check_mesh(config, mesh)
    with shared_files.prepared_once(config.data.data_dir):
        setup = load_setup(config, mesh)
    rows = setup.training.rows
    shared_files.check_same_data(setup.training.description, rows[0])

    # ---- State: shapes first, then layouts, then arrays: nothing is ever whole on one device. ----
    assembly = assemble(config, setup.task, mesh)
    checkpoints = Checkpoints(workdir, config=config, tokenizer=setup.tokenizer)
    restored = checkpoints.restore(assembly.state)
    with jax.set_mesh(mesh):
        state, rows_read = restored or (_begin(config, assembly), 0)
    first_step, first_row = int(state.step), rows_read

    # ---- Tell what will run. ----
    if restored and jax.process_index() == 0 and (changed := changed_rows(workdir, config)):
        print(
            f"warning: {' and '.join(changed)} changed since the last start: the run goes on at row {rows_read:,} of "
            "the new rows, so parts of an epoch may come twice or not at all."
        )
    write_config(workdir, config)
    writer = MetricWriter(workdir, first_step=first_step + 1, wandb_project=config.wandb_project)
    _introduce(config, workdir, mesh, state, setup)

    # ---- Compile ahead, so that the time it takes is known and not part of any rate. ----
    abstract_batch = place_batch(rows[0], config.batch_size, mesh)

    def compile_step(step: int) -> jax.stages.Compiled:
        length = row_length(config, step)
        begin = time.perf_counter()
        with jax.set_mesh(mesh):
            compiled = jit_train_step(config, assembly, length).lower(assembly.state, abstract_batch).compile()
        seconds = time.perf_counter() - begin
        rows_in_words = f" for rows of {length:,} tokens" if config.curriculum else ""
        print(f"compiled the training step{rows_in_words} in {seconds:.1f} s", flush=True)
        writer.write(step - 1, {"compile_seconds": seconds})
        return compiled

    compiled_step = compile_step(first_step + 1)

    # ---- The loop. Step i + 1 is under way before the metrics of step i are read. ----
    batches = batches_on_mesh(rows, config.batch_size, rows_read, mesh)
    progress = Progress(training_flops_per_token(config.model, assembly.state.params), config.num_steps, first_step)
    pending: StepMetrics | None = None
    result = None

    def read_pending(step: int) -> None:
        if pending is None:
            return
        scalars = {name: float(value) for name, value in jax.device_get(pending)._asdict().items()}
        progress.count(scalars["tokens"])
        if scalars["skipped_in_a_row"] >= config.max_skipped_steps:
            raise UserError(
                f"the loss or gradient was not finite in {config.max_skipped_steps} steps in a row, up to step {step}: "
                "lower config.optimizer.learning_rate or look at the data; checkpoints are kept."
            )
        if step % config.log_every == 0 or step == config.num_steps:
            scalars |= progress.rates(step) | setup.training.consumption(
                first_row + (step - first_step) * config.batch_size
            )
            writer.write(step, scalars)
            print(progress.line(step, scalars), flush=True)

    def evaluate(step: int) -> dict[str, float]:
        watchdog.pause()
        with progress.pause():
            result = setup.evaluate(state.params)
            writer.write(step, {f"eval/{name}": value for name, value in result.items()})
            print(f"step {step} | held out: {_in_words(result)}", flush=True)
        watchdog.step()
        return result

    def save() -> None:
        with progress.pause():
            checkpoints.save(state, rows=rows_read)

    requests = multihost.Requests()
    watchdog = Watchdog(config.watchdog_seconds)
    profiler = Profiler(workdir / "tensorboard", config.profile_at, config.profile_steps)
    try:
        with StopSignal() as stop, requests, checkpoints, watchdog, profiler, jax.set_mesh(mesh):
            try:
                for step in range(first_step + 1, config.num_steps + 1):
                    if step > first_step + 1 and row_length(config, step) != row_length(config, step - 1):
                        watchdog.pause()
                        with progress.pause():
                            compiled_step = compile_step(step)
                        watchdog.step()
                    profiler.begin_step(step)
                    with jax.profiler.StepTraceAnnotation("train", step_num=step):
                        state, metrics = compiled_step(state, next(batches))
                    rows_read += config.batch_size
                    if stop:
                        requests.make("stop", stop.name)
                    stopping = "stop" in requests.poll()
                    read_pending(step - 1)
                    pending = metrics
                    watchdog.step()
                    profiler.end_step(step, state)
                    due = config.evaluation.every and step % config.evaluation.every == 0 and step != config.num_steps
                    if due and not stopping:  # after a signal, the time left is for the checkpoint
                        read_pending(step)
                        pending = None
                        evaluate(step)
                    if stopping or step % config.checkpoint_every == 0 or step == config.num_steps:
                        save()
                    if stopping:
                        break
                read_pending(int(state.step))
                if int(state.step) < config.num_steps:
                    name = stop.name or "a signal to another process"
                    print(f"stopped by {name} after step {int(state.step)}; run the same command to resume", flush=True)
                else:
                    result = evaluate(int(state.step))
            except UserError:  # said by the loop itself, which keeps the checkpoints that it has
                raise
            except Exception:
                checkpoints.save_in_emergency(state, rows=rows_read)
                raise
    finally:
        writer.close()
    return result


def _begin(config: Config, assembly: Assembly) -> TrainState:
    """The state of step 0, every part made where it belongs."""

    def around(params: Params) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, assembly.optimizer.init(params))

    if config.init_from:
        step, params = restore_params(Path(config.init_from), assembly.state.params)
        print(f"begins with the parameters of step {step} of {config.init_from}")
        return jax.jit(around, out_shardings=assembly.shardings, donate_argnums=0)(params)
    begin = jax.jit(lambda key: around(assembly.task.init(key)), out_shardings=assembly.shardings)
    return begin(jax.random.key(config.seed))


def _in_words(result: dict[str, float]) -> str:
    """The metrics of an evaluation, in one line."""
    words = [f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4f}" for name, value in result.items()]
    return " | ".join([*words[:-1], duration(result["seconds"])])


def _introduce(config: Config, workdir: Path, mesh: Mesh, state: TrainState, setup: TrainingSetup) -> None:
    print(
        f"process {jax.process_index()} of {jax.process_count()}, {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}, workdir {workdir}"
    )
    print(placement_table(state.params))
    total = sum(x.size for x in jax.tree.leaves(state.params))
    print(f"{total:,} parameters; {config.model}")
    steps = setup.training.per_epoch / config.batch_size
    print(f"task {config.task.name}: {setup.training.description}; {steps:,.1f} steps an epoch", flush=True)
