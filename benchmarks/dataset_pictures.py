"""Pictures of the generated datasets, their statistics beside published ones, and how fast they are made.

Writes a grid of Pathfinder images for each resolution: above, both discs lie on one contour (label 1); below, they do
not. The statistics, in docs/datasets.md, are printed, and written to a JSON file.

    python -m benchmarks.dataset_pictures
    python -m benchmarks.dataset_pictures --listops=DIR/basic_val.tsv,DIR/basic_test.tsv

With --listops, the statistics of such files of Long Range Arena, columns Source and Target, are added.
"""

import csv
import dataclasses
import itertools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.record import check_positive, main, prepare, write
from transnormer_jax.papers.data.listops import ListOpsConfig
from transnormer_jax.papers.data.listops_expression import MIN, SUM, parse
from transnormer_jax.papers.data.listops_sampler import Sample, listops_samples
from transnormer_jax.papers.data.pathfinder import PathfinderConfig
from transnormer_jax.papers.data.pathfinder_sampler import PathfinderImage, pathfinder_images

_COLUMNS = 4
_WIDTH = 1040  # pixels of a picture, about


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to draw and to measure.

    Attributes:
      resolutions: sides of the Pathfinder images.
      seconds: CPU seconds of drawing images of each resolution, to time it.
      samples: of ListOps.
      listops: files of Long Range Arena's ListOps to compare with.
      out: directory for the pictures.
    """

    resolutions: tuple[int, ...] = (32, 128)
    seconds: float = 20.0
    samples: int = 6000
    listops: tuple[str, ...] = ()
    out: str = "docs/images"

    def __post_init__(self):
        check_positive(self)


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Draws, measures, prints, writes `output`, and returns the statistics."""
    prepare(output)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    results = {"listops": _listops(settings.samples)}
    if settings.listops:
        results["listops_files"] = _statistics(_read(settings.listops))
    for resolution in settings.resolutions:
        picture = out / f"pathfinder{resolution}.png"
        results[f"pathfinder{resolution}"] = _pathfinder(resolution, settings.seconds, picture)
    for name, statistics in results.items():
        print(f"{name}: {statistics}")
    write(output, command_line, settings, results)
    return {"output": str(output), **results}


def _listops(count: int) -> dict[str, object]:
    sampler = ListOpsConfig().sampler
    begin = time.process_time()
    samples = list(itertools.islice(listops_samples(sampler, seed=0, processes=1), count))
    seconds = time.process_time() - begin
    return {"samples_per_cpu_second": round(count / seconds), **_statistics(samples)}


def _read(paths: tuple[str, ...]) -> list[Sample]:
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


def _pathfinder(resolution: int, seconds_of_drawing: float, path: Path) -> dict[str, object]:
    sampler = PathfinderConfig(resolution=resolution).sampler
    begin, drawn = time.process_time(), list[PathfinderImage]()
    for image in pathfinder_images(sampler, 0, range(1_000_000), processes=1):
        drawn.append(image)
        if time.process_time() - begin > seconds_of_drawing and len(drawn) >= 8 * _COLUMNS:
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
    main("dataset_pictures", Settings(), run)
