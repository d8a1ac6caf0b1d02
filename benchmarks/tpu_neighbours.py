"""What XLA makes of the operator and its neighbours on TPU: whether a kernel of our own could save memory traffic.

The operator by chunks, a decoding step, and the norm and gate before the output projection are bound by memory. For
each generation of TPU the compiled program's reads and writes are set against the least: operands and results once. No
TPU is needed, but libtpu (see `tpu_schedule.py`).

    python -m benchmarks.tpu_neighbours

Writes a JSON file. The last line on stdout is a summary in JSON.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.environment import describe_environment
from benchmarks.record import check_known, check_positive, main, prepare, write
from benchmarks.tpu_compiler import GENERATIONS, Job, compile_programs, libtpu_version
from benchmarks.trees import tree_bytes
from transnormer_jax.ops import linear_attention, simple_rms_norm

_OUTPUT = "benchmarks/results/tpu/neighbours.json"
_HEADS, _HEAD_DIM, _MODEL_DIM = 32, 128, 4096


def decode_step() -> tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]:
    """One token of 64 rows: q, k and v [64, 1, 32 * 128] bfloat16, and the float32 states."""
    rows = 64

    def step(q: Array, k: Array, v: Array, log_decay: Array, state: Array) -> tuple[Array, Array]:
        q, k, v = (x.reshape(rows, 1, _HEADS, _HEAD_DIM) for x in (q, k, v))
        out, state = linear_attention(q, k, v, log_decay, initial_state=state)
        return out.reshape(rows, 1, -1), state

    token = jax.ShapeDtypeStruct((rows, 1, _HEADS * _HEAD_DIM), jnp.bfloat16)
    state = jax.ShapeDtypeStruct((rows, _HEADS, _HEAD_DIM, _HEAD_DIM), jnp.float32)
    return step, (token, token, token, jax.ShapeDtypeStruct((_HEADS,), jnp.float32), state)


def norm_gate_projection() -> tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]:
    """(u * SimpleRMSNorm(out)) W for 8 rows of 8192 tokens in bfloat16.

    XLA reads `out` twice, for the norm and for the product. A kernel for norm and gate would write its result instead,
    and the product would read that: as many bytes.
    """

    def mix(out: Array, u: Array, weight: Array) -> Array:
        return (u * simple_rms_norm(out, 1e-6)) @ weight

    tokens = jax.ShapeDtypeStruct((8, 8192, _HEADS * _HEAD_DIM), jnp.bfloat16)
    return mix, (tokens, tokens, jax.ShapeDtypeStruct((_HEADS * _HEAD_DIM, _MODEL_DIM), jnp.bfloat16))


def chunked_training(head_dim: int) -> tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]:
    """Output and gradients of the operator as XLA compiles it, for 8 rows of 8192 tokens in bfloat16."""

    def training(q: Array, k: Array, v: Array, log_decay: Array, d_out: Array) -> Any:
        def attend(*flat: Array) -> Array:
            q, k, v = (x.reshape(*x.shape[:2], _HEADS, head_dim) for x in flat)
            out, _ = linear_attention(q, k, v, log_decay, backend="chunked")
            return out.reshape(*out.shape[:2], -1)

        out, pull_back = jax.vjp(attend, q, k, v)
        return out, pull_back(d_out)

    tokens = jax.ShapeDtypeStruct((8, 8192, _HEADS * head_dim), jnp.bfloat16)
    return training, (tokens, tokens, tokens, jax.ShapeDtypeStruct((_HEADS,), jnp.float32), tokens)


PROGRAMS: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "decode_step": (decode_step, {}),
    "norm_gate_projection": (norm_gate_projection, {}),
    **{f"chunked_training_{size}": (chunked_training, {"head_dim": size}) for size in (32, 64, 96, 128, 192)},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to compile.

    Attributes:
      generations: among v4, v5e, v5p, v6e and tpu7x.
      programs: names in `PROGRAMS`.
    """

    generations: tuple[str, ...] = tuple(GENERATIONS)
    programs: tuple[str, ...] = tuple(PROGRAMS)

    def __post_init__(self):
        check_positive(self)
        check_known("generations", self.generations, GENERATIONS)
        check_known("programs", self.programs, PROGRAMS)


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Compiles each program for each generation, prints the table and writes `output` as it goes.

    Returns:
      Bytes over the least, by program and generation.

    Raises:
      UserError: libtpu is missing, or `output` cannot be written.
    """
    prepare(output)
    environment = describe_environment() | {"libtpu": libtpu_version()}
    plan = [(name, chip) for name in settings.programs for chip in settings.generations]
    jobs = []
    for name, chip in plan:
        build, arguments = PROGRAMS[name]
        jobs.append(Job(chip, f"benchmarks.tpu_neighbours:{build.__name__}", arguments))
    rows = []
    summary = dict[str, dict[str, float | None]]()
    print(f"{'program':<22} {'chip':<6} {'least GB':>9} {'XLA / least':>12}")
    for (name, chip), compiled in zip(plan, compile_programs(jobs), strict=True):
        build, arguments = PROGRAMS[name]
        function, operands = build(**arguments)
        least = tree_bytes(operands) + tree_bytes(jax.eval_shape(function, *operands))
        ratio = None if compiled.failed else compiled.accessed_bytes / least
        rows.append(
            {
                "program": name,
                "generation": chip,
                "least_bytes": least,
                "accessed_bytes": compiled.accessed_bytes,
                "temp_bytes": compiled.temp_bytes,
                "failed": compiled.failed,
            }
        )
        summary.setdefault(name, {})[chip] = ratio and round(ratio, 2)
        print(f"{name:<22} {chip:<6} {least / 1e9:9.3f} {compiled.failed or format(ratio, '12.2f')}", flush=True)
        write(output, command_line, settings, {"rows": rows, "summary": summary}, environment)
    return {"output": str(output), **summary}


if __name__ == "__main__":
    main("tpu_neighbours", Settings(), run, output=_OUTPUT)
