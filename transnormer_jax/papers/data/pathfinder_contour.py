"""How a Pathfinder contour grows, dash by dash, on a mask of what is taken (Linsley et al. 2018, arXiv 1805.08315).

Between two dashes is a pivot. The next dash ends on a circle around it and begins at the margin from it. What turns
are possible depends on the last direction alone, so it is tabled; places are indices of the flattened mask.
"""

import dataclasses
import functools

import numpy as np

from transnormer_jax.papers.data.pathfinder_drawing import (
    Dash,
    DashShape,
    Floats,
    Ints,
    displacement,
    draw_dash,
    paste,
    window,
    within,
)

DRAWS = 3  # of a dash, before it is given up
_FREE = 0.3  # where a mask is no larger, a contour may begin
_CROSSING = 1.8  # two masks that sum to this cross
_LEAST_WEIGHT = 1e-4


@dataclasses.dataclass(frozen=True)
class Style:
    """What contours of an image look like: their dashes, `continuity` (how straight) and the width of the mask."""

    shape: DashShape
    continuity: float
    width: int


class Contour:
    """A contour of one dash, at first.

    Attributes:
      dashes: the dashes with their rows and columns. All but the newest are in the mask: it must not block the next.
    """

    def __init__(self, style: Style, row: int, column: int, degrees: int):
        """Begins at a pixel of the mask, in a direction."""
        self._style, self._angle = style, float(np.radians(degrees))
        shape = style.shape
        self._head = np.array([row, column]) + displacement(self._angle, shape.length)
        # Back to the margin behind the first dash.
        self._pivot = self._head + displacement(_opposite(self._angle), shape.length + shape.margin)
        self._place = int(self._pivot @ [style.width, 1])
        self.dashes: list[tuple[Dash, int, int]] = [(draw_dash(shape, self._angle), row, column)]

    def first_dash_is_inside(self, low: int, high: int) -> bool:
        """Whether both ends of the first dash have rows and columns from `low` to `high` - 1."""
        points = np.stack([self._head, self._pivot])
        return bool((points >= low).all() and (points < high).all())

    def grow(self, mask: Floats, rng: np.random.Generator) -> bool:
        """Adds a dash to the contour and the one before it to the mask; returns False where there is no way on."""
        turns = _turns(self._style, self._angle)
        pivot = self._place + turns.step
        cumulated = np.cumsum(turns.weights * (1 - mask.ravel()[pivot + turns.around].max(axis=1)))
        if cumulated[-1] < _LEAST_WEIGHT:
            return False
        for draw in rng.random(DRAWS):
            index = int(np.searchsorted(cumulated, draw * cumulated[-1], side="right"))
            row, column = divmod(pivot + int(turns.ends[index]), self._style.width)
            dash = turns.dashes[index]
            if (window(mask, dash.mask, row, column) + dash.mask).max() < _CROSSING:
                self.settle(mask)
                self.dashes.append((dash, row, column))
                self._place, self._angle = pivot, turns.angles[index]
                return True
        return False

    def settle(self, mask: Floats) -> None:
        """Puts the newest dash into the mask."""
        dash, row, column = self.dashes[-1]
        paste(mask, dash.mask, row, column)

    def draw(self, canvas: Floats) -> None:
        """Draws all dashes."""
        for dash, row, column in self.dashes:
            paste(canvas, dash.ink, row, column)


def free_starts(mask: Floats, shape: DashShape, degrees: int) -> Ints:
    """Returns the pixels [n, 2] where a dash may begin: it and its margin lie on free pixels alone.

    Pixels nearer to the border of the mask than a dash's radius are not looked at.
    """
    taken, radius, size = mask > _FREE, shape.radius, len(mask) - 2 * shape.radius
    blocked = np.zeros((size, size), bool)
    for row, column in np.argwhere(draw_dash(shape, float(np.radians(degrees))).mask == 1).tolist():
        blocked |= taken[row : row + size, column : column + size]
    return np.argwhere(~blocked) + radius


def free_share(mask: Floats) -> float:
    """Returns which part of the pixels is free."""
    return float(np.mean(mask <= _FREE))


@dataclasses.dataclass(frozen=True)
class _Turns:
    step: int  # from the last pivot to the next
    ends: Ints  # [n], from the next pivot to the end of the dash
    around: Ints  # [n, disk], from the next pivot to all pixels within the margin of that end
    weights: Floats  # [n]
    angles: list[float]  # [n]
    dashes: list[Dash]  # [n]


@functools.lru_cache(maxsize=4096)
def _turns(style: Style, angle: float) -> _Turns:
    shape, flat = style.shape, np.array([style.width, 1])
    radius = shape.length + shape.margin
    # One pixel of arc apart.
    arc = np.arange(0, 2 * np.pi, 1 / radius)
    ends = np.unique(np.floor(radius * np.stack([np.sin(arc), np.cos(arc)], axis=1)).astype(int), axis=0)
    angles = np.arctan2(ends[:, 0], ends[:, 1])
    turn = np.abs(angles - angle)
    turn = np.minimum(turn, 2 * np.pi - turn) * style.continuity
    possible = turn < np.pi / 2
    ends, angles, turn = ends[possible], angles[possible], turn[possible]
    disk = np.argwhere(within(shape.margin)) - shape.margin
    return _Turns(
        step=int(displacement(angle, shape.length + 2 * shape.margin) @ flat),
        ends=ends @ flat,
        around=(ends[:, None] + disk) @ flat,
        weights=np.cos(turn).astype(np.float32) ** 2,
        angles=angles.tolist(),
        # Drawn from its end back towards the pivot.
        dashes=[draw_dash(shape, _opposite(direction)) for direction in angles.tolist()],
    )


def _opposite(angle: float) -> float:
    return angle + np.pi if angle < 0 else angle - np.pi
