"""Reads the text of a compiled program (HLO): its computations, their instructions, and how often each runs."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*?\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_INSTRUCTION = re.compile(r"^ +(ROOT )?%([\w.-]+) = (.+?) ([\w-]+)\((.*)$", re.MULTILINE)
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")  # bf16[8,128]{1,0:T(8,128)(2,1)}
_CALLED = re.compile(r"\b(?:calls|body|to_apply|(?:true|false)_computation)=%([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# What a value passes through without changing.
_SAME_VALUE = ("copy", "copy-start", "copy-done", "bitcast", "reshape")
# The computation they apply says how two numbers become one.
_APPLY_TO_NUMBERS = ("reduce", "all-reduce", "all-reduce-start", "reduce-scatter", "reduce-window", "scatter", "sort")


@dataclasses.dataclass(frozen=True)
class Array:
    """The size of one array.

    Attributes:
      bits: of one number.
    """

    bits: int
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Without the padding of tiles."""
        return math.prod(self.shape) * self.bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique within its computation.
      operation: such as "dot".
      results: one array, or those of a tuple.
      operands: names of instructions of the same computation, or what stands there of a constant or a parameter.
      attributes: the rest of the line.
      is_root: it is the computation's result.
    """

    name: str
    operation: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Run:
    """How often a computation runs in one call of the program; `fused`: as part of one operation of its caller."""

    computation: Computation
    times: int
    fused: bool


class Module:
    """A compiled program."""

    def __init__(self, text: str):
        """Parses `text`, as `jax.stages.Compiled.as_text()` gives it."""
        self._computations: dict[str, Computation] = {}
        for entry, name, body in _COMPUTATION.findall(text):
            self._computations[name] = {line[1]: _instruction(*line) for line in _INSTRUCTION.findall(body)}
            if entry:
                self._entry = name
        self.unknown_loops = 0

    def runs(self) -> Iterator[Run]:
        """Every computation that is run, once for each place from which it is called.

        The body of a loop counts as often as the loop turns. Of a conditional, every branch counts. A loop whose number
        of turns the text does not say counts once, and in `unknown_loops`.
        """
        self.unknown_loops = 0
        yield from self._runs(self._entry, 1, fused=False)

    def _runs(self, name: str, times: int, *, fused: bool) -> Iterator[Run]:
        computation = self._computations[name]
        yield Run(computation, times, fused)
        for instruction in computation.values():
            inner = times
            if instruction.operation == "while":
                inner *= self._trips(instruction, computation)
            for callee in _called(instruction):
                yield from self._runs(callee, inner, fused=fused or instruction.operation == "fusion")

    def _trips(self, loop: Instruction, caller: Computation) -> int:
        if known := _KNOWN_TRIPS.search(loop.attributes):
            return int(known[1])
        # TPU programs do not say it: read the condition `i < n`, as every scan has it.
        condition = self._computations[_attribute(loop, "condition")]
        test = next(one for one in condition.values() if one.is_root)
        compare, sides = test, test.operands
        if test.operation == "fusion":
            compare = next(one for one in self._computations[_attribute(test, "calls")].values() if one.is_root)
        if compare.operation != "compare" or "direction=LT" not in compare.attributes or len(sides) != 2:
            self.unknown_loops += 1
            return 1
        first, last = (_value(side, condition, loop, caller) for side in sides)
        if last is None:
            self.unknown_loops += 1
            return 1
        # Where the text hides it, the beginning of a scan is 0.
        return -(-max(0, last - (first or 0)) // self._step(loop, _same(sides[0], condition)))

    def _step(self, loop: Instruction, counter: Instruction) -> int:
        """What the body adds to the counter: more than 1 where the compiler has unrolled the loop; 1 if hidden."""
        body = self._computations[_attribute(loop, "body")]
        root = next(one for one in body.values() if one.is_root)
        index = re.search(r"\bindex=(\d+)", counter.attributes)
        if root.operation != "tuple" or index is None:
            return 1
        return _increment(root.operands[int(index[1])], body) or 1


def _instruction(root: str, name: str, results: str, operation: str, rest: str) -> Instruction:
    end = _closing(rest)
    operands = rest[:end]
    names = tuple(re.findall(r"%([\w.-]+)", operands)) or (operands,)
    return Instruction(name, operation, _arrays(results), names, rest[end + 1 :], bool(root))


def _closing(text: str) -> int:
    """Where the parenthesis that was opened before the text is closed."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


@functools.lru_cache(maxsize=65536)
def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(int(bits or 8), tuple(int(n) for n in sizes.split(",") if n))
        for kind, bits, sizes in _ARRAY.findall(text)
        if kind != "token"
    )


def _called(instruction: Instruction) -> list[str]:
    if instruction.operation in _APPLY_TO_NUMBERS:
        return []
    branches = [name for names in _BRANCHES.findall(instruction.attributes) for name in re.findall(r"[\w.-]+", names)]
    return _CALLED.findall(instruction.attributes) + branches


def _attribute(instruction: Instruction, name: str) -> str:
    match = re.search(rf"\b{name}=%([\w.-]+)", instruction.attributes)
    assert match is not None
    return match[1]


def _same(name: str, computation: Computation) -> Instruction:
    """What makes the value of `name`, through what does not change it."""
    one = computation[name]
    while one.operation in _SAME_VALUE:
        one = computation[one.operands[0]]
    return one


def _increment(name: str, computation: Computation) -> int:
    """The sum of the constants that are added up in a value."""
    one = _same(name, computation)
    if one.operation == "constant":
        return int(one.operands[0])
    return sum(_increment(operand, computation) for operand in one.operands) if one.operation == "add" else 0


def _value(name: str, computation: Computation, loop: Instruction, caller: Computation) -> int | None:
    """The number that a scalar of a loop's condition has when the loop begins, where the text says it."""
    one = _same(name, computation)
    if one.operation == "constant":
        return int(one.operands[0])
    if one.operation != "get-tuple-element" or computation is caller:
        return None
    index = re.search(r"\bindex=(\d+)", one.attributes)
    start = caller[loop.operands[0]]
    if index is None or start.operation != "tuple":
        return None
    return _value(start.operands[int(index[1])], caller, loop, caller)
