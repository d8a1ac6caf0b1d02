"""The summary that a run logs at its start, and the table of its parameters."""

import math
import socket
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from transnormer_jax import storage
from transnormer_jax.distributed import multihost, placement_table
from transnormer_jax.log import log
from transnormer_jax.models import ModelConfig
from transnormer_jax.ops.linear_attention.backends import Problem, resolve_backend
from transnormer_jax.training.config import Config
from transnormer_jax.training.setup import TrainingSetup

_GIB = 2**30


def introduce(
    config: Config,
    workdir: storage.AnyPath,
    mesh: Mesh,
    state: Any,
    setup: TrainingSetup,
    *,
    print_parameters: bool = False,
) -> None:
    """Logs the summary of a run, and writes the table of its parameters to `parameters.txt`; on all processes alike.

    Args:
      setup: what it is trained and evaluated on.

    Raises:
      UserError: the backend of the configuration cannot run here.
    """
    lines = summary(
        config,
        mesh,
        state,
        data=setup.training.description,
        held_out=getattr(setup.evaluate, "description", f"the split {config.data.eval_split!r}"),
        rows_per_epoch=setup.training.per_epoch,
        hosts=len(set(multihost.all_gather(socket.gethostname()))),
    )
    table = parameter_table(state)
    for line in [*lines, f"workdir      {workdir}"]:
        log(line)
    if jax.process_index() == 0:
        with storage.report_write_errors(workdir):
            storage.write_text(workdir / "parameters.txt", table)
        if print_parameters:
            print(table, end="", flush=True)


def summary(
    config: Config,
    mesh: Mesh,
    state: Any,
    *,
    data: str,
    held_out: str = "",
    rows_per_epoch: int,
    hosts: int = 1,
) -> list[str]:
    """Returns the lines that a run begins with. Called by all processes alike, for the check of kernels.

    Args:
      state: its `TrainState`: arrays, or shapes and dtypes, with shardings.
      data: what it is trained on, in words.
      held_out: what it is evaluated on, in words; "" if unknown.
      rows_per_epoch: how many rows hold all the data once.
      hosts: how many machines take part.

    Raises:
      UserError: the backend of the configuration cannot run here.
    """
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    params, optimizer = device_bytes(state.params) / _GIB, device_bytes(state.opt_state) / _GIB
    tokens = config.batch_size * config.sequence_length
    lines = {
        "model": f"{config.architecture}, {parameters:,} parameters, {_dtypes(config)}; {attention_summary(config)}",
        "memory": f"{params + optimizer:.3g} GiB per device: parameters {params:.3g}, optimizer state {optimizer:.3g}",
        "devices": devices_words(mesh, hosts),
        "steps": f"{config.num_steps:,} of {config.batch_size:,} rows x {config.sequence_length:,} tokens = "
        f"{tokens:,} tokens; {rows_per_epoch / config.batch_size:,.1f} steps per epoch",
        "data": f"{config.task.name}: {data}" + (f"; held out: {held_out}" if held_out else ""),
        "checkpoints": checkpoint_words(config),
    }
    width = max(map(len, lines))
    return [f"{name:{width}}  {words}" for name, words in lines.items()]


def parameter_table(state: Any) -> str:
    """Returns a line for each parameter of a `TrainState`, with how it is divided over the devices, and their sum."""
    total = sum(x.size for x in jax.tree.leaves(state.params))
    return f"{placement_table(state.params)}\n{total:,} parameters\n"


def device_bytes(tree: Any) -> int:
    """Returns the bytes that the arrays of a tree (or shapes with shardings) take on each device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def devices_words(mesh: Mesh, hosts: int = 1) -> str:
    """Returns how many devices of which kind take part, on this process and in all, and how they are laid out."""
    devices = list(mesh.devices.flat)
    local = sum(device.process_index == jax.process_index() for device in devices)
    processes = len({device.process_index for device in devices})
    count = f"{mesh.size} x {devices[0].device_kind}"
    if processes > 1:
        count += f", {local} of them local, {processes} processes on {hosts} host{'s' if hosts > 1 else ''}"
    axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    return f"{count}; mesh {axes or 'of one device'}"


def checkpoint_words(config: Config) -> str:
    """Returns when checkpoints are saved, and which of them are kept.

    >>> checkpoint_words(Config(checkpoint_every=500, checkpoint_minutes=15, keep_checkpoints=3, keep_best=1))
    'every 500 steps and every 15 minutes; kept: the newest 3, the best 1'
    """
    times = [f"every {config.checkpoint_every:,} steps"] if config.checkpoint_every else []
    times += [f"every {config.checkpoint_minutes:g} minutes"] if config.checkpoint_minutes else []
    kept = [f"the newest {config.keep_checkpoints:,}"]
    kept += [f"every step that is a multiple of {config.keep_every:,}"] if config.keep_every else []
    kept += [f"the best {config.keep_best:,}"] if config.keep_best else []
    return f"{' and '.join(times)}; kept: {', '.join(kept)}"


def attention_summary(config: Config) -> str:
    """Returns how a model mixes tokens, with the backend that its steps run if one operator serves all layers.

    Raises:
      UserError: the backend of the configuration cannot run here.
    """
    model = config.model
    if not isinstance(model, ModelConfig):
        return "recurrent"
    if not model.linear_key_dims:
        return f"attention {', '.join(dict.fromkeys(model.attentions))}, backend {model.backend}"
    shape = (config.batch_size // config.accumulation_steps, config.sequence_length, model.num_heads)
    backends = {
        resolve_backend(model.backend, Problem(*shape, key_dim, model.head_dim, jnp.dtype(model.dtype)))
        for key_dim in model.linear_key_dims
    }
    return f"linear attention by {' and '.join(sorted(backends))}"


def _dtypes(config: Config) -> str:
    kept, computed = config.model.param_dtype, config.model.dtype
    return kept if kept == computed else f"{kept}, computed in {computed}"
