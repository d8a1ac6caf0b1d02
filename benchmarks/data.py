"""Speed of the data: tokenising text ahead of a run, and reading packed rows.

- `python -m transnormer_jax.data.prepare` on some files, into an empty directory: seconds of the whole command, and
  megabytes of text per second;
- tokens per second of `train_batches` over rows packed from what was prepared, nothing done with them.

What a model of 385M would consume on one H200 is a calculation: 6ND at 40% of the published peak.

    python -m benchmarks.data --files=wiki.txt --documents=delimited --tokenizer=gpt2
"""

import dataclasses
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Record, check_positive, last_error_line, main
from transnormer_jax.data import DataConfig, PackedRows, load_split, load_tokenizer, train_batches
from transnormer_jax.errors import UserError
from transnormer_jax.training.flops import peak_flops

_BATCH, _LENGTH = 64, 2048
_MFU = 0.4

_CONFIG = """
from transnormer_jax.training.config import default_config

def get_config():
    config = default_config()
    config.data.dataset, config.data.files, config.data.documents = "plain_text", {files!r}, {documents!r}
    config.data.tokenizer, config.data.data_dir = {tokenizer!r}, {data_dir!r}
    return config
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      files: as config.data.files.
      documents: as config.data.documents.
      tokenizer: as config.data.tokenizer.
      seconds: of reading.
    """

    files: str = ""
    documents: str = "delimited"
    tokenizer: str = "bytes"
    seconds: float = 10.0

    def __post_init__(self):
        check_positive(self)


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Measures, records and returns what was found."""
    if not settings.files:
        raise UserError("there is nothing to tokenise: give --files.")
    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, Any] = {"prepare": _prepare(settings, Path(scratch))}
        rows = _packed(settings, scratch)
        found["tokens_per_second"] = {f"{n} threads": _speed(rows, settings.seconds, n) for n in (1, 2)}
        found["tokens_per_second_of_385m_on_h200"] = _MFU * (peak_flops("NVIDIA H200") or 0) / (6 * 385e6)
    record.write(**found)
    return found


def _prepare(settings: Settings, directory: Path) -> dict[str, Any]:
    """Seconds of the command, and the counts that its last line gives for the training split."""
    config = directory / "config.py"
    values = {"files": settings.files, "documents": settings.documents, "tokenizer": settings.tokenizer}
    config.write_text(_CONFIG.format(**values, data_dir=str(directory)))
    command = [sys.executable, "-m", "transnormer_jax.data.prepare", f"--config={config}", "--splits=train"]
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise UserError(f"preparing failed: {last_error_line(done.stderr, done.returncode)}")
    [[counts]] = [found.values() for found in json.loads(done.stdout.splitlines()[-1]).values()]
    counts = {name: counts[name] for name in ("documents", "tokens", "bytes", "shards")}
    return {"seconds": seconds, "megabytes_per_second": counts["bytes"] / 1e6 / seconds, **counts}


def _packed(settings: Settings, data_dir: str) -> PackedRows:
    data = DataConfig("plain_text", settings.files, settings.documents, tokenizer=settings.tokenizer, data_dir=data_dir)
    tokenizer = load_tokenizer(settings.tokenizer)
    special = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    return PackedRows(load_split(data, tokenizer, "train"), _LENGTH, seed=0, **special)


def _speed(rows: PackedRows, seconds: float, num_threads: int) -> float:
    batches = train_batches(rows, batch_size=_BATCH, num_threads=num_threads)
    next(batches)
    begin = time.perf_counter()
    for count in itertools.count(1):
        next(batches)
        passed = time.perf_counter() - begin
        if passed >= seconds:
            return count * _BATCH * _LENGTH / passed
    raise AssertionError


if __name__ == "__main__":
    main("data", Settings(), run)
