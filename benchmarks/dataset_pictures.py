"""Pictures of the generated datasets, their statistics beside those of the law, and how fast they are made.

Writes a grid of Pathfinder images for each resolution: above, both discs lie on one contour (label 1); below, they do
not. The table and the JSON on the last line of stdout are the numbers in docs/datasets.md.

    python -m benchmarks.dataset_pictures
    python -m benchmarks.dataset_pictures --listops=DIR/basic_val.tsv,DIR/basic_test.tsv

With --listops, the statistics of such files of Long Range Arena, columns Source and Target, are added.
"""

import csv
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from absl import flags
from PIL import Image

from benchmarks.environment import describe_environment
from transnormer_jax import command
from transnormer_jax.data.listops import listops_config
from transnormer_jax.data.listops_expression import MIN, SUM, parse
from transnormer_jax.data.listops_law import Sample, listops_samples
from transnormer_jax.data.pathfinder import pathfinder_config
from transnormer_jax.data.pathfinder_law import PathfinderImage, pathfinder_images

_COLUMNS = 4
_WIDTH = 1040  # pixels of a picture, about

_RESOLUTIONS = flags.DEFINE_list("resolutions", ["32", "128"], "Sides of the Pathfinder images.")
_SECONDS = flags.DEFINE_float("seconds", 20.0, "CPU seconds of drawing images of each resolution, to time it.")
_SAMPLES = flags.DEFINE_integer("samples", 6000, "ListOps samples.")
_LISTOPS = flags.DEFINE_list("listops", [], "Files of Long Range Arena's ListOps to compare with.")
_OUT = flags.DEFINE_string("out", "docs/images", "Directory for the pictures.")


def main() -> None:
    """Draws, measures, prints."""
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    results = {"listops": _listops(_SAMPLES.value)}
    if _LISTOPS.value:
        results["listops_files"] = _statistics(_read(_LISTOPS.value))
    for resolution in map(int, _RESOLUTIONS.value):
        results[f"pathfinder{resolution}"] = _pathfinder(resolution, out / f"pathfinder{resolution}.png")
    for name, statistics in results.items():
        print(f"{name}: {statistics}")
    print(json.dumps({"environment": describe_environment(), **results}))


def _listops(count: int) -> dict[str, object]:
    law = listops_config().law
    begin = time.process_time()
    samples = list(itertools.islice(listops_samples(law, seed=0, processes=1), count))
    seconds = time.process_time() - begin
    return {"samples_per_cpu_second": round(count / seconds), **_statistics(samples)}


def _read(paths: list[str]) -> list[Sample]:
    rows: list[Sample] = []
    for path in paths:
        with open(path, newline="") as file:
            rows += [(parse(row["Source"]), int(row["Target"])) for row in csv.DictReader(file, delimiter="\t")]
    return rows


def _statistics(samples: list[Sample]) -> dict[str, object]:
    count = len(samples)
    lengths = np.array([len(tokens) for tokens, _ in samples])
    roots = np.array([tokens[0] for tokens, _ in samples])
    values = np.array([value for _, value in samples])
    counts = np.array([np.bincount(values[roots == root], minlength=10) for root in range(MIN, SUM + 1)])
    return {
        "samples": count,
        "length_mean": round(float(lengths.mean()), 1),
        "length_5_50_95_percent": np.percentile(lengths, [5, 50, 95]).tolist(),
        "share_of_each_answer": np.round(counts.sum(axis=0) / count, 4).tolist(),
        "best_constant": round(float(counts.sum(axis=0).max() / count), 4),
        "best_constant_per_root_operator": round(float(counts.max(axis=1).sum() / count), 4),
    }


def _pathfinder(resolution: int, path: Path) -> dict[str, object]:
    law = pathfinder_config(resolution).law
    begin, drawn = time.process_time(), list[PathfinderImage]()
    for image in pathfinder_images(law, 0, range(1_000_000), processes=1):
        drawn.append(image)
        if time.process_time() - begin > _SECONDS.value and len(drawn) >= 8 * _COLUMNS:
            break
    seconds = time.process_time() - begin
    on_both = [_ink_under_discs(one).all(axis=0).any() for one in drawn]
    misleading = [not one.label and _ink_under_discs(one).all(axis=1).any() for one in drawn]
    rows = [[one.image for one in drawn if one.label == label][:_COLUMNS] for label in (1, 0)]
    _save_grid(rows, path)
    return {
        "images": len(drawn),
        "images_per_cpu_second": round(len(drawn) / seconds, 1),
        "share_of_label_1": round(float(np.mean([one.label for one in drawn])), 3),
        "images_with_both_contours_under_one_disc": sum(map(bool, on_both)),
        "images_of_label_0_with_one_contour_under_both_discs": sum(map(bool, misleading)),
        "picture": os.fspath(path),
    }


def _ink_under_discs(drawn: PathfinderImage) -> npt.NDArray[np.bool]:
    """Whether each contour has ink under each disc: [contours, discs]."""
    return drawn.contours[:, drawn.discs[:, 0], drawn.discs[:, 1]] > 0.2


def _save_grid(rows: list[list[npt.NDArray[np.uint8]]], path: Path) -> None:
    framed = [[np.pad(image, 1, constant_values=128) for image in row] for row in rows]
    grid = np.concatenate([np.concatenate(row, axis=1) for row in framed])
    scale = max(1, _WIDTH // grid.shape[1])
    Image.fromarray(grid.repeat(scale, axis=0).repeat(scale, axis=1)).save(path, optimize=True)


if __name__ == "__main__":
    command.run(main)
