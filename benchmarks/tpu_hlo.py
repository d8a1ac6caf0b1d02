"""Reads in a compiled program what it copies beside its kernels."""

import itertools
import math
import re

_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(.*?\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%([\w.-]+) = (.+?) ([\w-]+)\((.*)$", re.MULTILINE)
_ARRAY = re.compile(r"[a-z]+(\d+)\w*\[([\d,]*)\]((?:\{[^}]*\})?)")  # bf16[8,128]{1,0:T(8,128)(2,1)}
_ON_CHIP = re.compile(r"S\([1-9]\)")
_COPIES = {"copy", "copy-start", "transpose", "reshape", "slice", "concatenate", "pad", "reverse"}
# XLA writes a concatenation as the maximum of padded arrays.
_MOVES = _COPIES | {"maximum", "parameter", "bitcast", "constant", "tuple", "get-tuple-element"}


def copied_bytes(hlo: str) -> dict[str, int]:
    """Finds what a compiled program copies within HBM beside its kernels, as one with another layout would need.

    Args:
      hlo: the text of a compiled program.

    Returns:
      The bytes of the results, by the name of the operation, for copies, transposes and the like, and fusions of such.
      The padding of tiles is not counted.
    """
    computations = {name: _INSTRUCTION.findall(body) for name, body in _COMPUTATION.findall(hlo)}
    fused = set(re.findall(r"\bfusion\(.*?calls=%([\w.-]+)", hlo))
    found = dict[str, int]()
    for name, shape, operation, rest in itertools.chain(*(x for name, x in computations.items() if name not in fused)):
        calls = re.search(r"calls=%([\w.-]+)", rest)
        inside = {x[2] for x in computations[calls[1]]} if operation == "fusion" and calls else {operation}
        if inside <= _MOVES and inside & _COPIES:
            arrays = _ARRAY.findall(shape)
            # Beside its result, an asynchronous copy returns its operand and its state.
            size = sum(map(_hbm_bytes, arrays[:1] if operation == "copy-start" else arrays))
            if size:
                found[name] = size
    return found


def _hbm_bytes(array: tuple[str, str, str]) -> int:
    bits, sizes, layout = array
    if _ON_CHIP.search(layout):
        return 0
    return int(bits) * math.prod(int(n) for n in sizes.split(",") if n) // 8
