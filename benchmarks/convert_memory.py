"""Peak memory of converting a checkpoint of Hugging Face's layout, generating with it, and converting it back.

A checkpoint with random weights is written (`benchmarks.random_checkpoint`) and goes through the commands of the
library, each in a process of its own, whose peak resident memory the kernel tells; mapped pages of files count.

    python -m benchmarks.convert_memory --preset=385m
    python -m benchmarks.convert_memory --preset=7b --steps=import,export --limit_gigabytes=20

What comes back is compared with what was there by SHA-256, file by file. Writes a JSON file. The last line on stdout is
a summary in JSON.
"""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import last_words
from benchmarks.random_checkpoint import num_bytes
from benchmarks.record import check_positive, main, prepare, write
from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.models import TransNormerLLMConfig

STEPS = ("import", "generate", "export")

_ROOT = Path(__file__).resolve().parents[1]
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      preset: size of the model, as in `TransNormerLLMConfig.preset`.
      dtype: of the weights.
      steps: among "import", "generate" and "export", in this order.
      new_tokens: that are generated.
      drawn_gigabytes: of a larger model, one layer is drawn and the others are copies; 10^9 bytes.
      limit_gigabytes: that no step should exceed; 10^9 bytes.
      scratch: where the files go and are removed again; "" is the system's place for temporary files.
    """

    preset: str = "385m"
    dtype: str = "bfloat16"
    steps: tuple[str, ...] = STEPS
    new_tokens: int = 8
    drawn_gigabytes: float = 4.0
    limit_gigabytes: float = 8.0
    scratch: str = ""

    def __post_init__(self):
        check_positive(self)
        for step in self.steps:
            if step not in STEPS:
                raise UserError(f"unknown step {step!r}: {did_you_mean(step, STEPS)}")
        if self.steps[0] != "import" or list(self.steps) != [step for step in STEPS if step in self.steps]:
            raise UserError(f"steps is {','.join(self.steps)}: begin with import, then in the order {','.join(STEPS)}.")


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Measures, prints a line for each step, writes `output`, and returns the summary."""
    prepare(output)
    config = TransNormerLLMConfig.preset(settings.preset, dtype=settings.dtype, param_dtype=settings.dtype)
    size = num_bytes(config)
    print(f"{size / 1e9:.2f} GB of parameters")
    with tempfile.TemporaryDirectory(dir=settings.scratch or None) as scratch:
        rows, identical = _steps(settings, Path(scratch))
    peak = max(row["peak_bytes"] for row in rows if row["step"] in STEPS)
    summary = {
        "peak_gigabytes": round(peak / 1e9, 2),
        "within_limit": peak <= settings.limit_gigabytes * 1e9,
        "files_identical": identical,
    }
    drawn = "every layer" if size <= settings.drawn_gigabytes * 1e9 else "one layer, the others are copies of it"
    write(
        output,
        command_line,
        settings,
        {"parameter_bytes": size, "drawn": drawn, "rows": rows, "summary": summary},
    )
    return {"output": str(output), **summary}


def measure_peak(*command: str) -> tuple[int, float]:
    """Runs `python COMMAND`, and returns its peak resident memory in bytes and its wall time in seconds.

    The peak is never told below that of this process, from which it was started.

    Raises:
      UserError: it failed.
    """
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            last = last_words(errors.read(), process.returncode)
            raise UserError(f"{' '.join(command[:2])} ended with status {process.returncode}: {last}")
    return usage.ru_maxrss * _MAXRSS_UNIT, seconds


def _steps(settings: Settings, scratch: Path) -> tuple[list[dict[str, Any]], bool | None]:
    """A row for each step, and whether the files came back bit by bit: None if they did not come back."""
    there, workdir, back = (scratch / name for name in ("there", "run", "back"))
    convert = ("-m", "transnormer_jax.convert", f"--workdir={workdir}")
    commands = {
        "write": (
            "-m",
            "benchmarks.random_checkpoint",
            f"--directory={there}",
            f"--preset={settings.preset}",
            f"--dtype={settings.dtype}",
            f"--drawn_gigabytes={settings.drawn_gigabytes}",
        ),
        "import": (*convert, f"--from_hugging_face={there}"),
        "generate": (
            "-m",
            "transnormer_jax.generate",
            f"--workdir={workdir}",
            "--prompt=Once upon a time",
            f"--max_new_tokens={settings.new_tokens}",
        ),
        "export": (*convert, f"--to_hugging_face={back}"),
    }
    rows = list[dict[str, Any]]()
    digests = dict[str, str]()
    for step in ("write", *settings.steps):
        peak, seconds = measure_peak(*commands[step])
        rows.append({"step": step, "peak_bytes": peak, "seconds": seconds})
        print(f"{step:<10}{peak / 1e9:8.2f} GB{seconds:8.1f} s", flush=True)
        if step == "write":
            digests = _digests(there)
        if step == "import":
            shutil.rmtree(there)  # Half of the room is enough.
    return rows, _digests(back) == digests if back.exists() else None


def _digests(directory: Path) -> dict[str, str]:
    digests = dict[str, str]()
    for path in directory.iterdir():
        if path.name == "README.md":  # the model card, which an export adds
            continue
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


if __name__ == "__main__":
    main("convert_memory", Settings(), run)
