"""The TPU kernels on every generation of TPU, without one: the compiler's schedule against the time that HBM needs.

For each program and generation libtpu compiles the Pallas kernels, and its schedule is replayed (`tpu_bundles.py`). The
table says, for the forward and the backward pass of each program: cycles for 128 tokens of a head, the part of them
that waits for an earlier instruction, how busy the matrix units are, vector registers spilled per step of the grid,
memory on the chip, bytes to and from HBM and their ratio to the least that must move, the time of the schedule, the
time of those bytes, and the ratio of the two times. Below 1, the schedule hides behind the copies. The last column is
what the program copies in HBM beside its kernels.

It is a model: neither the start of a pipeline nor what a copy costs beyond its bytes is in it. Clocks, bandwidths and
memories are those of jax's `tpu_info`. No TPU is needed, libtpu is:

    pip install --no-deps --target=.venv/libtpu libtpu
    python -m benchmarks.tpu_schedule
    python -m benchmarks.tpu_schedule --generations=v5e --programs=forward,training
    python -m benchmarks.tpu_schedule --generations=v5e --build=my_module:build

With --build, `build(generation)` of that module returns any function with Pallas kernels, and its operands as
`jax.ShapeDtypeStruct`s. Writes a JSON file. The last line on stdout is a summary in JSON.
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.environment import describe_environment
from benchmarks.tpu_compiler import GENERATIONS, Job, compile_programs, libtpu_version
from benchmarks.tpu_programs import PROGRAMS, Program, program_job
from benchmarks.tpu_report import HEADER, Row, rows_of, summarize
from transnormer_jax import command
from transnormer_jax.errors import UserError, did_you_mean

_OUTPUT = "benchmarks/results/tpu/schedule.json"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to compile.

    Attributes:
      generations: names in `GENERATIONS`.
      programs: names in `PROGRAMS`.
      build: "module:function" in place of `programs`, or None.
    """

    generations: tuple[str, ...] = tuple(GENERATIONS)
    programs: tuple[str, ...] = tuple(PROGRAMS)
    build: str | None = None

    def __post_init__(self):
        for kind, names, known in (
            ("generation", self.generations, GENERATIONS),
            ("program", self.programs, PROGRAMS),
        ):
            if not names:
                raise UserError(f"there is nothing to compile: give at least one {kind}.")
            for name in names:
                if name not in known:
                    raise UserError(f"unknown {kind} {name!r}: {did_you_mean(name, known)}")
        if self.build is not None and len(self.build.split(":")) != 2:
            raise UserError(f"build is {self.build!r}: give module:function.")


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Compiles, prints the table as it goes, and writes `output`.

    Args:
      settings: what to compile.
      output: the JSON file to write.
      command_line: for the record.

    Returns:
      The summary.

    Raises:
      UserError: libtpu is missing, or the directory of `output` cannot be made.
    """
    try:  # Now, rather than after minutes of compiling.
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory of {str(output)!r} ({error}): choose another output.") from error

    environment = describe_environment() | {"libtpu": libtpu_version()}
    print(HEADER)
    rows = list[Row]()
    for row in _compile_all(settings):
        rows.append(row)
        print(row, flush=True)

    summary = summarize(rows)
    record = {
        "command": command_line,
        "environment": environment,
        "settings": dataclasses.asdict(settings),
        "generations": {name: _describe(name) for name in settings.generations},
        "rows": [row.as_json() for row in rows],
        "summary": summary,
    }
    output.write_text(json.dumps(record, indent=1) + "\n")
    return {"output": str(output), **summary}


def _compile_all(settings: Settings) -> Iterator[Row]:
    programs: dict[str, Program | None] = {name: PROGRAMS[name] for name in settings.programs}
    if settings.build is not None:
        programs = {settings.build: None}
    plan = [(chip, name, program) for name, program in programs.items() for chip in settings.generations]
    jobs = [
        program_job(chip, program) if program else Job(chip, name, {"generation": chip}) for chip, name, program in plan
    ]
    for (chip, name, program), compiled in zip(plan, compile_programs(jobs), strict=True):
        yield from rows_of(chip, GENERATIONS[chip], name, program, compiled)


def _describe(chip: str) -> dict[str, Any]:
    """What is assumed of a generation, for the record; rates and memories are those of one core."""
    generation = GENERATIONS[chip]
    return {
        "cores": generation.cores,
        "clock_hertz": generation.clock_hertz,
        "flops_per_cycle": generation.flops_per_cycle,
        "hbm_bytes_per_second": generation.info.mem_bw_bytes_per_second,
        "vmem_bytes": generation.info.vmem_capacity_bytes,
    }


def _define_flags() -> None:
    # Not on import: flag names are global, and a test may import several commands.
    default = Settings()
    flags.DEFINE_list("generations", list(default.generations), f"Among: {', '.join(GENERATIONS)}.")
    flags.DEFINE_list("programs", list(default.programs), f"What to compile, among: {', '.join(PROGRAMS)}.")
    flags.DEFINE_string("build", None, "module:function that returns a function and its operands, in their place.")
    flags.DEFINE_string("output", _OUTPUT, "JSON file to write.")


def _main() -> None:
    values = flags.FLAGS
    settings = Settings(tuple(values.generations), tuple(values.programs), values.build)
    command_line = shlex.join(["python", "-m", "benchmarks.tpu_schedule", *sys.argv[1:]])
    print(json.dumps(run(settings, Path(values.output), command_line)))


if __name__ == "__main__":
    _define_flags()
    command.run(_main)
