"""Several sources as one: which row comes from which, in shares that hold from the first rows on."""

import sys
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from transnormer_jax.data.rows import Array, Rows
from transnormer_jax.errors import UserError

_PERIOD = 10_000


class MixedRows:
    """Rows of several sources, evenly interleaved; a pure function of the row number, as theirs are.

    Where weights are alike, each source has its share of the first n rows, give or take one row and n / 10,000 for
    rounding; beside many light sources, whose places fall together, a heavy one is ahead by up to half a row for each.
    Rows of a source come in its own order, and it begins another epoch when they are used up.
    """

    def __init__(self, sources: Mapping[str, Rows], weights: Mapping[str, float]):
        """Mixes sources.

        Args:
          sources: name -> rows.
          weights: name -> share of the rows, > 0; only proportions count.

        Raises:
          UserError: a source would have less than one row in 10,000.
        """
        self._names = list(sources)
        self._sources = list(sources.values())
        weight = np.array([weights[name] for name in self._names], np.float64)
        self._per_period = _round_to_sum(weight / weight.sum() * _PERIOD)
        for name, count in zip(self._names, self._per_period, strict=True):
            if not count:
                raise UserError(
                    f"source {name!r} has less than one row in {_PERIOD:,}: raise its weight or leave it out."
                )
        # Row k of n of a source stands at (k + 1/2) / n of the period.
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in self._per_period])
        order = np.argsort(places, kind="stable")
        self._source = np.repeat(np.arange(len(self._names)), self._per_period)[order]
        self._rank = np.concatenate([np.arange(count) for count in self._per_period])[order]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> Mapping[str, Array]:
        """Returns a row of the source whose turn it is; see `Rows`."""
        period, place = divmod(row, _PERIOD)
        source = self._source[place]
        return self._sources[source][int(period * self._per_period[source] + self._rank[place])]

    def counts(self, rows: int) -> dict[str, int]:
        """How many of the first `rows` rows are of each source."""
        periods, rest = divmod(rows, _PERIOD)
        of_rest = np.bincount(self._source[:rest], minlength=len(self._names))
        return dict(zip(self._names, (periods * self._per_period + of_rest).tolist(), strict=True))


def _round_to_sum(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Rounds [sources] to integers with the same sum, by the largest remainders."""
    floor = np.floor(shares).astype(np.int64)
    left = round(float(shares.sum())) - int(floor.sum())
    floor[np.argsort(floor - shares, kind="stable")[:left]] += 1
    return floor
