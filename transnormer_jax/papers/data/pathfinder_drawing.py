"""Dashes and discs of Pathfinder images: small antialiased patches [P, P], whose side is odd, around their middle.

Coordinates are (row, column). A direction is an angle in radians: a step of length r goes r sin(angle) rows and
r cos(angle) columns, rounded up. What is drawn is drawn twice as large and shrunk with a Lanczos filter.
"""

import dataclasses
import functools

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

type Floats = npt.NDArray[np.float32]
type Ints = npt.NDArray[np.int64]
type Bools = npt.NDArray[np.bool]

_SCALE = 2  # of antialiasing


@dataclasses.dataclass(frozen=True)
class DashShape:
    """Length and thickness of a dash, and the margin it keeps from others, in pixels; 2 * thickness is an integer."""

    length: int
    thickness: float
    margin: int

    @property
    def radius(self) -> int:
        """Of a dash's patch: P = 2 * radius + 1."""
        return self.length + int(np.ceil(self.thickness)) + self.margin


@dataclasses.dataclass(frozen=True)
class Dash:
    """A dash that begins in the middle of its patch: `ink` [P, P] and, with its margin, `mask` [P, P], from 0 to 1."""

    ink: Floats
    mask: Floats


def displacement(angle: float, distance: float) -> Ints:
    """Returns (rows, columns) of a step."""
    return np.ceil(distance * np.array([np.sin(angle), np.cos(angle)])).astype(int)


@functools.lru_cache(maxsize=4096)
def draw_dash(shape: DashShape, angle: float) -> Dash:
    """Returns the dash that points in a direction."""
    middle = _SCALE * shape.radius
    canvas = Image.new("L", (2 * middle + 1, 2 * middle + 1))
    row, column = (middle + displacement(angle, _SCALE * shape.length)).tolist()
    width = round(_SCALE * shape.thickness)
    ImageDraw.Draw(canvas).line([(middle, middle), (column, row)], fill=255, width=width)
    grown = ndimage.grey_dilation(np.asarray(canvas), footprint=within(_SCALE * shape.margin), mode="constant")
    side = 2 * shape.radius + 1
    return Dash(_shrunk(canvas, side), _shrunk(Image.fromarray(grown), side))


@functools.cache
def draw_disc(radius: float) -> Floats:
    """Returns the patch of a filled disc, from 0 to 1."""
    half = int(np.ceil(radius)) + 3  # Lanczos reaches three pixels
    side = 2 * half + 1
    along = np.arange(_SCALE * side) - _SCALE * half
    inside = along[:, None] ** 2 + along**2 <= (_SCALE * radius) ** 2
    return _shrunk(Image.fromarray(np.where(inside, np.uint8(255), np.uint8(0))), side)


@functools.cache
def within(radius: int) -> Bools:
    """Returns the pixels of [2 * radius + 1, 2 * radius + 1] that are within `radius` of the middle."""
    along = np.arange(-radius, radius + 1)
    return along[:, None] ** 2 + along**2 <= radius**2


def window(canvas: Floats, patch: Floats, row: int, column: int) -> Floats:
    """Returns the view of a canvas that a patch around a pixel covers; all of it must lie on the canvas."""
    radius = len(patch) // 2
    return canvas[row - radius : row + radius + 1, column - radius : column + radius + 1]


def paste(canvas: Floats, patch: Floats, row: int, column: int) -> None:
    """Sets a canvas to its maximum with a patch around a pixel."""
    view = window(canvas, patch, row, column)
    np.maximum(view, patch, out=view)


def _shrunk(canvas: Image.Image, side: int) -> Floats:
    return np.asarray(canvas.resize((side, side), Image.Resampling.LANCZOS), np.float32) / np.float32(255)
