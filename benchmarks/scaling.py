"""What the recipes in configs/ need, by the TPU compiler: benchmarks/results/tpu/scaling.json.

    python -m benchmarks.scaling                    # compiles what the record lacks; 28 to 90 s each
    python -m benchmarks.scaling --only=tnl_7b      # compiles those again

Every program is one `python -m transnormer_jax.compile`, in a process of its own. Prints the table of docs/scaling.md.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.common import ROOT, describe_environment, last_error_line
from benchmarks.tpu_compiler import libtpu_version
from transnormer_jax import command
from transnormer_jax.errors import UserError

RECORD = ROOT / "benchmarks" / "results" / "tpu" / "scaling.json"

# Arguments of transnormer_jax.compile.
COMMANDS = (
    "--config=configs/tnl_385m.py --topology=v5e:2x2",
    "--config=configs/tnl_1b.py --topology=v5e:4x4",
    "--config=configs/tnl_3b.py --topology=v5p:2x2x4",
    "--config=configs/tnl_7b.py --topology=v5p:4x4x4",
    "--config=configs/tnl_13b.py --topology=v6e:16x16",
    "--config=configs/tnl_65b.py --topology=v5p:8x8x4",
    "--config=configs/tnl_175b.py --topology=v5p:8x8x8",
    "--config=configs/tnl_175b.py --topology=v5p:8x8x16",
    "--config=configs/tnl_175b.py --topology=tpu7x:4x4x4 --config.accumulation_steps=16",
    "--config=configs/tnl_7b.py --topology=v5p:8x8x8 --config.sequence_length=1048576 --config.batch_size=1 "
    "--config.evaluation.batch_size=1 --config.mesh.fsdp=1 --config.mesh.context=64 --config.mesh.tensor=8",
)

_ONLY = flags.DEFINE_string(
    "only", "", "Compile the commands that hold this text again; empty: those without a record."
)


def main() -> None:
    """Compiles, rewrites the record after each program, and prints the table."""
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {"programs": {}}
    chosen = [words for words in COMMANDS if (_ONLY.value in words if _ONLY.value else words not in record["programs"])]
    if _ONLY.value and not chosen:
        raise UserError(f"no command holds {_ONLY.value!r}: the last words of {COMMANDS[0]!r} would do.")
    for words in chosen:
        report = _compile(words) | {"environment": describe_environment() | {"libtpu": libtpu_version()}}
        record["programs"] = {
            known: report if known == words else record["programs"][known]
            for known in COMMANDS
            if known == words or known in record["programs"]
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{words}: {report['compile_seconds']:.0f} s", flush=True)
    print(table(record["programs"]))


def table(programs: Mapping[str, Any]) -> str:
    """The table of docs/scaling.md."""
    header = [
        *("config", "topology", "mesh", "rows x tokens", "parameters", "at rest, GiB", "peak, GiB", "available, GiB"),
        *("FLOPs / 6ND", "sent, GB", "estimated step", "MFU"),
    ]
    rows = [header, ["---"] * len(header), *(_row(words, report) for words, report in programs.items())]
    return "\n".join("|" + "|".join(f" {cell} " if cell != "---" else cell for cell in row) + "|" for row in rows)


def _compile(words: str) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-m", "transnormer_jax.compile", *shlex.split(words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise UserError(f"{words} does not compile: {last_error_line(process.stderr, process.returncode)}")
    return json.loads(process.stdout.splitlines()[-1])


def _row(words: str, report: Mapping[str, Any]) -> list[str]:
    arguments = dict(word.lstrip("-").split("=", 1) for word in words.split())
    config, topology = Path(arguments["config"]).stem, arguments["topology"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    memory = report["bytes_per_chip"]
    gib = [f"{memory[name] / 2**30:.1f}" for name in ("arguments", "peak", "available")]
    sent = sum(collective["bytes"] for collective in report["collectives"]) / 1e9
    length = arguments.get("config.sequence_length", "8192")
    rows = report["tokens"] // int(length)
    return [
        *(config, topology, mesh, f"{rows:,} x {int(length):,}", f"{report['parameters'] / 1e9:.2f}e9", *gib),
        *(f"{report['recompute_factor']:.2f}", f"{sent:.1f}", f"{report['estimated_seconds']:.2f} s"),
        f"{report['implied_mfu']:.0%}",
    ]


if __name__ == "__main__":
    command.run(main)
