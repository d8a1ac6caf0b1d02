"""Random ListOps trees with the distribution of Long Range Arena (Tay et al. 2020, arXiv 2011.04006).

The root has depth 1. A node at a depth below `max_depth` is an operator with probability 1/4, else a digit, as is every
node at `max_depth`. Operators and digits are uniform; an operator has 2 to `max_args` arguments, uniform too. A tree of
n tokens is kept if min_length < n < max_length, and if it was not drawn before.

Trees are drawn by the hundred, all nodes of a depth at once: a forest is a list of levels, and the children of a level
follow each other in the next one.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.generated import ordered_map
from transnormer_jax.papers.data.listops_expression import CLOSE, MAX, MED, MIN, SUM, ZERO

type Ints = npt.NDArray[np.int64]
type Sample = tuple[npt.NDArray[np.uint8], int]

_OPERATOR_PROBABILITY = 0.25
_TREES_PER_BLOCK = 256
_FRUITLESS_BLOCKS = 500


@dataclasses.dataclass(frozen=True)
class ListOpsSampler:
    """Which trees are drawn and which are kept: see above; both lengths are exclusive."""

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10


def listops_samples(sampler: ListOpsSampler, seed: int, processes: int = 0) -> Iterator[Sample]:
    """Yields different trees without end: tokens [n], ids of `SYMBOLS`, and the value, 0 to 9.

    A block of trees has a seed of its own, so the stream does not depend on `processes` (0: one on each CPU).

    Raises:
      UserError: there are no more trees of the wanted lengths.
    """
    seen = set[bytes]()
    fruitless = 0
    for block in ordered_map(functools.partial(_draw_block, sampler, seed), itertools.count(), processes):
        fruitless += 1
        for tokens, value in block:
            if (key := tokens.tobytes()) not in seen:
                seen.add(key)
                fruitless = 0
                yield tokens, value
        if fruitless == _FRUITLESS_BLOCKS:
            raise UserError(
                f"found only {len(seen)} different ListOps trees of more than {sampler.min_length} and fewer than "
                f"{sampler.max_length} tokens: choose other lengths, or raise max_depth ({sampler.max_depth}) or "
                f"max_args ({sampler.max_args})."
            )


def _draw_block(sampler: ListOpsSampler, seed: int, block: int) -> list[Sample]:
    forest = _draw(sampler, np.random.default_rng([seed, block]))
    lengths = _lengths(forest)
    tokens, values, length = _text(forest, lengths), _values(forest), lengths[0]
    ends = np.cumsum(length)
    kept = (sampler.min_length < length) & (length < sampler.max_length)
    return [(tokens[ends[i] - length[i] : ends[i]], int(values[i])) for i in np.flatnonzero(kept)]


@dataclasses.dataclass(frozen=True)
class _Level:
    symbols: Ints  # [nodes], token ids
    arguments: Ints  # [operators], how many nodes of the next level each has

    @property
    def operators(self) -> npt.NDArray[np.bool]:
        return self.symbols >= MIN

    @property
    def first_children(self) -> Ints:
        return np.cumsum(self.arguments) - self.arguments


def _draw(sampler: ListOpsSampler, rng: np.random.Generator) -> list[_Level]:
    forest = []
    # A root that is a digit would be too short to keep, so all are operators: the kept trees keep their distribution.
    probability, nodes = 1.0, _TREES_PER_BLOCK
    for depth in range(1, sampler.max_depth + 1):
        operator = rng.random(nodes) < (probability if depth < sampler.max_depth else 0.0)
        symbols = np.where(operator, rng.integers(MIN, SUM + 1, nodes), rng.integers(ZERO, ZERO + 10, nodes))
        level = _Level(symbols, rng.integers(2, sampler.max_args + 1, np.count_nonzero(operator)))
        forest.append(level)
        probability, nodes = _OPERATOR_PROBABILITY, int(level.arguments.sum())
        if not nodes:
            break
    return forest


def _lengths(forest: list[_Level]) -> list[Ints]:
    """The tokens of each node's subtree, by level."""
    lengths: list[Ints] = []
    for level in reversed(forest):
        own = np.ones(len(level.symbols), np.int64)
        if len(level.arguments):
            own[level.operators] = 2 + np.add.reduceat(lengths[-1], level.first_children)
        lengths.append(own)
    return lengths[::-1]


def _text(forest: list[_Level], lengths: list[Ints]) -> npt.NDArray[np.uint8]:
    """The tokens of all trees, one after the other."""
    text = np.zeros(lengths[0].sum(), np.uint8)
    places = np.cumsum(lengths[0]) - lengths[0]
    for level, own, below in zip(forest, lengths, [*lengths[1:], None], strict=True):
        text[places] = level.symbols
        lists = places[level.operators]
        text[lists + own[level.operators] - 1] = CLOSE
        if below is not None:
            before = np.cumsum(below) - below  # tokens of all earlier nodes of the level below
            places = np.repeat(lists + 1 - before[level.first_children], level.arguments) + before
    return text


def _values(forest: list[_Level]) -> Ints:
    """The value of each tree."""
    below = np.zeros(0, np.int64)
    for level in reversed(forest):
        values = level.symbols - ZERO
        if len(level.arguments):
            values[level.operators] = _applied(level, below)
        below = values
    return below


def _applied(level: _Level, below: Ints) -> Ints:
    first, count = level.first_children, level.arguments
    # Rows of arguments in order, filled up with more than any digit.
    rows = np.full((len(count), count.max()), 10)
    rows[np.arange(rows.shape[1]) < count[:, None]] = below
    rows.sort(axis=1)
    each = np.arange(len(count))
    median = (rows[each, (count - 1) // 2] + rows[each, count // 2]) // 2
    results = {MIN: rows[:, 0], MAX: rows[each, count - 1], MED: median, SUM: np.add.reduceat(below, first) % 10}
    operators = level.symbols[level.operators]
    return np.select([operators == operator for operator in results], list(results.values()))
