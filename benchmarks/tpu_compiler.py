"""Compiles programs for TPUs with libtpu, on a machine without any, and reads what the compiler says about them.

libtpu takes its options from the environment when it is loaded, so every list of programs is compiled in a process of
its own: `python -m benchmarks.tpu_compiler DIRECTORY`, with the list in DIRECTORY/jobs.json. It prints one line of JSON
per program.
"""

import dataclasses
import functools
import glob
import importlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu

from benchmarks.common import ROOT, last_error_line, one_line
from benchmarks.tpu_bundles import Replay, replay
from transnormer_jax.distributed.topology import CHIPS, ENVIRONMENT, Chip, find_libtpu

_DUMPS = r"packed-bundles-post-ra|pre-delay.*|pre-finalize.*"
_KERNEL = "tpu_custom_call"

# What a compiled program copies beside its kernels.
_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(.*?\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%([\w.-]+) = (.+?) ([\w-]+)\((.*)$", re.MULTILINE)
_ARRAY = re.compile(r"[a-z]+(\d+)\w*\[([\d,]*)\]((?:\{[^}]*\})?)")  # bf16[8,128]{1,0:T(8,128)(2,1)}
_ON_CHIP = re.compile(r"S\([1-9]\)")
_COPIES = {"copy", "copy-start", "transpose", "reshape", "slice", "concatenate", "pad", "reverse"}
# XLA writes a concatenation as the maximum of padded arrays.
_MOVES = _COPIES | {"maximum", "parameter", "bitcast", "constant", "tuple", "get-tuple-element"}


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPU, as far as a schedule needs it.

    Attributes:
      topology: libtpu's name of one chip.
      chip: jax's name of the chip.
      cores: cores of a chip that share the grid of one kernel.
      rows_per_cycle: rows of bfloat16 that a matrix unit takes per cycle. So dense matrix products come out
        (`tests/benchmarks/test_tpu_schedule.py`).
      delay_slots: bundles after a branch that come in any case.
      granule_bytes: unit of copies.
    """

    topology: str
    chip: str
    cores: int = 1
    rows_per_cycle: int = 1
    delay_slots: int = 4
    granule_bytes: int = 32

    @functools.cached_property
    def info(self) -> pltpu.TpuInfo:
        """Sizes and the peak of one core, as jax knows them."""
        return pltpu.get_tpu_info_for_chip(pltpu.ChipVersion(self.chip), self.cores)

    @property
    def flops_per_cycle(self) -> int:
        """Bfloat16 FLOPs that the matrix units of one core can do in a cycle."""
        return 2 * self.info.num_mxus * self.info.mxu_column_size**2 * self.rows_per_cycle

    @property
    def clock_hertz(self) -> float:
        """Cycles per second, from the peak that is published."""
        return self.info.bf16_ops_per_second / self.flops_per_cycle

    @property
    def device(self) -> Chip:
        """What the library knows of it: all `cores` together."""
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def hbm_bytes_per_second(self) -> float:
        """One core's share of the bandwidth that is published."""
        return self.device.hbm_bandwidth / self.cores


GENERATIONS = {
    "v4": Generation("v4:1x1x1", "v4", cores=2, delay_slots=1, granule_bytes=512),
    "v5e": Generation("v5e:1x1", "v5e"),
    "v5p": Generation("v5p:1x1x1", "v5p", cores=2),
    "v6e": Generation("v6e:1x1", "v6e", rows_per_cycle=2),
    "tpu7x": Generation("tpu7x:1x1x1", "7x", rows_per_cycle=2),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A program to compile.

    Attributes:
      generation: a name in `GENERATIONS`.
      function: "module:function", which returns a function and its operands as `jax.ShapeDtypeStruct`s.
      arguments: its keyword arguments, as JSON knows them.
      turns: as `replay` takes it.
    """

    generation: str
    function: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    turns: int | None = None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One Pallas kernel of a program.

    Attributes:
      name: its name in the compiled program.
      vmem_bytes: what it allocates in a core's vector memory: blocks, twice for the pipeline, and scratch.
      cores: what each core does; the first has at least as much to do as the others.
    """

    name: str
    vmem_bytes: int
    cores: tuple[Replay, ...]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler makes of a program; `failed` says why the rest is missing.

    Attributes:
      kernels: its Pallas kernels, in the order of compilation.
      copied_bytes: results of operations outside of kernels that only move data from HBM to HBM.
      temp_bytes: HBM for what is neither operand nor result.
      seconds: time of tracing and compiling.
      failed: the reason, in one line.
    """

    kernels: tuple[Kernel, ...] = ()
    copied_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    temp_bytes: int = 0
    seconds: float = 0.0
    failed: str | None = None


def libtpu_version() -> str:
    """The version of what `find_libtpu` finds, or "unknown"."""
    records = find_libtpu().parents[1].glob("libtpu-*.dist-info")
    return next((record.name.split("-")[1].removesuffix(".dist") for record in records), "unknown")


def compile_programs(jobs: Sequence[Job]) -> Iterator[Compiled]:
    """Compiles programs one after the other, and yields each as soon as it is there.

    Raises:
      UserError: libtpu is missing.
    """
    environment = os.environ | ENVIRONMENT | {"TPU_LIBRARY_PATH": str(find_libtpu())}
    while jobs:
        done = 0
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "jobs.json").write_text(json.dumps([dataclasses.asdict(job) for job in jobs]))
            flags = f"--xla_jf_dump_to={directory} --xla_jf_dump_llo_text=true"
            environment["LIBTPU_INIT_ARGS"] = f"{flags} --xla_jf_dump_llo_pass_label_regex={_DUMPS}"
            with (
                Path(directory, "stderr").open("w") as stderr,
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.tpu_compiler", directory],
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                ) as process,
            ):
                assert process.stdout is not None
                try:
                    for line in process.stdout:
                        yield _from_json(json.loads(line))
                        done += 1
                finally:  # Where nobody wants the rest, it need not go on.
                    process.kill()
            if done < len(jobs):  # The compiler ends the process where it finds itself in the wrong.
                errors = Path(directory, "stderr").read_text()
                yield Compiled(failed=f"the compiler died: {last_error_line(errors, process.returncode)}")
                done += 1
        jobs = jobs[done:]


def _from_json(record: dict[str, Any]) -> Compiled:
    kernels = list[Kernel]()
    for kernel in record.pop("kernels"):
        cores = tuple(Replay(grid=tuple(core.pop("grid")), **core) for core in kernel.pop("cores"))
        kernels.append(Kernel(**kernel, cores=cores))
    return Compiled(kernels=tuple(kernels), **record)


def _compile(job: Job, directory: Path) -> Compiled:
    """Compiles one program in this process, whose libtpu dumps into `directory`."""
    generation = GENERATIONS[job.generation]
    module, name = job.function.split(":")
    topology = topologies.get_topology_desc(generation.topology, platform="tpu", **generation.device.options)
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), "x", axis_types=(jax.sharding.AxisType.Auto,))
    everything = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            function, operands = getattr(importlib.import_module(module), name)(**job.arguments)
            start = time.perf_counter()
            compiled = jax.jit(function, in_shardings=everything).lower(*operands).compile()
        seconds = time.perf_counter() - start
        kernels = tuple(_kernels(generation, directory, job.turns))
    except Exception as error:  # A kernel can fail to compile in many ways; the others must still be seen.
        return Compiled(failed=one_line(error))
    hlo, memory = compiled.as_text(), compiled.memory_analysis()
    assert hlo is not None
    assert memory is not None
    return Compiled(kernels, copied_bytes(hlo), memory.temp_size_in_bytes, seconds)


def _kernels(generation: Generation, directory: Path, turns: int | None) -> Iterator[Kernel]:
    """Reads the dumps of the kernels of one program."""
    for analysis in sorted(directory.glob("*schedule-analysis_packed-bundles-post-ra.txt")):
        stem, _, _ = analysis.name.rpartition("-schedule-analysis")
        name = re.sub(r"^\d+-|-\d+$", "", stem)
        if name.startswith("TLP") or _KERNEL not in analysis.read_text():
            continue
        start = glob.escape(stem.rpartition("-")[0])

        def read(ending: str, start: str = start) -> str:
            return next(directory.glob(f"{start}-[0-9]*-{ending}.txt")).read_text()

        bundles = read("packed-bundles-post-ra")
        utilization = read("pre-delay_hlo-static-per-bundle-utilization")
        hardware = {"delay_slots": generation.delay_slots, "granule_bytes": generation.granule_bytes}
        hardware["turns"] = turns
        yield Kernel(
            name=name,
            vmem_bytes=_vmem_bytes(read("pre-finalize-registers-and-allocations")),
            cores=tuple(replay(bundles, utilization, core=core, **hardware) for core in range(generation.cores)),
        )


def _vmem_bytes(allocations: str) -> int:
    return sum(int(size, 16) for size in re.findall(r"space=vmem, size = (0x[0-9a-f]+), scoped", allocations))


def copied_bytes(hlo: str) -> dict[str, int]:
    """Finds what a compiled program copies within HBM beside its kernels, as one with another layout would need.

    Args:
      hlo: the text of a compiled program.

    Returns:
      The bytes of the results, by the name of the operation, for copies, transposes and the like, and fusions of such.
      The padding of tiles is not counted.
    """
    computations = {name: _INSTRUCTION.findall(body) for name, body in _COMPUTATION.findall(hlo)}
    fused = set(re.findall(r"\bfusion\(.*?calls=%([\w.-]+)", hlo))
    found = dict[str, int]()
    for name, shape, operation, rest in itertools.chain(*(x for name, x in computations.items() if name not in fused)):
        calls = re.search(r"calls=%([\w.-]+)", rest)
        inside = {x[2] for x in computations[calls[1]]} if operation == "fusion" and calls else {operation}
        if inside <= _MOVES and inside & _COPIES:
            arrays = _ARRAY.findall(shape)
            # Beside its result, an asynchronous copy returns its operand and its state.
            size = sum(map(_hbm_bytes, arrays[:1] if operation == "copy-start" else arrays))
            if size:
                found[name] = size
    return found


def _hbm_bytes(array: tuple[str, str, str]) -> int:
    bits, sizes, layout = array
    if _ON_CHIP.search(layout):
        return 0
    return int(bits) * math.prod(int(n) for n in sizes.split(",") if n) // 8


def _main() -> None:
    directory = Path(sys.argv[1])
    for job in json.loads((directory / "jobs.json").read_text()):
        for dump in directory.glob("[0-9]*"):
            dump.unlink()
        print(json.dumps(dataclasses.asdict(_compile(Job(**job), directory))), flush=True)


if __name__ == "__main__":
    _main()
