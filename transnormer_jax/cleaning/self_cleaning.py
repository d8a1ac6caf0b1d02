"""Self-cleaning ("Scaling TransNormer to 175 Billion Parameters", section on data): a model judges what it learns from.

A small model is trained on the corpus, every document gets its bits per byte under that model, and the documents that
surprise it most are cut. What is left is the corpus of the next round.
"""

import dataclasses
import gzip
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transnormer_jax.cleaning.documents import read_shard, shards_of
from transnormer_jax.cleaning.pipeline import claim
from transnormer_jax.errors import UserError
from transnormer_jax.inference import Generator
from transnormer_jax.run_flags import load_generator
from transnormer_jax.training import train
from transnormer_jax.training.config import Config
from transnormer_jax.training.workdir import write_json

_BATCH = 16


def self_clean(
    kept: Path, out: Path, config: Config, *, rounds: int, cut: float, max_tokens: int
) -> list[dict[str, Any]]:
    """Trains, scores and cuts; round i leaves `model`, `kept` and `removed` in `out/round_i`. Resumes after a kill.

    Args:
      kept: a directory of shards, the corpus of the first round.
      out: for the rounds.
      config: of the run that trains the judge; its `data.tokenizer`, `data.data_dir` and `data.held_out` count, and the
        text is that of the round.
      rounds: how often.
      cut: the share of the documents that a round removes.
      max_tokens: the first tokens of a document, on which it is judged.

    Returns:
      For each round: documents, those removed, the threshold in bits per byte, quantiles of the scores.

    Raises:
      UserError: `cut` is no share, `out` was begun with other settings, a signal came while training, or it failed.
    """
    if not 0 < cut < 1:
        raise UserError(f"cut is {cut}: choose a share of the documents between 0 and 1.")
    claim(out / "self_cleaning.json", {"cut": cut, "max_tokens": max_tokens, "config": dataclasses.asdict(config)})
    reports = []
    for number in range(1, rounds + 1):
        directory = out / f"round_{number}"
        report = directory / "report.json"
        if report.is_file():  # written last
            reports.append(json.loads(report.read_text()))
            kept = directory / "kept"
            continue
        data = dataclasses.replace(
            config.data,
            dataset="plain_text",
            files=str(kept),
            documents="file",
            text_feature="",
            train_split="train",
            eval_split="validation",
            mixture={},
        )
        if train(dataclasses.replace(config, data=data), directory / "model") is None:
            raise UserError(f"a signal stopped the training of round {number}: run the same command to continue.")
        generator = load_generator(str(directory / "model"))
        for shard in shards_of(kept):
            _score_shard(shard, directory / "scores", generator, max_tokens)
        reports.append(_cut(kept, directory, cut))
        write_json(report, reports[-1])
        kept = directory / "kept"
    return reports


def bits_per_byte(generator: Generator, texts: Sequence[str], max_tokens: int) -> npt.NDArray[np.float64]:
    """Returns the bits per byte of the first `max_tokens` tokens of each text, [texts]; an empty text has 0."""
    tokenizer = generator.tokenizer
    rows = [tokenizer.encode(text)[:max_tokens] for text in texts]
    scores = np.zeros(len(rows))
    # Rows of like lengths side by side: a short one waits for a long one.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        # The same number of rows in every batch: another would be compiled again.
        padded = [rows[i] for i in batch] + [[]] * (_BATCH - len(batch))
        for i, scored in zip(batch, generator.score_tokens(padded), strict=False):
            num_bytes = len(tokenizer.decode(rows[i]).encode())
            scores[i] = -float(scored.log_probs.sum()) / math.log(2) / num_bytes if num_bytes else 0.0
    return scores


def _score_shard(shard: Path, directory: Path, generator: Generator, max_tokens: int) -> None:
    file = directory / f"{shard.name}.npy"
    if file.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    texts = [record["text"] for record in read_shard(shard)]
    partial = file.with_suffix(".partial.npy")
    np.save(partial, bits_per_byte(generator, texts, max_tokens))
    os.replace(partial, file)


def _cut(kept: Path, directory: Path, cut: float) -> dict[str, Any]:
    shards = shards_of(kept)
    scores = [np.load(directory / "scores" / f"{shard.name}.npy") for shard in shards]
    every = np.concatenate(scores)
    threshold = float(np.quantile(every, 1 - cut))
    for name in ("kept", "removed"):
        (directory / name).mkdir(exist_ok=True)
    for shard, of_shard in zip(shards, scores, strict=True):
        with (
            gzip.open(directory / "kept" / shard.name, "wt", encoding="utf-8") as stays,
            gzip.open(directory / "removed" / shard.name, "wt", encoding="utf-8") as goes,
        ):
            for record, score in zip(read_shard(shard), of_shard, strict=True):
                record["metadata"]["bits_per_byte"] = round(float(score), 4)
                if score > threshold:
                    record["metadata"]["filter_reason"] = "perplexity"
                (goes if score > threshold else stays).write(json.dumps(record, ensure_ascii=False) + "\n")
    quantiles = {f"p{percent}": float(np.quantile(every, percent / 100)) for percent in (1, 10, 50, 90, 99)}
    return {
        "documents": len(every),
        "removed": int((every > threshold).sum()),
        "threshold_bits_per_byte": threshold,
        "bits_per_byte": quantiles,
    }
