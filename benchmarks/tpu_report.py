"""The rows of `benchmarks.tpu_schedule`, and what is made of them: table, JSON, summary."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.tpu_bundles import Replay
from benchmarks.tpu_compiler import Compiled, Generation, Kernel
from benchmarks.tpu_programs import Program

HEADER = (
    f"{'chip':<6} {'program':<22} {'pass':<9} {'cycles/128':>10} {'wait':>5} {'MXU':>5} {'spills':>6} {'VMEM MiB':>8} "
    f"{'GB':>7} {'/least':>6} {'schedule ms':>11} {'HBM ms':>7} {'ratio':>6} {'copied MB':>9}"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """The kernels of one pass of a program on one generation; times and cycles are those of the first core.

    Attributes:
      chip: a name in `GENERATIONS`.
      generation: what it stands for.
      name: of the program.
      program: what is known of it; None for a function of the user.
      role: "forward" or "backward".
      compiled: what the compiler makes of the whole program.
      kernels: those of this pass; none where the program failed or has none.
    """

    chip: str
    generation: Generation
    name: str
    program: Program | None
    role: str
    compiled: Compiled
    kernels: tuple[Kernel, ...]

    @property
    def failed(self) -> str | None:
        """Why there is nothing to report."""
        return None if self.kernels else self.compiled.failed or "it has no Pallas kernel"

    @property
    def cycles(self) -> int:
        """Cycles of the schedules."""
        return sum(kernel.cores[0].cycles for kernel in self.kernels)

    @property
    def schedule_ms(self) -> float:
        """Time of the schedules, milliseconds."""
        return 1e3 * self.cycles / self.generation.clock_hertz

    @property
    def hbm_bytes(self) -> int:
        """Bytes that all cores copy from and to HBM."""
        return sum(_hbm_bytes(core) for kernel in self.kernels for core in kernel.cores)

    @property
    def hbm_ms(self) -> float:
        """Time of these bytes, each core at its share of the bandwidth, milliseconds."""
        per_core = sum(_hbm_bytes(kernel.cores[0]) for kernel in self.kernels)
        return 1e3 * per_core / self.generation.hbm_bytes_per_second

    @property
    def ratio(self) -> float | None:
        """Time of the schedule over time of the bytes; None where all operands lie on the chip."""
        return self.schedule_ms / self.hbm_ms if self.hbm_bytes else None

    @property
    def over_least(self) -> float | None:
        """Bytes moved over the least that must move."""
        return self.hbm_bytes / self.program.least_bytes(self.role) if self.program else None

    @property
    def waiting(self) -> float:
        """The part of the cycles in which no instruction is issued."""
        return 1 - sum(kernel.cores[0].issued for kernel in self.kernels) / self.cycles

    @property
    def mxu(self) -> float:
        """The part of the matrix units' time in which they work."""
        cores = [kernel.cores[0] for kernel in self.kernels]
        return sum(core.utilization["MATMUL"] * core.cycles for core in cores) / self.cycles

    def __str__(self) -> str:
        start = f"{self.chip:<6} {self.name:<22} {self.role:<9}"
        if not self.kernels:
            return f"{start} failed: {self.failed}"
        vmem = max(kernel.vmem_bytes for kernel in self.kernels) / 2**20
        spills = sum(kernel.cores[0].spills for kernel in self.kernels)
        cycles = f"{self._cycles_per_chunk:10.0f}" if self.program else f"{'':>10}"
        least = f"{self.over_least:6.2f}" if self.program else f"{'':>6}"
        ratio = f"{self.ratio:6.3f}" if self.hbm_bytes else f"{'':>6}"
        return (
            f"{start} {cycles} {self.waiting:5.0%} {self.mxu:5.0%} {spills:6.0f} {vmem:8.2f} "
            f"{self.hbm_bytes / 1e9:7.3f} {least} {self.schedule_ms:11.3f} {self.hbm_ms:7.3f} {ratio} "
            f"{sum(self.compiled.copied_bytes.values()) / 1e6:9.1f}"
        )

    @property
    def _cycles_per_chunk(self) -> float:
        """Cycles of a core for 128 tokens of one head, of what runs at every step of the grid."""
        assert self.program is not None
        cores = [core for kernel in self.kernels for core in kernel.cores]
        return sum(core.loop_cycles * math.prod(core.grid) for core in cores) * 128 / self.program.token_heads

    def as_json(self) -> dict[str, Any]:
        """Returns one object; the kernels are objects in it."""
        row: dict[str, Any] = {"generation": self.chip, "program": self.name, "pass": self.role}
        if not self.kernels:
            return row | {"failed": self.failed}
        if self.program is not None:
            row |= {"cycles_per_128_tokens": self._cycles_per_chunk, "bytes_over_least": self.over_least}
        return row | {
            "cycles": self.cycles,
            "waiting": self.waiting,
            "mxu_utilization": self.mxu,
            "bytes": self.hbm_bytes,
            "schedule_ms": self.schedule_ms,
            "hbm_ms": self.hbm_ms,
            "schedule_over_hbm": self.ratio,
            "copied_bytes": self.compiled.copied_bytes,
            "temp_bytes": self.compiled.temp_bytes,
            "compile_seconds": self.compiled.seconds,
            "kernels": [dataclasses.asdict(kernel) for kernel in self.kernels],
        }


def _hbm_bytes(core: Replay) -> int:
    return core.read_bytes + core.written_bytes


def rows_of(chip: str, generation: Generation, name: str, program: Program | None, compiled: Compiled) -> Iterator[Row]:
    """Yields a row for the forward pass, and one for the backward pass where there is one."""
    roles = dict[str, list[Kernel]]()
    for kernel in compiled.kernels:
        # A backward kernel says so in its name; where jax transposes calls of the forward kernel, the name begins so.
        backward = "backward" in kernel.name or kernel.name.startswith("transpose")
        roles.setdefault("backward" if backward else "forward", []).append(kernel)
    for role, kernels in roles.items() or [("", [])]:
        yield Row(chip, generation, name, program, role, compiled, tuple(kernels))


def summarize(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Returns the ratio of schedule to HBM by program and pass, and generation; None where there is none."""
    summary = dict[str, dict[str, float | None]]()
    for row in rows:
        name = f"{row.name} {row.role}".strip()
        ratio = row.ratio if row.kernels else None
        summary.setdefault(name, {})[row.chip] = ratio and round(ratio, 3)
    return summary
