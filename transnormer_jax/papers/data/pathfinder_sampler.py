"""Pathfinder images (Linsley et al. 2018, arXiv 1805.08315) as Long Range Arena has them (arXiv 2011.04006).

Two winding contours of dashes lie among shorter ones, the distractors. One disc marks the beginning of a contour, the
other one the end of the same contour (label 1) or of the other contour (label 0). The contours begin near the middle
and grow in turns; where one gets stuck, both begin anew. A distractor is tried five times, then left out.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from transnormer_jax.papers.data.generated import ordered_map
from transnormer_jax.papers.data.pathfinder_contour import DRAWS, Contour, Style, free_share, free_starts
from transnormer_jax.papers.data.pathfinder_drawing import DashShape, Floats, Ints, draw_disc, paste

_DISTRACTOR_TRIES = 5
_LEAST_FREE = 0.01  # of all pixels, for another distractor
_IMAGES_PER_BLOCK = 16


@dataclasses.dataclass(frozen=True)
class PathfinderSampler:
    """What images look like; in pixels, unless dashes are counted.

    Attributes:
      resolution: side S of the image.
      border: width of the frame that no contour enters.
      margins: of a dash; an image has one of them.
      start_distance: from the beginning of one contour to that of the other.
      disc_radius: of the two discs, which have brightness 1.
      dash_length: of a dash.
      dash_thickness: of a dash.
      continuity: how straight contours are: a turn by the angle a has a weight of cos(continuity * a)^2.
      contour_length: dashes of each of the two contours.
      distractor_length: dashes of a distractor.
      num_distractors: how many are tried.
      contrast: of the two contours. Of a dash half a pixel thick, antialiasing leaves about half.
      distractor_contrast: of the distractors.
    """

    resolution: int
    border: int
    margins: tuple[int, ...]
    start_distance: int
    disc_radius: float
    dash_length: int
    dash_thickness: float
    continuity: float
    contour_length: int
    distractor_length: int
    num_distractors: int
    contrast: float
    distractor_contrast: float


@dataclasses.dataclass(frozen=True)
class PathfinderImage:
    """An image and how it came about.

    Attributes:
      image: uint8 [S, S], stretched from 0 to 255.
      label: 1 if both discs lie on one contour, else 0.
      contours: [2, S, S], each contour alone, from 0 to 1.
      discs: [2, 2], row and column of the disc at a beginning and of the disc at an end.
    """

    image: npt.NDArray[np.uint8]
    label: int
    contours: Floats
    discs: Ints


def pathfinder_images(
    sampler: PathfinderSampler, seed: int, indices: range, processes: int = 0
) -> Iterator[PathfinderImage]:
    """Yields images, each a function of (sampler, seed, index), drawn by `processes` (0: one for each CPU)."""
    blocks = itertools.batched(indices, _IMAGES_PER_BLOCK)
    for block in ordered_map(functools.partial(_draw_block, sampler, seed), blocks, processes):
        yield from block


def _draw_block(sampler: PathfinderSampler, seed: int, indices: tuple[int, ...]) -> list[PathfinderImage]:
    return [draw_image(sampler, np.random.default_rng([seed, index])) for index in indices]


def draw_image(sampler: PathfinderSampler, rng: np.random.Generator) -> PathfinderImage:
    """Returns one image, a function of the sampler and the generator's state."""
    label, marked = rng.integers(2, size=2).tolist()
    canvas = _Canvas(sampler, DashShape(sampler.dash_length, sampler.dash_thickness, int(rng.choice(sampler.margins))))
    while (drawn := _two_contours(canvas, rng)) is None:
        pass
    contours, mask = drawn
    layers = np.stack([canvas.drawn([contour]) for contour in contours])
    distractors = canvas.drawn(_distractors(canvas, mask, rng))
    image = np.maximum(sampler.contrast * layers.max(axis=0), sampler.distractor_contrast * distractors)

    tips = [contours[marked].dashes[0], contours[marked if label else 1 - marked].dashes[-1]]
    for _, row, column in tips:
        paste(image, draw_disc(sampler.disc_radius), row, column)
    pad = canvas.pad
    image, layers = image[pad:-pad, pad:-pad], layers[:, pad:-pad, pad:-pad]
    low, high = image.min(), image.max()
    scaled = np.round(255 * (image - low) / (high - low)).astype(np.uint8)
    return PathfinderImage(scaled, label, layers, np.array([[row - pad, column - pad] for _, row, column in tips]))


@dataclasses.dataclass(frozen=True)
class _Canvas:
    """The image with so much around it that no patch and no look ahead ever leaves the array."""

    sampler: PathfinderSampler
    shape: DashShape

    @property
    def pad(self) -> int:
        ahead = 2 * (self.shape.length + 2 * self.shape.margin + 1)
        return ahead + max(self.shape.radius, len(draw_disc(self.sampler.disc_radius)))

    @property
    def width(self) -> int:
        return self.sampler.resolution + 2 * self.pad

    @property
    def style(self) -> Style:
        return Style(self.shape, self.sampler.continuity, self.width)

    def framed(self, border: int) -> Floats:
        """A mask whose outside is taken, as is a border inside it."""
        mask = np.ones((self.width, self.width), np.float32)
        outside = self.pad + border
        mask[outside:-outside, outside:-outside] = 0
        return mask

    def drawn(self, contours: list[Contour]) -> Floats:
        ink = np.zeros((self.width, self.width), np.float32)
        for contour in contours:
            contour.draw(ink)
        return ink

    def holds(self, contour: Contour) -> bool:
        return contour.first_dash_is_inside(self.pad, self.pad + self.sampler.resolution)


@functools.lru_cache(maxsize=16)
def _first_mask(canvas: _Canvas) -> Floats:
    return canvas.framed(canvas.sampler.border)


@functools.lru_cache(maxsize=2048)
def _central_starts(canvas: _Canvas, degrees: int) -> Ints:
    return free_starts(canvas.framed(2 * canvas.sampler.start_distance), canvas.shape, degrees)


def _two_contours(canvas: _Canvas, rng: np.random.Generator) -> tuple[list[Contour], Floats] | None:
    if (first := _first_contour(canvas, rng)) is None or (second := _second_contour(canvas, first, rng)) is None:
        return None
    mask = _first_mask(canvas).copy()
    for _ in range(canvas.sampler.contour_length - 1):
        for contour in (first, second):
            if not contour.grow(mask, rng):
                return None
    # The first contour's last dash is not put into the mask: neither is it in the original.
    second.settle(mask)
    return [first, second], mask


def _first_contour(canvas: _Canvas, rng: np.random.Generator) -> Contour | None:
    for _ in range(DRAWS):
        degrees = int(rng.integers(-180, 180))
        starts = _central_starts(canvas, degrees)
        if not len(starts):
            return None
        row, column = starts[rng.integers(len(starts))].tolist()
        contour = Contour(canvas.style, row, column, degrees)
        if canvas.holds(contour):
            return contour
    return None


def _second_contour(canvas: _Canvas, first: Contour, rng: np.random.Generator) -> Contour | None:
    _, first_row, first_column = first.dashes[0]
    for _ in range(DRAWS):
        degrees, bearing = int(rng.integers(-180, 180)), np.radians(rng.integers(360))
        row = round(first_row + canvas.sampler.start_distance * np.sin(bearing))
        column = round(first_column + canvas.sampler.start_distance * np.cos(bearing))
        contour = Contour(canvas.style, row, column, degrees)
        if canvas.holds(contour):
            return contour
    return None


def _distractors(canvas: _Canvas, mask: Floats, rng: np.random.Generator) -> list[Contour]:
    found: list[Contour] = []
    inside = slice(canvas.pad, -canvas.pad)
    for _ in range(canvas.sampler.num_distractors):
        for _ in range(_DISTRACTOR_TRIES):
            if free_share(mask[inside, inside]) < _LEAST_FREE:
                return found
            if (grown := _grown_distractor(canvas, mask.copy(), rng)) is not None:
                contour, mask = grown
                found.append(contour)
                break
    return found


def _grown_distractor(canvas: _Canvas, mask: Floats, rng: np.random.Generator) -> tuple[Contour, Floats] | None:
    if (contour := _distractor_start(canvas, mask, rng)) is None:
        return None
    if not all(contour.grow(mask, rng) for _ in range(canvas.sampler.distractor_length - 1)):
        return None
    contour.settle(mask)
    return contour, mask


def _distractor_start(canvas: _Canvas, mask: Floats, rng: np.random.Generator) -> Contour | None:
    for _ in range(DRAWS):
        degrees = int(rng.integers(-180, 180))
        starts = free_starts(mask, canvas.shape, degrees)
        if not len(starts):
            return None
        row, column = starts[rng.integers(len(starts))].tolist()
        contour = Contour(canvas.style, row, column, degrees)
        if canvas.holds(contour):
            return contour
    return None
