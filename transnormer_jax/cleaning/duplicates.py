"""Exact and near duplicates by MinHash and locality-sensitive hashing: one document of each cluster stays.

What stays and what goes have the same `minhash_cluster_id` in their metadata; -1 is a document like no other.
"""

from collections.abc import Callable
from pathlib import Path

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig

from transnormer_jax.cleaning.documents import WORDS, reader, writer

# A name, what a document goes through, and the number of tasks.
Stage = tuple[str, list[PipelineStep | Callable], int]

# Two documents whose sets of word triples have Jaccard similarity s meet in a bucket with probability
# 1 - (1 - s^6)^20: 0.04 at 0.35, 0.62 at 0.6, 0.92 at 0.7, 0.998 at 0.8. A twentieth of the words changed is s = 0.75.
_MINHASH = MinhashConfig(n_grams=3, num_buckets=20, hashes_per_bucket=6)


def stages(kept: Path, scratch: Path, out: Path, removed: Path, tasks: int) -> list[Stage]:
    """The stages of the engine in turn. `kept` is read, `out` and `removed` are written."""
    signatures, pairs, clusters = (str(scratch / name) for name in ("signatures", "pairs", "clusters"))

    def complete(data: None, rank: int, world_size: int) -> None:
        # A shard of which nothing goes has no list of its clusters, or none at all: its documents would be unlabelled.
        Path(clusters).mkdir(parents=True, exist_ok=True)
        for task in range(tasks):
            for kind in ("remove", "clusters"):
                Path(clusters, f"{task:06d}.{kind}").touch()

    return [
        ("signatures", [reader(kept), MinhashDedupSignature(signatures, _MINHASH, language=WORDS)], tasks),
        ("pairs", [MinhashDedupBuckets(signatures, pairs, config=_MINHASH)], _MINHASH.num_buckets),
        ("clusters", [MinhashDedupCluster(pairs, clusters, _MINHASH, save_cluster_id=True), complete], 1),
        ("duplicates", [reader(kept), MinhashDedupFilter(clusters, writer(removed), True), writer(out)], tasks),
    ]
