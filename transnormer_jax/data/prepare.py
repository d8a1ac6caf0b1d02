"""Tokenises the text of a configuration ahead of a run, in parallel.

    python -m transnormer_jax.data.prepare --config=configs/quickstart.py --workers=8

For every source of `config.data`, the training and the evaluation split are prepared, or those of --splits. If killed,
it continues with the first unfinished shard when it is run again. --verify reads everything, compares it with the
checksums in the manifests, and rewrites damaged shards.

The last line of stdout is one JSON object with, for each source and split, the directory, the numbers of documents,
tokens, bytes and shards, and with --verify the shards that were damaged.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import tqdm
from absl import flags

from transnormer_jax import command, config_flag, storage
from transnormer_jax.data.config import DataConfig
from transnormer_jax.data.splits import RecordTexts
from transnormer_jax.data.stored_tokens import load_stored
from transnormer_jax.data.tokenize import repair, tokenize
from transnormer_jax.data.tokenized import Manifest
from transnormer_jax.data.tokenizers import Tokenizer, load_tokenizer
from transnormer_jax.errors import UserError

_CONFIG = config_flag.define_config_flag()
# The `tokenizers` library keeps eight cores busy from one process, which starts at once.
_WORKERS = flags.DEFINE_integer("workers", None, "Number of processes; by default one per eight cores.", lower_bound=1)
_SPLITS = flags.DEFINE_list("splits", [], "Splits, separated by commas; by default the configuration's.")
_VERIFY = flags.DEFINE_bool("verify", False, "Compare with the checksums, and rewrite what differs.")


def main() -> None:
    """Prepares."""
    data = config_flag.read_config_flag(_CONFIG).data
    tokenizer = load_tokenizer(data.tokenizer)
    report = {
        name: {
            split: _prepare(source, tokenizer, split, f"{name} {split}")
            for split in dict.fromkeys(_SPLITS.value or (source.train_split, source.eval_split))
        }
        for name, source in data.sources().items()
    }
    print(json.dumps(report))


def _prepare(source: DataConfig, tokenizer: Tokenizer, split: str, words: str) -> dict[str, Any]:
    start = time.perf_counter()
    damaged = list[int]()

    def write() -> Path:
        texts = RecordTexts(source, split)
        directory = texts.tokens_directory(tokenizer)
        if _VERIFY.value and directory.exists():
            damaged.extend(repair(texts, tokenizer, directory))
        _tokenize(texts, tokenizer, directory, words)
        return directory

    if storage.is_remote(source.data_dir):
        if _VERIFY.value:
            raise UserError("--verify is for a data_dir on a local disk: leave it out, a store checks what it holds.")
        directory, _ = load_stored(source, split, tokenizer, write)
    else:
        directory = storage.as_path(write())
    manifest = Manifest.read(directory)
    seconds = time.perf_counter() - start
    print(
        f"{words}: {manifest.documents:,} documents, {manifest.tokens:,} tokens, {manifest.bytes:,} bytes in "
        f"{len(manifest.shards)} shards, {seconds:.1f} s"
    )
    counts = {"documents": manifest.documents, "tokens": manifest.tokens, "bytes": manifest.bytes}
    mended = {"damaged_shards": damaged} if _VERIFY.value else {}
    return {"directory": str(directory), **counts, "shards": len(manifest.shards), "seconds": seconds, **mended}


def _tokenize(texts: RecordTexts, tokenizer: Tokenizer, directory: Path, words: str) -> None:
    silent = not sys.stderr.isatty()
    workers = _WORKERS.value or -(-(os.cpu_count() or 1) // 8)
    with tqdm.tqdm(total=texts.num_bytes, desc=words, unit="B", unit_scale=True, disable=silent) as bar:
        tokenize(texts, tokenizer, directory, workers=workers, on_shard=lambda shard: bar.update(shard.bytes))


if __name__ == "__main__":
    command.run(main)
