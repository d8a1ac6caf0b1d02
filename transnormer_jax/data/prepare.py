"""Tokenises the text of a configuration ahead of a run, in parallel.

    python -m transnormer_jax.data.prepare --config=configs/quickstart.py --workers=8
    python -m transnormer_jax.data.prepare --config=my_config.py --workers=100 --slurm_partition=cpu
    python -m transnormer_jax.data.prepare --config=my_config.py --workers=100 --ray_address=auto

Each source of `config.data` is read once, for all of its splits; of a dataset of TFDS, the training and the evaluation
split are prepared, or those of --splits. If killed, it continues with the first unfinished shard when it is run again.
--verify reads everything, compares it with the checksums in the manifests, and rewrites damaged shards.

Many machines: `data_dir` must be on a shared disk. With --ray_address the command runs --workers tasks on a Ray cluster
and waits for them. With --slurm_partition it submits an array job of at most --workers tasks, and ends with status 75
until that job has finished: run it again to see its progress, and the counts at its end.

The last line of stdout is one JSON object with, for each source and split, the directory, the numbers of documents,
tokens, bytes and shards, and with --verify the shards that were damaged.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import tqdm
from absl import flags

from transnormer_jax import command, config_flag, storage
from transnormer_jax.data.config import DataConfig
from transnormer_jax.data.splits import coder_of, describe_files, describe_tokens, select_split, tokenization
from transnormer_jax.data.stored_tokens import load_stored
from transnormer_jax.data.tokenize import Coder, Tokenization
from transnormer_jax.data.tokenized import Manifest
from transnormer_jax.data.tokenizers import load_tokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.start import STOPPED

_CONFIG = config_flag.define_config_flag()
# The `tokenizers` library keeps eight cores busy from one process, which starts at once.
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Number of processes; by default one per eight cores, on a cluster one per part.", lower_bound=1
)
_PARTITION = flags.DEFINE_string("slurm_partition", "", "Partition of a Slurm array job that does the work.")
_TIME = flags.DEFINE_string("slurm_time", "01:00:00", "Time limit of a task of that job, HH:MM:SS.")
_RAY = flags.DEFINE_string("ray_address", "", "Address of a Ray cluster that does the work, or auto.")
_SPLITS = flags.DEFINE_list("splits", [], "Splits, separated by commas; by default the configuration's.")
_VERIFY = flags.DEFINE_bool("verify", False, "Compare with the checksums, and rewrite what differs.")


def main() -> None:
    """Prepares."""
    config = config_flag.read_config_flag(_CONFIG)
    tokenizer = load_tokenizer(config.data.tokenizer)
    report = {
        name: {
            split: _prepare(source, coder_of(source, tokenizer, config.sequence_length), split, name)
            for split in dict.fromkeys(_SPLITS.value or (source.train_split, source.eval_split))
        }
        for name, source in config.data.sources().items()
    }
    print(json.dumps(report))


def _prepare(source: DataConfig, coder: Coder, split: str, name: str) -> dict[str, Any]:
    start, words = time.perf_counter(), f"{name} {split}"
    damaged = list[int]()

    def write() -> Path:
        work = tokenization(source, split, coder)
        if _VERIFY.value and work.directory.exists():
            damaged.extend(work.repair())
        if not work.directory.exists():
            for line in describe_files(work):
                print(f"{name}: {line}", flush=True)
            _run(work, words)
            for line in describe_tokens(source, split, work.directory):
                print(f"{name}: {line}")
        return work.directory

    if storage.is_remote(source.data_dir):
        if _VERIFY.value or _PARTITION.value or _RAY.value:
            raise UserError("--verify, --slurm_partition and --ray_address need a data_dir on a disk: leave them out.")
        stored, directory = load_stored(source, split, coder, write)
    else:
        stored = directory = write()
    documents, manifest = select_split(source, directory, split), Manifest.read(directory)
    counts = {
        "documents": len(documents),
        "tokens": documents.num_tokens,
        "bytes": int(documents.num_bytes.sum()),
        "shards": len(manifest.shards),
    }
    seconds = time.perf_counter() - start
    print(
        f"{words}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['bytes']:,} bytes, "
        f"{seconds:.1f} s"
    )
    mended = {"damaged_shards": damaged} if _VERIFY.value else {}
    return {"directory": str(stored), **counts, "seconds": seconds, **mended, **manifest.notes}


def _run(work: Tokenization, words: str) -> None:
    if _RAY.value:
        _run_on_ray(work)
    elif _PARTITION.value:
        _submit_to_slurm(work, words)
    else:
        with tqdm.tqdm(total=len(work.corpus), desc=words, unit="part", disable=not sys.stderr.isatty()) as bar:
            work.run(_WORKERS.value or -(-(os.cpu_count() or 1) // 8), on_part=bar.update)


def _run_on_ray(work: Tokenization) -> None:
    from transnormer_jax.data.engine import EachTask, run_stage_on_ray

    parts, logs = len(work.corpus), work.directory.with_name(f"ray.{work.directory.name}")
    shutil.rmtree(logs, ignore_errors=True)  # completed parts are known by their records
    step = EachTask("tokenise", work.complete_part)
    run_stage_on_ray("tokenise", [step], parts, _WORKERS.value or parts, logs, address=_RAY.value)
    if work.progress() == parts:
        work.run()  # the last task did not make the directory, because of bad records
    if not work.directory.exists():
        failed = parts - work.progress()
        raise UserError(f"{failed} of {parts} parts failed on Ray; the log is {str(logs)!r}. Run again to continue.")
    shutil.rmtree(logs)


def _submit_to_slurm(work: Tokenization, words: str) -> None:
    from transnormer_jax.data.engine import EachTask, submit_stage

    done, parts = work.progress(), len(work.corpus)
    if done == parts:
        work.run()  # the last task did not make the directory, because of bad records
        return
    logs = work.directory.with_name(f"slurm.{work.directory.name}")
    if not logs.exists():
        step, workers = EachTask("tokenise", work.complete_part), _WORKERS.value or parts
        submit_stage("tokenise", [step], parts, workers, logs, partition=_PARTITION.value, time=_TIME.value)
    print(
        f"{words}: {done} of {parts} parts are done by the Slurm job, whose log is {str(logs)!r}: run the same "
        "command later. If the job has failed, delete that directory first."
    )
    sys.exit(STOPPED)


if __name__ == "__main__":
    command.run(main)
