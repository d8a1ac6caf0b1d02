"""Compiles a training or decoding step for TPUs without TPUs, and reports what it needs."""

import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from transnormer_jax.distributed import batch_sharding, make_mesh
from transnormer_jax.distributed.program import Kernel, Program, read_program
from transnormer_jax.distributed.topology import Topology
from transnormer_jax.errors import UserError
from transnormer_jax.models import Cache, LanguageModel, ModelConfig
from transnormer_jax.models.block import has_constant_state
from transnormer_jax.tasks import CausalLM, Params
from transnormer_jax.training.assembly import assemble, jit_train_step
from transnormer_jax.training.config import Config
from transnormer_jax.training.flops import peak_flops, training_flops_per_token
from transnormer_jax.training.placement import abstract_params, check_mesh, place_batch, place_cache, place_params
from transnormer_jax.training.setup import make_task

STEPS = ("train", "decode")
_ROW = ("inputs", "targets", "segment_ids")
# How the compiler says what a program would need that it refuses.
_REQUIRED = re.compile(r"\(([\d.]+)([KMGT])\) exceeds")


def compile_step(config: Config, topology: Topology, step: str = "train") -> dict[str, Any]:
    """Compiles one step of a run for a slice of TPUs.

    The numbers are of one chip and one step. `flops_per_chip` is what the program does: matrix products as compiled,
    and each kernel of `linear_attention` as its mathematics needs (as `training_flops_per_token` counts: the state
    written and read, and twice that for the gradient; chunks do more inside themselves), unless its text holds a cost
    estimate. `model_flops_per_chip` is 6ND, or 2ND for decoding; `recompute_factor` is their ratio.

    `estimated_seconds` is the compiler's count of cycles for its own operations, plus the larger of FLOPs and HBM
    traffic of each kernel at the chip's peak rates, or the time of the collectives in rings where that is longer: as if
    all of them were hidden behind computation. `seconds` has the three parts.

    Args:
      config: of the run. Its task must be a causal language model's, of which the rows are known without data.
      step: "train", or "decode": one token for each of `config.evaluation.batch_size` rows, parameters in bfloat16.

    Returns:
      What `--help` of `transnormer_jax.compile` lists, in plain values. Of a program that the compiler refuses because
      it does not fit, only what is known without compiling, and the memory that it would need.

    Raises:
      UserError: mesh, task, model and step do not fit together.
    """
    mesh = make_mesh(config.mesh, topology.devices)
    check_mesh(config, mesh)
    function, arguments, params, tokens = (_train_step if step == "train" else _decode_step)(config, mesh)
    per_chip = topology.devices_per_chip
    model_flops = training_flops_per_token(config.model, params) * tokens / topology.num_chips
    report: dict[str, Any] = {
        "topology": topology.name,
        "step": step,
        "chips": topology.num_chips,
        "mesh": dict(mesh.shape),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "tokens": tokens,
        "bytes_per_chip": {
            "arguments": per_chip * local_bytes(arguments),
            "temporaries": None,
            "peak": None,
            "available": per_chip * topology.chip.hbm_bytes,
        },
        "fits": False,
        "model_flops_per_chip": model_flops if step == "train" else model_flops / 3,
    }
    start = time.perf_counter()
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if required := _REQUIRED.search(str(error)):
            needed = float(required[1]) * 1024 ** ("KMGT".index(required[2]) + 1)
            report["bytes_per_chip"]["peak"] = per_chip * int(needed)
        return report | {"compile_seconds": time.perf_counter() - start}
    report["compile_seconds"] = time.perf_counter() - start
    memory = compiled.memory_analysis()
    report["bytes_per_chip"] |= {
        "arguments": per_chip * memory.argument_size_in_bytes,
        "outputs": per_chip * memory.output_size_in_bytes,
        "aliases": per_chip * memory.alias_size_in_bytes,
        "temporaries": per_chip * memory.temp_size_in_bytes,
        "peak": per_chip * memory.peak_memory_in_bytes,
    }
    report["fits"] = memory.peak_memory_in_bytes <= topology.chip.hbm_bytes
    return report | _counts(read_program(compiled.as_text(), dict(mesh.shape)), topology, report)


def local_bytes(tree: Any) -> int:
    """What the arrays of a tree, or their shapes with shardings, take on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in leaves)


def _counts(program: Program, topology: Topology, report: dict[str, Any]) -> dict[str, Any]:
    """What the report says of the program itself."""
    per_chip, chip = topology.devices_per_chip, topology.chip
    flops = per_chip * (program.flops + sum(kernel.count * kernel_flops(kernel) for kernel in program.kernels))
    peak = peak_flops(topology.device_kind)
    counts: dict[str, Any] = {
        "flops_per_chip": flops,
        "recompute_factor": flops / report["model_flops_per_chip"],
        "collectives": [
            {"kind": one.kind, "axes": list(one.axes), "count": one.count, "bytes": per_chip * one.bytes}
            for one in program.collectives
        ],
        "kernels": sum(kernel.count for kernel in program.kernels),
        "unknown_loops": program.unknown_loops,
    }
    if program.cycles and peak:
        seconds = {
            "operations": program.cycles / chip.clock_hertz,
            "kernels": sum(
                kernel.count * max(kernel_flops(kernel) / peak, kernel.num_bytes / chip.hbm_bandwidth)
                for kernel in program.kernels
            ),
            "collectives": sum(one.bytes for one in program.collectives) / chip.ring_bandwidth,
        }
        estimate = max(seconds["operations"] + seconds["kernels"], seconds["collectives"])
        counts["seconds"] = seconds
        counts["estimated_seconds"] = estimate
        counts["implied_mfu"] = report["model_flops_per_chip"] / (estimate * peak * per_chip)
    return counts


def kernel_flops(kernel: Kernel) -> float:
    """FLOPs of one call: its author's estimate, else what linear attention needs; 0 for a kernel of another name."""
    if kernel.flops is not None:
        return float(kernel.flops)
    if not kernel.name.startswith("linear_attention"):
        return 0.0
    # Results of `ops.linear_attention.pallas_tpu`: out [B, N, H * V] and state [B, K, H * V]; or dq, dk, dv and dS.
    backward = kernel.name.endswith("backward")
    length, state = kernel.results[0].shape[1], kernel.results[3 if backward else 1]
    return (8.0 if backward else 4.0) * length * float(np.prod(state.shape))


# What to lower, its arguments, its parameters, and the number of tokens that a step reads.
_Step = tuple[Any, tuple[Any, ...], Params, int]


def _train_step(config: Config, mesh: Mesh) -> _Step:
    task = make_task(config)
    if not isinstance(task, CausalLM):
        raise UserError(
            f"the rows of task {config.task.name!r} are not known without its data: set config.task.name='causal_lm'."
        )
    assembly = assemble(config, task, mesh)
    row = dict.fromkeys(_ROW, np.zeros(config.sequence_length, np.int32))
    batch = place_batch(row, config.batch_size, mesh)
    function = jit_train_step(config, assembly, config.sequence_length)
    return function, (assembly.state, batch), assembly.state.params, config.batch_size * config.sequence_length


def _decode_step(config: Config, mesh: Mesh) -> _Step:
    if not isinstance(config.model, ModelConfig) or not has_constant_state(config.model):
        raise UserError(
            f"--step=decode is for a model with a state of constant size, not for this {config.architecture!r}: use "
            "--step=train."
        )
    model, rows = LanguageModel(config.model), config.evaluation.batch_size
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding),
        place_params(abstract_params(make_task(config)), mesh),
    )
    cache = place_cache(jax.eval_shape(lambda: model.init_cache(rows)), mesh)
    tokens = jax.ShapeDtypeStruct((rows, 1), jnp.int32, sharding=batch_sharding(mesh, (rows, 1)))

    def decode(params: Params, cache: Cache, tokens: jax.Array) -> Any:
        return model.apply({"params": params}, tokens, cache=cache)

    function = jax.jit(decode, donate_argnums=1, out_shardings=(None, jax.tree.map(lambda x: x.sharding, cache)))
    return function, (params, cache, tokens), params, rows
