"""Speed of the data: tokenising text ahead of a run, also when it is killed, and reading packed rows.

- `python -m transnormer_jax.data.prepare` on some files, into an empty directory: seconds of the whole command, and
  megabytes of text per second;
- the same, killed (SIGKILL) at random moments and given again: the shards that each kill left finished, and whether
  every file comes out the same;
- microseconds for one document at random, from the memory map and from an uncompressed ArrayRecord of the same tokens;
- tokens per second of `train_batches` over rows packed from what was prepared, nothing done with them;
- where --mixture gives sources as PATH:DOCUMENTS:WEIGHT: the share of each in the first tokens, and the speed.

What a model of 385M would eat on one H200 is a calculation: 6ND at 40% of the published peak.

    python -m benchmarks.data --files=wiki.txt --documents=marked --tokenizer=gpt2

Writes a JSON file. The last line on stdout is a summary in JSON.
"""

import dataclasses
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import main, prepare, write
from transnormer_jax.data import DataConfig, MixedRows, PackedRows, Tokenizer, load_split, load_tokenizer, train_batches
from transnormer_jax.data.rows import Rows
from transnormer_jax.data.tokenized import Manifest, TokenizedDocuments
from transnormer_jax.errors import UserError
from transnormer_jax.training.flops import peak_flops

_ROOT = Path(__file__).resolve().parents[1]
_BATCH, _LENGTH = 64, 2048
_MFU = 0.4
_SHORTEST = 0.1  # seconds in which a process can be killed

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
      kills: of the second preparation.
      seconds: of reading.
      mixture: sources as PATH:DOCUMENTS:WEIGHT.
      mixture_tokens: over which the shares are counted.
      seed: of the moments of the kills.
    """

    files: str = ""
    documents: str = "marked"
    tokenizer: str = "bytes"
    kills: int = 3
    seconds: float = 10.0
    mixture: tuple[str, ...] = ()
    mixture_tokens: int = 10_000_000
    seed: int = 0

    def __post_init__(self):
        if min(self.kills, self.seed) < 0 or not (self.seconds > 0 and self.mixture_tokens > 0):
            raise UserError("kills and seed are at least 0, seconds and mixture_tokens positive: give such numbers.")
        for source in self.mixture:
            _parted(source)


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Returns the summary."""
    prepare(output)
    if not settings.files:
        raise UserError("there is nothing to tokenise: give --files.")
    tokenizer = load_tokenizer(settings.tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        seconds = _prepare(settings, directory / "undisturbed")
        kills = _prepare_killed(settings, directory / "killed", seconds)
        manifest, same = _compare(directory / "undisturbed", directory / "killed")
        data = DataConfig(
            "plain_text",
            settings.files,
            settings.documents,
            tokenizer=settings.tokenizer,
            data_dir=str(directory / "undisturbed"),
        )
        rows = _packed(data, tokenizer)
        results = {
            "prepare": {
                "seconds": seconds,
                "megabytes_per_second": manifest.bytes / 1e6 / seconds,
                "documents": manifest.documents,
                "tokens": manifest.tokens,
                "bytes": manifest.bytes,
                "shards": len(manifest.shards),
            },
            "killed": {"kills": kills, "same_files": same},
            "microseconds_per_document": _one_document(load_split(data, tokenizer, "train"), directory),
            "tokens_per_second": {f"{n} threads": _speed(rows, settings.seconds, n) for n in (1, 2)},
            "tokens_per_second_of_385m_on_h200": _MFU * (peak_flops("NVIDIA H200") or 0) / (6 * 385e6),
        }
        if settings.mixture:
            results["mixture"] = _mixture(settings, tokenizer, directory)
    write(output, command_line, settings, results)
    return {"output": str(output)} | results


def _command(settings: Settings, directory: Path) -> subprocess.Popen:
    directory.mkdir(exist_ok=True)
    config = directory / "config.py"
    config.write_text(
        _CONFIG.format(
            files=settings.files, documents=settings.documents, tokenizer=settings.tokenizer, data_dir=str(directory)
        )
    )
    command = [sys.executable, "-m", "transnormer_jax.data.prepare", f"--config={config}", "--splits=train"]
    return subprocess.Popen(
        command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _prepare(settings: Settings, directory: Path) -> float:
    begin = time.perf_counter()
    if _command(settings, directory).wait():
        raise UserError("preparing failed: try the command by itself.")
    return time.perf_counter() - begin


def _prepare_killed(settings: Settings, directory: Path, seconds: float) -> list[dict[str, float]]:
    """Kills the preparation at random moments, then lets it finish; returns moments and shards finished by then."""
    chance = random.Random(settings.seed)
    kills = list[dict[str, float]]()
    while len(kills) < settings.kills:
        process = _command(settings, directory)
        # What is done stays: all runs together must not come to the end.
        moment = chance.uniform(0, seconds / settings.kills)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            finished = len(list(directory.glob("**/tokenized/incomplete.*/*.json")))
            kills.append({"after_seconds": moment, "finished_shards": finished})
        else:  # quicker than it was when it was timed: again from the beginning, with earlier moments
            shutil.rmtree(directory)
            kills.clear()
            seconds /= 2
            if seconds < _SHORTEST:
                raise UserError(f"{settings.kills} kills do not fit into the preparation: give more text.")
    _prepare(settings, directory)
    return kills


def _compare(first: Path, second: Path) -> tuple[Manifest, bool]:
    """The manifest of the first, and whether the files of both are the same."""
    [one], [other] = (list(directory.glob("**/tokenized/*/manifest.json")) for directory in (first, second))
    contents = [{path.name: path.read_bytes() for path in file.parent.iterdir()} for file in (one, other)]
    return Manifest.read(one.parent), contents[0] == contents[1]


def _one_document(documents: TokenizedDocuments, directory: Path) -> dict[str, float]:
    from array_record.python import array_record_module

    path = str(directory / "tokens.array_record")
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1,uncompressed")
    for number in range(len(documents)):
        writer.write(documents[number].tobytes())
    writer.close()
    options = "readahead_buffer_size:0,index_storage_option:in_memory"
    reader = array_record_module.ArrayRecordReader(path, options)
    order = np.random.default_rng(0).permutation(len(documents)).tolist()

    def microseconds(read: Callable[[int], Any]) -> float:
        begin = time.perf_counter()
        for number in order:
            read(number)
        return (time.perf_counter() - begin) / len(order) * 1e6

    # A copy of the memory map's slice, since ArrayRecord gives one too.
    return {
        "memory_map": microseconds(lambda number: documents[number].copy()),
        "array_record": microseconds(lambda number: reader.read([number])),
    }


def _packed(data: DataConfig, tokenizer: Tokenizer) -> PackedRows:
    special = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    return PackedRows(load_split(data, tokenizer, "train"), _LENGTH, seed=0, **special)


def _speed(rows: Rows, seconds: float, num_threads: int) -> float:
    batches = train_batches(rows, batch_size=_BATCH, num_threads=num_threads)
    next(batches)
    begin = time.perf_counter()
    for count in itertools.count(1):
        next(batches)
        passed = time.perf_counter() - begin
        if passed >= seconds:
            return count * _BATCH * _LENGTH / passed
    raise AssertionError


class _Marked:
    """Rows that say where they come from."""

    def __init__(self, rows: Rows, source: int):
        self._rows, self._source = rows, source

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        return {**self._rows[row], "source": np.array(self._source)}


def _parted(source: str) -> tuple[str, str, float]:
    """Path, documents and weight of a source."""
    try:
        path, documents, weight = source.rsplit(":", 2)
        return path, documents, float(weight)
    except ValueError as error:
        raise UserError(f"mixture has {source!r}: give PATH:DOCUMENTS:WEIGHT, the weight a number.") from error


def _mixture(settings: Settings, tokenizer: Tokenizer, directory: Path) -> dict[str, Any]:
    sources, weights = dict[str, Rows](), dict[str, float]()
    for number, source in enumerate(settings.mixture):
        path, documents, weight = _parted(source)
        data = DataConfig(
            "plain_text", path, documents, tokenizer=settings.tokenizer, data_dir=str(directory / "mixture")
        )
        name = Path(path).name
        sources[name], weights[name] = _Marked(_packed(data, tokenizer), number), weight
    mixed = MixedRows(sources, weights)
    tokens = np.zeros(len(sources))
    for batch in train_batches(mixed, batch_size=_BATCH):
        np.add.at(tokens, batch["source"], (batch["segment_ids"] > 0).sum(1))
        if tokens.sum() >= settings.mixture_tokens:
            break
    return {
        "tokens": int(tokens.sum()),
        "shares": dict(zip(sources, (tokens / tokens.sum()).tolist(), strict=True)),
        "tokens_per_second": _speed(mixed, settings.seconds, 1),
    }


if __name__ == "__main__":
    main("data", Settings(), run)
