"""Every backend on a GPU, against the memory floor and against the PyTorch kernels of others, on the same shapes.

The memory floor is the least traffic of a problem (`gpu_shapes.py`) at the speed of a copy that is measured in the same
run. A contender runs in another process. First its output and gradients, at the very shape, are held against float64;
then it is timed on operands that the L2 cache does not hold, and the median counts (`gpu_backends.py`, `gpu_peers.py`).
What cannot run, is wrong, or comes too late is a row that says why. Without a GPU only the shape "tiny" runs.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --shapes=tiny
    python -m benchmarks.gpu --peers=peers

The peers are measured where PyTorch finds the GPU. Where the GPU has no network, carry them along: both are pure Python
and need einops beside PyTorch and Triton. fla-core has the kernels of flash-linear-attention; the rest of it is layers
and models.

    pip download --no-deps --dest wheels fla-core lightning_attn
    for wheel in wheels/*.whl; do python -m zipfile -e "$wheel" peers; done

Writes a JSON file, and two plots beside it. The last line on stdout is a summary in JSON.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.attention_report import COMPUTATIONS
from benchmarks.environment import hardware, results_directory
from benchmarks.gpu_peers import PEERS
from benchmarks.gpu_report import HEADER, Row, by_length, compare, comparison_lines, fractions, judge
from benchmarks.gpu_shapes import MEASURED, SHAPES
from benchmarks.plot import save_bars, save_panels
from benchmarks.processes import last_words
from benchmarks.record import check_known, check_positive, main, prepare, write
from transnormer_jax.errors import UserError

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
_FIRST = 2  # of the shapes, which the targets are about

# Rounding to bfloat16 alone makes 2e-3 to 3e-3. True float32 stays below 1e-5, tensor cores in TF32 do not.
TOLERANCE = {"bfloat16": 5e-3, "float32": 2e-5}
# Some peers add up gradients in bfloat16. That is rounding, not a mistake: they are timed.
_PEER_TOLERANCE = {"bfloat16": 1e-2}
_ROOT = Path(__file__).parents[1]
_COPY_BYTES = (1 << 24, 1 << 30)  # on a CPU, on a GPU


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


def run(settings: Settings, output: Path | None, command_line: str) -> dict[str, Any]:
    """Measures, prints the table and writes `output` as it goes, then the plots beside it, and returns the summary.

    Args:
      settings: what to measure.
      output: the JSON file to write; None is benchmarks/results/<device>/gpu.json.
      command_line: for the record.

    Raises:
      UserError: jax does not start, or `output` cannot be written.
    """
    if output is not None:
        prepare(output)
    deadline = time.monotonic() + settings.limit_seconds
    task = {
        "seconds": settings.seconds,
        "max_gigabytes": settings.max_gigabytes,
        "peers": [str(Path(directory).resolve()) for directory in settings.peers],
        "copy_bytes": _COPY_BYTES,
    }
    # This process leaves the device to the others: what it held, they could not have.
    described = _describe(task)
    environment, speed = described["environment"], described["copy_bytes_per_second"]
    if output is None:
        output = results_directory(environment) / "gpu.json"
        prepare(output)
    content: dict[str, Any] = {
        "copy_gigabytes_per_second": speed / 1e9,
        "tolerance": {"backends": TOLERANCE, "peers": _PEER_TOLERANCE},
        "shapes": {name: dataclasses.asdict(SHAPES[name]) for name in settings.shapes},
    }

    print(f"{hardware(environment)}: a copy reads and writes {speed / 1e9:.0f} GB/s")
    print(HEADER)
    rows = list[Row]()
    for row in _measure_all(settings, task | {"copy_bytes_per_second": speed}, environment, deadline):
        rows.append(row)
        print(row, flush=True)
        comparison = compare(rows)
        verdicts = judge(comparison, str(environment["device_kind"]))
        content |= {"rows": [row.as_json() for row in rows], "comparison": comparison, "targets": verdicts}
        write(output, command_line, settings, content, environment)
    print("\n".join(["", *(str(SHAPES[name]) for name in settings.shapes), "", *comparison_lines(comparison), ""]))
    print("\n".join(verdicts), flush=True)

    title = f"Linear attention on {hardware(environment)}"
    save_bars(fractions(rows, settings.shapes), settings.shapes, title=title, path=output.with_suffix(".png"))
    save_panels(
        by_length(rows),
        title=f"{title}; B = 1, H = 16, K = V = 128, bfloat16",
        xlabel="tokens N",
        path=output.with_name(f"{output.stem}_by_length.png"),
    )
    measured = sum(row.median_ms is not None for row in rows)
    return {"output": str(output), "measured": measured, "skipped": len(rows) - measured, "targets": verdicts}


def _measure_all(
    settings: Settings, task: dict[str, Any], environment: dict[str, Any], deadline: float
) -> Iterator[Row]:
    shapes = list(dict.fromkeys(settings.shapes))
    # Every contender at the first shapes, before any goes on to the others.
    for some in (shapes[:_FIRST], shapes[_FIRST:]):
        for group in _GROUPS:
            rows = [
                Row(contender, contender in PEERS, shape, computation, floor_ms, {})
                for shape in some
                for computation in COMPUTATIONS
                for floor_ms in [1e3 * SHAPES[shape].least_bytes(computation) / task["copy_bytes_per_second"]]
                for contender in group
                if contender in settings.contenders
            ]
            if environment["platform"] != "gpu":
                reason = f"jax finds no GPU, it runs on {environment['platform']}"
                yield from (row.with_result({"skipped": reason}) for row in rows if row.shape != "tiny")
                rows = [row for row in rows if row.shape == "tiny"]
            # One group may take half of the time that is left, so that none takes all.
            now = time.monotonic()
            yield from _measure(rows, task, now + (deadline - now) / 2)


def _measure(rows: list[Row], task: dict[str, Any], end: float) -> Iterator[Row]:
    """Fills the rows of one group, by as many processes as it takes, until the time `end`."""
    while rows:
        finished = 0
        process = _Process(rows, task, end)
        for result in process.results():
            yield rows[finished].with_result(result)
            finished += 1
        rows = rows[finished:]
        if process.stopped:
            break
        if rows and not finished:
            yield rows[0].with_result({"skipped": f"its process ended: {process.last_words}"})
            rows = rows[1:]
    for row in rows:
        yield row.with_result({"skipped": "the time ran out"})


class _Process:
    """A process that prints results as lines of JSON, stopped at the time `end`."""

    def __init__(self, rows: list[Row], task: dict[str, Any], end: float):
        peers = any(row.is_peer for row in rows)
        self._module = "benchmarks.gpu_peers" if peers else "benchmarks.gpu_backends"
        # Beside PyTorch, jax must not take the memory of the device.
        self._environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if peers else {})
        self._task = task | {
            "rows": [(row.contender, row.shape, row.computation) for row in rows],
            "tolerance": _PEER_TOLERANCE if peers else TOLERANCE,
        }
        self._end = end
        self.stopped = False
        self.last_words = ""

    def results(self) -> Iterator[dict[str, Any]]:
        """Yields results as they come; afterwards the attributes tell how it ended."""
        command_line = [sys.executable, "-m", self._module, json.dumps(self._task)]
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command_line, stdout=subprocess.PIPE, stderr=errors, text=True, env=self._environment, cwd=_ROOT
            )
            timer = threading.Timer(max(self._end - time.monotonic(), 0), self._stop, (process,))
            timer.start()
            with process:
                for line in process.stdout or ():
                    if line.startswith("{"):  # Libraries may print as well.
                        yield json.loads(line)
            timer.cancel()
            errors.seek(0)
            self.last_words = last_words(errors.read(), process.returncode)

    def _stop(self, process: subprocess.Popen[str]) -> None:
        self.stopped = True
        process.kill()


def _describe(task: dict[str, Any]) -> dict[str, Any]:
    process = _Process([], task, time.monotonic() + 120)
    described = list(process.results())
    if not described:
        raise UserError(f"jax does not start here ({process.last_words}): mend its installation.")
    return described[0]


if __name__ == "__main__":
    main("gpu", Settings(), run, output=None)
