"""Every backend on a GPU, against the memory floor and against the PyTorch kernels of others, on the same shapes.

The memory floor is the least traffic of a problem at the speed of a copy that is measured in the same run. Contenders
run in other processes (`gpu_worker.py`): first their output and gradients, at the very shape, are held against float64,
then they are timed on operands that the L2 cache does not hold, and the median counts. What cannot run, is wrong, or
comes too late is a row that says why. Without a GPU only the shape "tiny" runs.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --shapes=tiny
    python -m benchmarks.gpu --peers=peers

The peers are measured where PyTorch finds the GPU. Where the GPU has no network, carry them along: both are pure Python
and need einops beside PyTorch and Triton. fla-core has the kernels of flash-linear-attention; the rest of it is layers
and models.

    pip download --no-deps --dest wheels fla-core lightning_attn
    for wheel in wheels/*.whl; do python -m zipfile -e "$wheel" peers; done
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attention import COMPUTATIONS
from benchmarks.common import ROOT, Record, check_known, check_positive, hardware, last_error_line, main
from benchmarks.definition import least_bytes
from transnormer_jax.errors import UserError
from transnormer_jax.ops.decay import paper_log_decay

# The decay that flash-linear-attention builds into its lightning attention, so that one truth serves every contender.
# It spans all there is: head 0 forgets nothing, the last head almost all at each token.
LAYER, NUM_LAYERS = 12, 24
PEERS = ("fla_simple_gla", "fla_lightning_attn", "lightning_attn")
# A group shares a process; a kernel that may crash has one to itself. `benchmarks.attention` has the other backends,
# which these sizes are too large for.
_GROUPS = (
    ("pallas_gpu",),
    ("triton",),
    ("fla_simple_gla", "fla_lightning_attn"),
    ("lightning_attn",),
    ("chunked", "chunked_associative_scan", "auto"),
)
CONTENDERS = tuple(contender for group in _GROUPS for contender in group)
_FIRST = 2  # of the shapes, which matter most

# Rounding to bfloat16 alone makes 2e-3 to 3e-3. True float32 stays below 1e-5, tensor cores in TF32 do not.
TOLERANCE = {"bfloat16": 5e-3, "float32": 2e-5}
# Some peers add up gradients in bfloat16. That is rounding, not a mistake: they are timed.
_PEER_TOLERANCE = {"bfloat16": 1e-2}
_COPY_BYTES = (1 << 24, 1 << 30)  # on a CPU, on a GPU

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Shape:
    """One problem: q, k [B, N, H, K], v [B, N, H, V], and how many documents are packed into a row."""

    batch: int
    heads: int
    num_tokens: int
    key_dim: int = 128
    value_dim: int = 128
    dtype: str = "bfloat16"
    documents: int = 1

    @property
    def log_decay(self) -> np.ndarray:
        """[H] float32, the paper's decay of a middle layer."""
        return paper_log_decay(self.heads, NUM_LAYERS)[LAYER]

    @property
    def lengths(self) -> list[int]:
        """Tokens in each document of a row; all differ."""
        parts = np.arange(1, self.documents + 1)
        ends = np.rint(self.num_tokens * np.cumsum(parts) / np.sum(parts)).astype(int)
        return np.diff(ends, prepend=0).tolist()

    @property
    def segment_ids(self) -> np.ndarray | None:
        """[B, N] int32 from 1, or None where nothing is packed."""
        if self.documents == 1:
            return None
        return np.tile(np.repeat(np.arange(1, self.documents + 1, dtype=np.int32), self.lengths), (self.batch, 1))

    def least_bytes(self, computation: str) -> int:
        """The memory traffic that no implementation can avoid, bytes."""
        token_heads, itemsize = self.batch * self.heads * self.num_tokens, 4 if self.dtype == "float32" else 2
        return least_bytes(computation, token_heads, self.key_dim, self.value_dim, itemsize)


# In the order of their weight, in case the time runs out.
SHAPES = {
    "wide": Shape(8, 32, 8192),
    "row_8k": Shape(1, 16, 8192),
    "head_64": Shape(8, 32, 8192, 64, 64),
    "row_2k": Shape(1, 16, 2048),
    "row_32k": Shape(1, 16, 32768),
    # The shapes that flash-linear-attention publishes times for.
    "fla_96_heads": Shape(1, 96, 8192),
    "fla_16_heads": Shape(2, 16, 16384),
    "fla_64_heads": Shape(4, 64, 4096),
    "lrpe": Shape(8, 32, 8192, 128, 64),  # LRPE doubles the features of q and k
    "packed": Shape(1, 16, 32768, documents=12),
    "row_8k_float32": Shape(1, 16, 8192, dtype="float32"),
    "tiny": Shape(1, 2, 320, 64, 64, documents=2),  # for a look at the benchmark itself, on any device
}
MEASURED = tuple(name for name in SHAPES if name != "tiny")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      contenders: names among `CONTENDERS`.
      shapes: names in `SHAPES`.
      peers: directories to import the peers from, before those of the installation.
      max_gigabytes: what the compiler plans more memory for is not run; 10^9 bytes.
      seconds: how long each program is repeated.
      limit_seconds: how long the whole may take; what comes later is not measured.
    """

    contenders: tuple[str, ...] = CONTENDERS
    shapes: tuple[str, ...] = MEASURED
    peers: tuple[str, ...] = ()
    max_gigabytes: float = 55.0
    seconds: float = 0.2
    limit_seconds: float = 1200.0

    def __post_init__(self):
        check_positive(self)
        check_known("contenders", self.contenders, CONTENDERS)
        check_known("shapes", self.shapes, SHAPES)
        for directory in self.peers:
            if not Path(directory).is_dir():
                raise UserError(f"there is no directory {directory!r}: unpack the peers there, or leave out peers.")


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Measures, prints and records as it goes, and returns the summary.

    Raises:
      UserError: jax does not start.
    """
    deadline = time.monotonic() + settings.limit_seconds
    task = {
        "seconds": settings.seconds,
        "max_gigabytes": settings.max_gigabytes,
        "peers": [str(Path(directory).resolve()) for directory in settings.peers],
        "copy_bytes": _COPY_BYTES,
    }
    # This process leaves the device to the others: what it held, they could not have.
    described = next(worker_results([], task, time.monotonic() + 120), {"skipped": "it took two minutes"})
    if "skipped" in described:
        raise UserError(f"jax does not start here ({described['skipped']}): mend its installation.")
    record.environment, speed = described["environment"], described["copy_bytes_per_second"]
    print(f"{hardware(record.environment)}: a copy reads and writes {speed / 1e9:.0f} GB/s")
    shapes = {name: dataclasses.asdict(SHAPES[name]) for name in settings.shapes}
    rows, comparison = list[Row](), list[Row]()
    task |= {"copy_bytes_per_second": speed}
    for row in _measure_all(settings, task, record.environment["platform"], deadline):
        rows.append(row)
        shown = {name: x for name, x in row.items() if name not in ("versions", "launched_median_ms", "sets")}
        print(shown, flush=True)
        comparison = compare(rows)
        record.write(copy_gigabytes_per_second=speed / 1e9, shapes=shapes, rows=rows, comparison=comparison)
    for entry in comparison:
        print(entry)
    measured = sum("median_ms" in row for row in rows)
    return {"measured": measured, "skipped": len(rows) - measured}


def compare(rows: Sequence[Row]) -> list[Row]:
    """For each shape and computation, the best of our backends, the best of the peers, and whether we lose."""
    comparison = []
    for shape, computation in dict.fromkeys((row["shape"], row["computation"]) for row in rows):
        here = [row for row in rows if (row["shape"], row["computation"]) == (shape, computation)]
        entry: Row = {"shape": shape, "computation": computation, "floor_ms": here[0]["floor_ms"]}
        for name, peer in (("backend", False), ("peer", True)):
            timed = [row for row in here if "median_ms" in row and (row["contender"] in PEERS) == peer]
            if timed:
                best = min(timed, key=lambda row: row["median_ms"])
                entry |= {name: best["contender"], f"{name}_ms": best["median_ms"]}
        if "backend" in entry and "peer" in entry:
            entry["loses"] = entry["backend_ms"] > entry["peer_ms"]
        comparison.append(entry)
    return comparison


def _measure_all(settings: Settings, task: dict[str, Any], platform: str, deadline: float) -> Iterator[Row]:
    shapes = list(dict.fromkeys(settings.shapes))
    # Every contender at the first shapes, before any goes on to the others.
    for some, group in itertools.product((shapes[:_FIRST], shapes[_FIRST:]), _GROUPS):
        rows = [
            {"contender": contender, "shape": shape, "computation": computation, "floor_ms": floor_ms}
            for shape in some
            for computation in COMPUTATIONS
            for floor_ms in [1e3 * SHAPES[shape].least_bytes(computation) / task["copy_bytes_per_second"]]
            for contender in group
            if contender in settings.contenders
        ]
        if platform != "gpu":
            reason = f"jax finds no GPU, it runs on {platform}"
            yield from (row | {"skipped": reason} for row in rows if row["shape"] != "tiny")
            rows = [row for row in rows if row["shape"] == "tiny"]
        # One group may take half of the time that is left, so that none takes all.
        yield from _measure(rows, task, time.monotonic() + (deadline - time.monotonic()) / 2)


def _measure(rows: Sequence[Row], task: dict[str, Any], end: float) -> Iterator[Row]:
    """Completes rows by as many workers as it takes, until the time `end`."""
    while rows and time.monotonic() < end:
        # A worker ends at the first kernel that fails, which may have left its device unusable; another goes on.
        finished = 0
        for result in worker_results(rows, task, end):
            yield rows[finished] | result
            finished += 1
        rows = rows[finished:]
    for row in rows:
        yield row | {"skipped": "the time ran out"}


def worker_results(rows: Sequence[Row], task: dict[str, Any], end: float) -> Iterator[dict[str, Any]]:
    """What a worker says of the rows in their order, until it ends or the time `end`; a crash is the last result."""
    peers = any(row["contender"] in PEERS for row in rows)
    task = task | {
        "rows": [(row["contender"], row["shape"], row["computation"]) for row in rows],
        "tolerance": _PEER_TOLERANCE if peers else TOLERANCE,
    }
    # Beside PyTorch, jax must not take the memory of the device.
    environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if peers else {})
    command = [sys.executable, "-m", "benchmarks.gpu_worker", json.dumps(task)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=ROOT
        ) as process,
    ):
        timer = threading.Timer(max(end - time.monotonic(), 0), process.kill)
        timer.start()
        count = 0
        for line in process.stdout or ():
            if line.startswith("{"):  # Libraries may print as well.
                yield json.loads(line)
                count += 1
        timer.cancel()
        if (process.wait() not in (0, 1) or not count) and time.monotonic() < end:
            errors.seek(0)
            yield {"skipped": f"its process ended: {last_error_line(errors.read(), process.returncode)}"}


if __name__ == "__main__":
    main("gpu", Settings(), run)
