"""The TPU kernels on every generation of TPU, without one: the compiler's schedule against the time that HBM needs.

For each program and generation libtpu compiles the Pallas kernels, and its schedule is replayed (`tpu_bundles.py`). A
row says, for the forward or the backward pass of a program: cycles for 128 tokens of a head, the part of the cycles
that waits for an earlier instruction, how busy the matrix units are, vector registers spilled per step of the grid,
bytes to and from HBM over the least that must move, the time of the schedule, the time of those bytes, and the ratio of
the two times: below 1, the schedule hides behind the copies. It also says what the program copies in HBM beside its
kernels.

It is a model: neither the start of a pipeline nor what a copy costs beyond its bytes is in it. Clocks and memories are
those of jax's `tpu_info`, bandwidths the published ones. No TPU is needed, libtpu is, of the version whose schedules
`tpu_bundles.py` reads:

    make .venv/libtpu
    python -m benchmarks.tpu_schedule
    python -m benchmarks.tpu_schedule --generations=v5e --programs=forward,training
    python -m benchmarks.tpu_schedule --generations=v5e --build=my_module:build

With --build, `build(generation)` of that module returns any function with Pallas kernels, and its operands as
`jax.ShapeDtypeStruct`s.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.common import Record, check_known, check_positive, main
from benchmarks.definition import least_bytes
from benchmarks.tpu_compiler import GENERATIONS, Compiled, Job, Kernel, compile_programs, libtpu_version
from transnormer_jax.errors import UserError
from transnormer_jax.ops.linear_attention import linear_attention

_MODEL_DIM = 2048


@dataclasses.dataclass(frozen=True)
class Program:
    """A use of the operator with q, k [B, N, H, K] and v [B, N, H, V].

    Attributes:
      projections: whether q, k and v are products of [B, N, 2048] with matrices, and the output goes back.
      training: whether the gradients of all floating-point operands are taken, too, but that of a constant decay.
      gates: whether there is a decay per token and head, not a constant one per head.
      documents: whether rows are packed documents.
      states: number of documents of a row whose states are given and returned, or 0.
      batch: rows B.
      num_tokens: tokens N.
      heads: heads H.
      key_dim: features K.
      value_dim: features V.
      dtype: of q, k and v.
    """

    projections: bool = False
    training: bool = False
    gates: bool = False
    documents: bool = False
    states: int = 0
    batch: int = 8
    num_tokens: int = 8192
    heads: int = 32
    key_dim: int = 128
    value_dim: int = 128
    dtype: str = "bfloat16"

    @property
    def token_heads(self) -> int:
        """B N H."""
        return self.batch * self.num_tokens * self.heads

    def least_bytes(self, role: str) -> int:
        """The bytes that "forward" or "backward" cannot avoid to move."""
        states = 2 * 4 * self.batch * self.states * self.heads * self.key_dim * self.value_dim
        itemsize = jnp.dtype(self.dtype).itemsize
        return states + least_bytes(role, self.token_heads, self.key_dim, self.value_dim, itemsize)


_TRAINING = Program(training=True)
_GATES = dataclasses.replace(_TRAINING, gates=True)
_PREFILL = Program(documents=True, batch=1, num_tokens=16384, heads=64)
_LONG = Program(training=True, batch=1, num_tokens=131072, heads=16)
# XLA hands a program operands of such an N with B among the tiles, and copies them: that is no copy in a model.
_RAGGED = Program(training=True, documents=True, num_tokens=4100, heads=16)

PROGRAMS = {
    "forward": Program(),
    "forward_64": Program(key_dim=64, value_dim=64),
    "training": _TRAINING,
    "training_64": dataclasses.replace(_TRAINING, key_dim=64, value_dim=64),
    "training_lrpe": dataclasses.replace(_TRAINING, key_dim=128, value_dim=64),
    "training_documents": dataclasses.replace(_TRAINING, documents=True),
    "training_gates": _GATES,
    "training_gates_64": dataclasses.replace(_GATES, key_dim=64, value_dim=64),
    "training_gates_documents": dataclasses.replace(_GATES, documents=True),
    "prefill": _PREFILL,
    **{f"prefill_states_{n}": dataclasses.replace(_PREFILL, states=n) for n in (1, 4, 16)},
    "training_float32": dataclasses.replace(_TRAINING, dtype="float32"),
    "projections_training": Program(projections=True, training=True),
    **{
        f"{name}_{size}_{dtype}": dataclasses.replace(program, key_dim=size, value_dim=size, dtype=dtype)
        for name, program, sizes in (("long", _LONG, (64, 128, 192)), ("ragged", _RAGGED, (32, 96, 256)))
        for size in sizes
        for dtype in ("bfloat16", "float32")
    },
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to compile.

    Attributes:
      generations: among v4, v5e, v5p, v6e and tpu7x.
      programs: names in `PROGRAMS`.
      build: module:function that returns a function and its operands, in place of the programs.
    """

    generations: tuple[str, ...] = tuple(GENERATIONS)
    programs: tuple[str, ...] = tuple(PROGRAMS)
    build: str = ""

    def __post_init__(self):
        check_positive(self)
        check_known("generations", self.generations, GENERATIONS)
        check_known("programs", self.programs, PROGRAMS)
        if self.build and len(self.build.split(":")) != 2:
            raise UserError(f"build is {self.build!r}: give module:function.")


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Compiles, prints and records as it goes, and returns the ratios of schedule to HBM.

    Raises:
      UserError: libtpu is missing.
    """
    record.environment["libtpu"] = libtpu_version()
    generations = {name: _describe(name) for name in settings.generations}
    programs: dict[str, Program | None] = {name: PROGRAMS[name] for name in settings.programs}
    if settings.build:
        programs = {settings.build: None}
    plan = [(chip, name, program) for name, program in programs.items() for chip in settings.generations]
    jobs = [
        program_job(chip, program) if program else Job(chip, name, {"generation": chip}) for chip, name, program in plan
    ]
    rows, summary = list[dict[str, Any]](), dict[str, dict[str, float | None]]()
    for (chip, name, program), compiled in zip(plan, compile_programs(jobs), strict=True):
        for row in rows_of(chip, name, program, compiled):
            rows.append(row)
            print(
                {key: x for key, x in row.items() if key not in ("kernels", "temp_bytes", "compile_seconds")},
                flush=True,
            )
            ratio = row.get("schedule_over_hbm")
            summary.setdefault(f"{name} {row['pass']}".strip(), {})[chip] = ratio and round(ratio, 3)
        record.write(generations=generations, rows=rows, summary=summary)
    return summary


def rows_of(chip: str, name: str, program: Program | None, compiled: Compiled) -> Iterator[dict[str, Any]]:
    """Yields a row for the forward pass, and one for the backward pass where there is one.

    Times and cycles are those of the first core. `program` is None for a function of the user.
    """
    roles = dict[str, list[Kernel]]()
    for kernel in compiled.kernels:
        # A backward kernel says so in its name; where jax transposes calls of the forward kernel, the name begins so.
        backward = "backward" in kernel.name or kernel.name.startswith("transpose")
        roles.setdefault("backward" if backward else "forward", []).append(kernel)
    if not roles:
        reason = compiled.failed or "it has no Pallas kernel"
        yield {"generation": chip, "program": name, "pass": "", "failed": reason}
    for role, kernels in roles.items():
        row = {"generation": chip, "program": name, "pass": role}
        yield (
            row
            | _figures(chip, role, program, kernels)
            | {
                "copied_bytes": compiled.copied_bytes,
                "temp_bytes": compiled.temp_bytes,
                "compile_seconds": compiled.seconds,
                "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
            }
        )


def _figures(chip: str, role: str, program: Program | None, kernels: Sequence[Kernel]) -> dict[str, Any]:
    """What a pass takes, and how that compares."""
    generation = GENERATIONS[chip]
    first = [kernel.cores[0] for kernel in kernels]
    every = [core for kernel in kernels for core in kernel.cores]
    cycles = sum(core.cycles for core in first)
    hbm_bytes = sum(core.read_bytes + core.written_bytes for core in every)
    schedule_ms = 1e3 * cycles / generation.clock_hertz
    # Each core at its share of the bandwidth.
    hbm_ms = 1e3 * sum(core.read_bytes + core.written_bytes for core in first) / generation.hbm_bytes_per_second
    found = {
        "cycles": cycles,
        "waiting": 1 - sum(core.issued for core in first) / cycles,
        "mxu_utilization": sum(core.utilization["MATMUL"] * core.cycles for core in first) / cycles,
        "spills": sum(core.spills for core in first),
        "bytes": hbm_bytes,
        "schedule_ms": schedule_ms,
        "hbm_ms": hbm_ms,
        "schedule_over_hbm": schedule_ms / hbm_ms if hbm_bytes else None,  # all operands may be on the chip
    }
    if program is not None:
        # Of what runs at every step of the grid.
        per_step = sum(core.loop_cycles * math.prod(core.grid) for core in every)
        found["cycles_per_128_tokens"] = per_step * 128 / program.token_heads
        found["bytes_over_least"] = hbm_bytes / program.least_bytes(role)
    return found


def _describe(chip: str) -> dict[str, Any]:
    """What is assumed of a generation, for the record; rates and memories are those of one core."""
    generation = GENERATIONS[chip]
    return {
        "cores": generation.cores,
        "clock_hertz": generation.clock_hertz,
        "flops_per_cycle": generation.flops_per_cycle,
        "hbm_bytes_per_second": generation.hbm_bytes_per_second,
        "vmem_bytes": generation.info.vmem_capacity_bytes,
    }


def program_job(generation: str, program: Program) -> Job:
    """What `compile_programs` takes."""
    turns = program.states - 1 if program.states else None  # one for each border between documents
    return Job(generation, "benchmarks.tpu_schedule:build", dataclasses.asdict(program), turns)


def build(**fields: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the function of `Program(**fields)`, and its operands as `jax.ShapeDtypeStruct`s."""
    program = Program(**fields)
    tokens, heads = (program.batch, program.num_tokens), program.heads
    widths = [heads * size for size in (program.key_dim, program.key_dim, program.value_dim)]

    def array(*shape: int, dtype: Any = program.dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    # The decay, and the documents and their states if there are any.
    more = [array(*tokens, heads, dtype=jnp.float32) if program.gates else array(heads, dtype=jnp.float32)]
    if program.documents:
        more.append(array(*tokens, dtype=jnp.int32))
    if program.states:
        more.append(array(program.batch, program.states, heads, program.key_dim, program.value_dim, dtype=jnp.float32))

    def attend(q: Array, k: Array, v: Array, more: list[Array]) -> Array:
        """On what a projection leaves, [B, N, H * K]: a TPU lays [B, N, H, K] out differently in memory."""
        log_decay, ids, states = [*more, None, None][:3]
        q, k, v = (x.reshape(*tokens, heads, -1) for x in (q, k, v))
        options = {"segment_ids": ids, "initial_state": states, "max_segments": program.states or None}
        out, _ = linear_attention(q, k, v, log_decay, backend="pallas_tpu", **options)
        return out.reshape(*tokens, -1)

    def between_projections(x: Array, weights: list[Array], back: Array, more: list[Array]) -> Array:
        q, k, v = (x @ weight for weight in weights)
        return attend(q, k, v, more) @ back

    function: Callable[..., Array] = between_projections if program.projections else attend
    operands: tuple[Any, ...] = tuple(array(*tokens, width) for width in widths)
    if program.projections:
        weights = [array(_MODEL_DIM, width) for width in widths]
        operands = (array(*tokens, _MODEL_DIM), weights, array(widths[-1], _MODEL_DIM))
    if not program.training:
        return function, (*operands, more)

    def training(*operands: Any) -> Any:
        *inputs, (decay, *others), cotangent = operands
        if program.gates:
            out, pullback = jax.vjp(lambda decay, *inputs: function(*inputs, [decay, *others]), decay, *inputs)
        else:
            out, pullback = jax.vjp(lambda *inputs: function(*inputs, [decay, *others]), *inputs)
        return out, pullback(cotangent)

    return training, (*operands, more, jax.eval_shape(function, *operands, more))


if __name__ == "__main__":
    main("tpu_schedule", Settings(), run, output="benchmarks/results/tpu/schedule.json")
