"""`Pathfinder`: a TFDS builder that draws Pathfinder images; at 128 x 128 pixels they are Long Range Arena's Path-X."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transnormer_jax.data import DATASETS, DataConfig, Dataset
from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.papers.data.generated import config_from_name
from transnormer_jax.papers.data.pathfinder_sampler import PathfinderSampler, pathfinder_images

_CONTOUR_LENGTHS = {"easy": 6, "intermediate": 9, "hard": 14}
_SPLITS = {"train": (0, 8), "validation": (8, 9), "test": (9, 10)}  # tenths


@dataclasses.dataclass(frozen=True)
class _Scale:
    """What depends on the resolution; `distractor_dashes` is that of all distractors together in the easy images."""

    border: int
    margins: tuple[int, ...]
    start_distance: int
    disc_radius: float
    dash_length: int
    dash_thickness: float
    continuity: float
    distractor_dashes: int
    contrast: float
    contour_dimming: float = 1.0


_SCALES = {
    32: _Scale(1, (1,), 7, 1.5, 2, 0.5, 1.0, 20, 2.0, contour_dimming=0.75),
    64: _Scale(1, (1,), 12, 2.5, 5, 1.0, 1.8, 22, 0.8),
    128: _Scale(1, (2, 3), 20, 3.0, 5, 1.5, 1.8, 35, 0.9),
    256: _Scale(22, (3,), 27, 5.0, 5, 2.0, 1.8, 30, 1.0),
}


@dataclasses.dataclass(kw_only=True)
class PathfinderConfig(tfds.core.BuilderConfig):
    """Which images are drawn; the defaults are Long Range Arena's Pathfinder, and `resolution=128` is its Path-X.

    Two things are not known of the released images, so they can be chosen.

    Attributes:
      resolution: 32, 64, 128 or 256.
      difficulty: `"easy"`, `"intermediate"` or `"hard"`: contours of 6, 9 or 14 dashes, distractors of a third.
      num_examples: images in all splits together.
      seed: of everything.
      num_distractors: how many are tried. None for the number that the original command computes for easy images and
        leaves as it is for longer contours: 10, 11, 17 or 15, by resolution. Computed for hard images it would be 5,
        5, 8 or 7.
      equal_contrast: whether distractors are as bright as contours. The original code dims the contours alone, by a
        quarter at 32 x 32 and not at all at other sizes. That would mark them without any path being followed, so
        they are equal by default.
      processes: that draw at once, 0 for one on each CPU; the images are the same.
    """

    name: str = ""
    resolution: int = 32
    difficulty: str = "hard"
    num_examples: int = 200_000
    seed: int = 0
    num_distractors: int | None = None
    equal_contrast: bool = True
    processes: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for an unknown resolution or difficulty, fewer than 10 images, or a negative number."""
        if self.resolution not in _SCALES:
            raise UserError(f"Pathfinder has no resolution {self.resolution}: choose 32, 64, 128 or 256.")
        if self.difficulty not in _CONTOUR_LENGTHS:
            suggestion = did_you_mean(self.difficulty, _CONTOUR_LENGTHS)
            raise UserError(f"Pathfinder has no difficulty {self.difficulty!r}: {suggestion}")
        if self.num_examples < 10:
            raise UserError(f"{self.num_examples} Pathfinder images cannot be split 8 : 1 : 1: choose at least 10.")
        if self.seed < 0 or self.processes < 0 or (self.num_distractors or 0) < 0:
            raise UserError(
                f"seed is {self.seed}, processes {self.processes}, num_distractors {self.num_distractors}: none is "
                "negative."
            )
        scale, contour_length = _SCALES[self.resolution], _CONTOUR_LENGTHS[self.difficulty]
        if self.num_distractors is None:
            self.num_distractors = scale.distractor_dashes // (_CONTOUR_LENGTHS["easy"] // 3)
        contrast = scale.contrast * scale.contour_dimming
        self.sampler = PathfinderSampler(
            resolution=self.resolution,
            border=scale.border,
            margins=scale.margins,
            start_distance=scale.start_distance,
            disc_radius=scale.disc_radius,
            dash_length=scale.dash_length,
            dash_thickness=scale.dash_thickness,
            continuity=scale.continuity,
            contour_length=contour_length,
            distractor_length=contour_length // 3,
            num_distractors=self.num_distractors,
            contrast=contrast,
            distractor_contrast=contrast if self.equal_contrast else scale.contrast,
        )
        brightness = "equal" if self.equal_contrast else "dimmed"
        kind = f"{self.resolution}-{self.difficulty}-distractors{self.num_distractors}-{brightness}"
        self.name = f"{kind}-seed{self.seed}-{self.num_examples}"


class Pathfinder(tfds.core.GeneratorBasedBuilder):
    """Features: `image` uint8 [S, S], and `label`, 1 if both discs lie on one contour.

    Splits: 80% `train`, 10% `validation`, 10% `test`.
    """

    VERSION = tfds.core.Version("1.0.0")
    builder_config: PathfinderConfig

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.sampler.resolution
        features = {
            # Four fifths of the pixels are black.
            "image": tfds.features.Tensor(shape=(side, side), dtype=np.uint8, encoding="zlib"),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        total = self.builder_config.num_examples
        return {
            split: self._generate_examples(range(total * start // 10, total * end // 10))
            for split, (start, end) in _SPLITS.items()
        }

    def _generate_examples(self, indices: range) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        images = pathfinder_images(config.sampler, config.seed, indices, config.processes)
        for index, drawn in enumerate(images):
            yield index, {"image": drawn.image, "label": drawn.label}


def _open(config: DataConfig, data_dir: str | None) -> Pathfinder:
    return Pathfinder(config=config_from_name(config, PathfinderConfig), data_dir=data_dir)


DATASETS["pathfinder"] = Dataset(_open, inputs=("image",))
