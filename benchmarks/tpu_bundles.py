"""Reads the schedule that libtpu dumps for a kernel, and replays its scalar instructions to count what one core does.

A TPU core goes through one bundle of instructions per cycle, in the order that the compiler wrote down. How often it
meets each bundle is decided by scalar arithmetic on loop counters alone, so it can be computed: what runs at every step
of the grid, what once per row, how often inner loops turn, and which blocks are copied from and to HBM.

The schedule is read with its empty bundles, in which an instruction's latency passes. The program that a TPU runs
leaves most of them out, because the hardware waits for a result by itself; the cycles are the same. What a schedule
does not say is missing here: waiting for copies from HBM, and the launch.
"""

import bisect
import dataclasses
import itertools
import math
import operator
import re
from collections.abc import Callable
from typing import NamedTuple

_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +(?:[A-Z]{2})? *:(?: *>)* *\{", re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_GRID = re.compile(r"iteration_bounds: \(([\d, ]+)\)")
_SCALAR = re.compile(r"%[sp]\d+\w* = |(?:%\w+ = )?(?:sst|sbr\.rel|dma\.\w+_to_\w+)\b")
_INSTRUCTION = re.compile(r"(?:%(\w+) = )?([a-z][\w.]*)(?: \[thread:\S+\])?\s*(.*)", re.DOTALL)
_PREDICATE = re.compile(r"\((!?)%(\w+)(?:, *%?(\w+))?\),? *")
_TARGET = re.compile(r"target bundleno = (\d+)")
_COMMA = re.compile(r", *(?![^\[]*\])")
_CORE_INDEX = "[smem:[#allocation0]]"  # where the runtime leaves it

type _Value = int | None  # None: cannot be known without the data


@dataclasses.dataclass(frozen=True)
class Replay:
    """What one core does in a kernel.

    Attributes:
      bundles: bundles of the program, empty ones included.
      grid: iterations of this core along each axis of the grid.
      cycles: bundles that the core goes through.
      issued: those among them that are not empty.
      loop_cycles: cycles per step of the grid, inner loops unrolled, without what runs at some of the steps only.
      utilization: for each unit, the part of its issue slots that is taken over all `cycles`.
      spills: vector registers stored and loaded again for want of registers, both counted, per step of the grid.
      read_bytes: bytes that the core copies from HBM.
      written_bytes: bytes that the core copies to HBM.
      unknown_branches: how often a branch depended on data; what it guards is taken to run.
    """

    bundles: int
    grid: tuple[int, ...]
    cycles: int
    issued: int
    loop_cycles: float
    utilization: dict[str, float]
    spills: float
    read_bytes: int
    written_bytes: int
    unknown_branches: int


def replay(
    bundles: str, utilization: str, *, core: int, delay_slots: int, granule_bytes: int, turns: int | None = None
) -> Replay:
    """Replays a kernel on one core.

    Args:
      bundles: text of `*-packed-bundles-post-ra.txt`.
      utilization: text of `*-pre-delay_hlo-static-per-bundle-utilization.txt`.
      core: index of the core, among those that share the grid.
      delay_slots: bundles after a branch that come in any case.
      granule_bytes: the unit in which copies state their size.
      turns: how often inner loops turn whose number of turns depends on data, in all steps along the last axis of the
        grid together. What one turn takes is the difference between two turns of each loop and one.

    Raises:
      ValueError: the size of a copy depends on data, or how often an inner loop turns does and `turns` is None.
    """
    program = _Program(bundles)
    machine = _Machine(program, core, delay_slots, None if turns is None else 1)
    runs: list[float] = [*machine.run()]
    grid = tuple(int(n) for n in (_GRID.search(bundles) or ["", "1"])[1].split(",") if n.strip())
    if turns is not None and machine.unknown_loops:
        more = turns * math.prod(grid[:-1]) / machine.unknown_loops - 1
        twice = _Machine(program, core, delay_slots, 2).run()
        runs = [once + more * (two - once) for once, two in zip(runs, twice, strict=True)]
    cycles, steps = round(sum(runs)), math.prod(grid)
    slots, rows = _slots(utilization)
    used = {name: sum(n * row[i] for n, row in zip(runs, rows, strict=True)) for i, name in enumerate(slots)}
    return Replay(
        bundles=len(runs),
        grid=grid,
        cycles=cycles,
        issued=cycles - round(sum(itertools.compress(runs, program.empty))),
        loop_cycles=sum(n for n in runs if n >= steps) / steps,
        utilization={name: used[name] / (cycles * capacity) for name, capacity in slots.items()},
        spills=(used["VLOAD:FILL"] + used["VSTORE:SPILL"]) / steps,
        read_bytes=machine.read_granules * granule_bytes,
        written_bytes=machine.written_granules * granule_bytes,
        unknown_branches=machine.unknown_branches,
    )


def _slots(text: str) -> tuple[dict[str, int], list[list[int]]]:
    """Returns how many issue slots each unit has, and how many of them each bundle takes."""
    lines = text.splitlines()
    names = [name.strip() for name in lines[1].split(",")]
    return dict(zip(names, map(int, lines[2].split()), strict=True)), [[*map(int, line.split())] for line in lines[4:]]


class _Instruction(NamedTuple):
    """A scalar instruction; storing to scalar memory and loading from it are moves, too.

    Attributes:
      destination: a scalar, a predicate, or a place in scalar memory; "" for a branch or a copy.
      operation: its name.
      predicate: the one under which it runs, or "".
      negated: whether it runs where the predicate does not hold.
      otherwise: what the destination becomes where it does not run; "" leaves it alone.
      operands: of a branch, the bundle to go to; of a copy, its size.
    """

    destination: str
    operation: str
    predicate: str
    negated: bool
    otherwise: str
    operands: tuple[str, ...]


class _Program:
    """The scalar instructions of each bundle that matter, and which bundles are empty."""

    def __init__(self, text: str):
        self.bundles = list[list[_Instruction]]()
        self.empty = list[bool]()
        starts = list(_BUNDLE.finditer(text))
        for start, end in zip(starts, [*(x.start() for x in starts[1:]), len(text)], strict=True):
            parts = [part.strip() for part in _COMMENT.sub("", text[start.end() : end]).split("}")[0].split(";;")]
            self.empty.append(parts == [""])
            self.bundles.append([_instruction(part) for part in parts if _SCALAR.match(part)])
        self._keep_what_decides()

    def _keep_what_decides(self) -> None:
        """Drops the instructions on which no branch and no copy depends. Most only check addresses."""
        writers = dict[str, list[_Instruction]]()
        for x in itertools.chain.from_iterable(self.bundles):
            writers.setdefault(x.destination, []).append(x)
        kept, new = set[_Instruction](), set(writers.get("", []))
        while new:
            kept |= new
            names = {name for x in new for name in (x.predicate, x.otherwise, *x.operands) if name}
            new = {x for name in names for x in writers.get(name, [])} - kept
        self.bundles = [[x for x in bundle if x in kept] for bundle in self.bundles]


def _instruction(text: str) -> _Instruction:
    match = _INSTRUCTION.match(text)
    assert match is not None, text
    destination, operation, rest = match.groups()
    predicate = _PREDICATE.search(rest) or ("", "", "", "")
    operands = tuple(_COMMA.split(_PREDICATE.sub("", rest).replace("%", "").strip()))
    if operation == "sst":
        destination, source = operands[0].rsplit(None, 1)
        operands = (source,)
    elif operation == "sbr.rel":
        target = _TARGET.search(rest)
        destination, operands = "", (target[1],) if target else ()
    elif operation.startswith("dma."):
        destination, operands = "", operands[1:2]
    return _Instruction(destination, operation, predicate[2], predicate[1] == "!", predicate[3] or "", operands)


class _Machine:
    """A core that knows its scalars only."""

    def __init__(self, program: _Program, core: int, delay_slots: int, turns: int | None):
        self.read_granules = self.written_granules = self.unknown_branches = self.unknown_loops = 0
        self._turns = turns
        self._turned = 1
        self._bundles = program.bundles
        self._busy = [i for i, bundle in enumerate(program.bundles) if bundle]
        self._delay_slots = delay_slots
        self._values: dict[str, _Value] = {_CORE_INDEX: core}
        self._written = dict[str, int]()  # when each of them was
        self._clock = 0

    def run(self) -> list[int]:
        """Runs the program to its end. Returns how often each bundle was met."""
        changes = [0] * (len(self._bundles) + 1)  # of that number, from each bundle to the next
        start = 0
        while start < len(self._bundles):
            stop, target = self._straight_on(start)
            changes[start] += 1
            changes[stop] -= 1
            start = target
        return list(itertools.accumulate(changes[:-1]))

    def _straight_on(self, start: int) -> tuple[int, int]:
        """Runs up to the first branch that is taken. Returns where the stretch ends, and where it leads."""
        for i in self._busy[bisect.bisect_left(self._busy, start) :]:
            target = self._issue(i)
            if target is not None:
                stop = min(i + 1 + self._delay_slots, len(self._bundles))
                for delayed in range(i + 1, stop):
                    self._issue(delayed)
                return stop, target
        return len(self._bundles), len(self._bundles)

    def _issue(self, index: int) -> int | None:
        """Runs the scalar instructions of a bundle. Returns the bundle to branch to, if any."""
        self._clock += 1
        bundle = self._bundles[index]
        # What a loop hands on is the value at its entry or the one from its last turn: that which came last.
        handed = {x.destination: self._value(max(x.operands, key=self._age)) for x in bundle if x.operation == "sphi"}
        for name, value in handed.items():
            self._write(name, value)
        target = None
        for x in bundle:
            holds = self._holds(x)
            if x.operation == "sbr.rel":
                target = self._branch(x, index, holds)
            elif not x.destination:
                self._copy(x, holds)
            elif x.destination in handed:
                continue
            elif holds is None:
                self._write(x.destination, None)
            elif holds:
                self._write(x.destination, _compute(x.operation, [self._value(name) for name in x.operands]))
            elif x.otherwise:
                self._write(x.destination, self._value(x.otherwise))
        return target

    def _branch(self, x: _Instruction, index: int, holds: bool | None) -> int | None:
        target = int(x.operands[0])
        if holds is None:
            if target <= index:
                return self._turn(target)
            self.unknown_branches += 1
        return target if holds else None

    def _turn(self, target: int) -> int | None:
        """The end of a turn of a loop whose number of turns depends on data."""
        if self._turns is None:
            raise ValueError("how often an inner loop turns depends on data")
        again = self._turned < self._turns
        self._turned = self._turned + 1 if again else 1
        self.unknown_loops += not again
        return target if again else None

    def _copy(self, x: _Instruction, holds: bool | None) -> None:
        origin, destination = x.operation.removeprefix("dma.").split("_to_")
        if holds is False or "hbm" not in (origin, destination):
            return
        size = self._value(x.operands[0])
        if size is None:
            raise ValueError("the size of a copy depends on data")
        self.read_granules += size * (origin == "hbm")
        self.written_granules += size * (destination == "hbm")

    def _holds(self, x: _Instruction) -> bool | None:
        if not x.predicate:
            return True
        value = self._values.get(x.predicate)
        return None if value is None else bool(value) != x.negated

    def _value(self, name: str) -> _Value:
        return int(name) if name.isdecimal() else self._values.get(name)

    def _write(self, name: str, value: _Value) -> None:
        self._values[name] = value
        self._written[name] = self._clock

    def _age(self, name: str) -> int:
        return self._written.get(name, -1)


def _compute(operation: str, values: list[_Value]) -> _Value:
    """The result of an operation on 32-bit words; None where it is not known."""
    if operation in _MOVES or operation in _LOGIC:
        return _LOGIC.get(operation, lambda a: a)(*values)
    function = _ARITHMETIC.get(operation.removesuffix(".totalorder"))
    if function is None:
        return None
    known = [value for value in values if value is not None]
    return function(*known) & 0xFFFFFFFF if len(known) == len(values) else None


def _or(a: _Value, b: _Value) -> _Value:
    return 1 if a or b else None if a is None or b is None else 0


def _not(a: _Value) -> _Value:
    return None if a is None else 1 - a


def _signed(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x


def _compare(function: Callable[[int, int], bool]) -> Callable[[int, int], int]:
    return lambda a, b: int(function(_signed(a), _signed(b)))


_MOVES = {"smov.u32", "sld", "sst", "pmov"}
_LOGIC: dict[str, Callable[..., _Value]] = {
    "por": _or,
    "pnand": lambda a, b: _or(_not(a), _not(b)),
    "pneg": _not,
    "scalar_select": lambda p, a, b: None if p is None else a if p else b,
}
_ARITHMETIC: dict[str, Callable[..., int]] = {
    "sadd.s32": operator.add,
    "ssub.s32": operator.sub,
    "smul.u32": operator.mul,
    "smulhi.u32": lambda a, b: a * b >> 32,
    "sand.u32": operator.and_,
    "sor.u32": operator.or_,
    "sxor.u32": operator.xor,
    "sshll.u32": operator.lshift,
    "sshrl.u32": operator.rshift,
    "sshra.s32": lambda a, b: _signed(a) >> b,
    **{f"scmp.{name}.s32": _compare(getattr(operator, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"scmp.{name}.u32": getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
}
