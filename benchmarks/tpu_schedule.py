"""The TPU kernels on every generation of TPU, without one: the compiler's schedule against the time that HBM needs.

For each program and generation libtpu compiles the Pallas kernels, and its schedule is replayed (`tpu_bundles.py`). The
table says, for the forward and the backward pass of each program: cycles for 128 tokens of a head, the part of them
that waits for an earlier instruction, how busy the matrix units are, vector registers spilled per step of the grid,
memory on the chip, bytes to and from HBM and their ratio to the least that must move, the time of the schedule, the
time of those bytes, and the ratio of the two times. Below 1, the schedule hides behind the copies. The last column is
what the program copies in HBM beside its kernels.

It is a model: neither the start of a pipeline nor what a copy costs beyond its bytes is in it. Clocks and
memories are those of jax's `tpu_info`, bandwidths the published ones. No TPU is needed, libtpu is, of the version whose
schedules `tpu_bundles.py` reads:

    make .venv/libtpu
    python -m benchmarks.tpu_schedule
    python -m benchmarks.tpu_schedule --generations=v5e --programs=forward,training
    python -m benchmarks.tpu_schedule --generations=v5e --build=my_module:build

With --build, `build(generation)` of that module returns any function with Pallas kernels, and its operands as
`jax.ShapeDtypeStruct`s. Writes a JSON file. The last line on stdout is a summary in JSON.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_environment
from benchmarks.record import check_known, check_positive, main, prepare, write
from benchmarks.tpu_compiler import GENERATIONS, Job, compile_programs, libtpu_version
from benchmarks.tpu_programs import PROGRAMS, Program, program_job
from benchmarks.tpu_report import HEADER, Row, rows_of, summarize
from transnormer_jax.errors import UserError

_OUTPUT = "benchmarks/results/tpu/schedule.json"


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


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Compiles, prints the table and writes `output` as it goes, and returns the summary.

    Raises:
      UserError: libtpu is missing, or `output` cannot be written.
    """
    prepare(output)
    environment = describe_environment() | {"libtpu": libtpu_version()}
    generations = {name: _describe(name) for name in settings.generations}
    print(HEADER)
    rows = list[Row]()
    for row in _compile_all(settings):
        rows.append(row)
        print(row, flush=True)
        found = {"generations": generations, "rows": [row.as_json() for row in rows], "summary": summarize(rows)}
        write(output, command_line, settings, found, environment)
    return {"output": str(output), **summarize(rows)}


def _compile_all(settings: Settings) -> Iterator[Row]:
    programs: dict[str, Program | None] = {name: PROGRAMS[name] for name in settings.programs}
    if settings.build:
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
        "hbm_bytes_per_second": generation.hbm_bytes_per_second,
        "vmem_bytes": generation.info.vmem_capacity_bytes,
    }


if __name__ == "__main__":
    main("tpu_schedule", Settings(), run, output=_OUTPUT)
