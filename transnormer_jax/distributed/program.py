"""Summarizes a compiled program per device: matrix products, kernels and collectives.

XLA's own `cost_analysis` counts the body of a loop once, so that a model of 24 scanned layers seems to have one, and it
sees nothing of kernels. Here every instruction counts as often as it runs.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from transnormer_jax.distributed.hlo import Array, Computation, Instruction, Module

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KERNEL_FLOPS = re.compile(r'"flops":"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same axes, of one device and one call of the program.

    Attributes:
      kind: XLA's name, such as "all-gather".
      axes: mesh axes whose devices take part, in the mesh's order.
      count: how many.
      bytes: that the device sends, if its group is a ring: of the n parts of an array, n - 1 in an all-gather, a
        reduce-scatter or an all-to-all, and twice as many in an all-reduce.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One Pallas kernel, and how often it is called.

    Attributes:
      name: the one it was given in JAX.
      operands: arrays that it reads.
      results: arrays that it writes.
      count: calls.
      flops: of one call, if its author gave a `pl.CostEstimate`.
    """

    name: str
    operands: tuple[Array, ...]
    results: tuple[Array, ...]
    count: int
    flops: int | None

    @property
    def num_bytes(self) -> int:
        """Of all operands and results of one call."""
        return sum(array.num_bytes for array in (*self.operands, *self.results))


@dataclasses.dataclass(frozen=True)
class Program:
    """What one device does in one call.

    Attributes:
      flops: of matrix products (dots and convolutions), a multiplication and an addition each; kernels not counted.
      kernels: Pallas kernels.
      collectives: by kind and axes; the most bytes first.
      cycles: the compiler's estimate for its own operations, without kernels and collectives; 0 if it gives none.
      unknown_loops: loops that were counted once, since the text does not say how often they turn.
    """

    flops: float
    kernels: tuple[Kernel, ...]
    collectives: tuple[Collective, ...]
    cycles: int
    unknown_loops: int


def read_program(text: str, mesh_sizes: Mapping[str, int]) -> Program:
    """Counts what a compiled program does.

    Args:
      text: of the program, as `jax.stages.Compiled.as_text()` gives it.
      mesh_sizes: axis -> devices, in the order in which the mesh numbers its devices.
    """
    module = Module(text)
    flops, cycles = 0.0, 0
    kernels = list[Kernel]()
    talk = defaultdict[tuple[str, tuple[str, ...]], list[int]](lambda: [0, 0])
    for run in module.runs():
        computation, times = run.computation, run.times
        for one in computation.values():
            kind = one.operation.removesuffix("-start")
            if one.operation == "dot":
                flops += times * _dot_flops(one, computation)
            elif one.operation == "convolution":
                flops += times * _convolution_flops(one, computation)
            elif "tpu_custom_call" in one.attributes:
                kernels.append(_kernel(one, computation, times))
            elif kind in _COLLECTIVES and not _is_continued(one, computation):
                kind, axes, num_bytes = _collective(kind, one, computation, mesh_sizes)
                if axes:
                    talk[kind, axes][0] += times
                    talk[kind, axes][1] += times * num_bytes
            if not run.fused and (estimate := _CYCLES.search(one.attributes)):
                cycles += times * int(estimate[1])
    collectives = [Collective(kind, axes, count, size) for (kind, axes), (count, size) in talk.items()]
    collectives.sort(key=lambda one: (-one.bytes, one.kind))
    return Program(flops, tuple(kernels), tuple(collectives), cycles, module.unknown_loops)


def _array(name: str, computation: Computation) -> Array:
    return computation[name].results[0]


def _dot_flops(dot: Instruction, computation: Computation) -> int:
    left = _array(dot.operands[0], computation).shape
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    sizes = [left[int(n)] for n in contracted[1].split(",") if n] if contracted else []
    return 2 * math.prod(dot.results[0].shape) * math.prod(sizes)


def _convolution_flops(one: Instruction, computation: Computation) -> int:
    """As a TPU writes matrix products: what is summed over may be a spatial dimension, batches may be others.

    So only those pairs of an output and a place of the window count that meet a number, not padding.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert labels is not None
    inputs, kernel, outputs = labels.groups()
    left, right, out = (
        dict(zip(names, array.shape, strict=True))
        for names, array in (
            (inputs, _array(one.operands[0], computation)),
            (kernel, _array(one.operands[1], computation)),
            (outputs, one.results[0]),
        )
    )
    window = re.search(r"window=\{([^}]*)\}", one.attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    pairs = 1
    for dimension in range(len(inputs) - 2):
        stride, hole, reach = (
            int(fields[name].split("x")[dimension]) if name in fields else 1
            for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        before = int(fields["pad"].split("x")[dimension].split("_")[0]) if "pad" in fields else 0
        label = str(dimension)
        # In the input with its holes: [outputs, window].
        places = np.arange(out[label])[:, None] * stride + np.arange(right[label])[None] * reach - before
        inside = (places >= 0) & (places <= (left[label] - 1) * hole) & (places % hole == 0)
        pairs *= int(inside.sum())
    return 2 * out["b"] * out["f"] * right["i"] * pairs


def _kernel(one: Instruction, computation: Computation, times: int) -> Kernel:
    flops = _KERNEL_FLOPS.search(one.attributes)
    return Kernel(
        name=re.sub(r"\.\d+$", "", one.name),
        operands=tuple(_array(name, computation) for name in one.operands),
        results=one.results,
        count=times,
        flops=int(flops[1]) if flops else None,
    )


def _is_continued(one: Instruction, computation: Computation) -> bool:
    """A TPU spreads one collective over several fusions, and names it in each: the first of them counts."""
    starts = any('"AsyncCollectiveStart"' in other.attributes for other in computation.values())
    return "chain_id=" in one.attributes and not starts


def _collective(
    kind: str, one: Instruction, computation: Computation, mesh_sizes: Mapping[str, int]
) -> tuple[str, tuple[str, ...], int]:
    """Kind, axes, and the bytes that a device sends."""
    size = sum(array.num_bytes for name in one.operands for array in computation[name].results)
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", one.attributes)
        return kind, _axes(_braces(pairs[1]) if pairs else [], mesh_sizes), size
    groups = replica_groups(one.attributes, mesh_sizes)
    axes, devices = _axes(groups, mesh_sizes), len(groups[0])
    if kind == "all-gather":
        return kind, axes, size * (devices - 1)
    # A TPU's reduce-scatter is a fusion of an all-reduce with the slice that a device keeps.
    fused = any(other.operation == "dynamic-slice" and other.is_root for other in computation.values())
    if kind == "all-reduce" and fused:
        kind = "reduce-scatter"
    return kind, axes, size * (devices - 1) * (2 if kind == "all-reduce" else 1) // devices


def replica_groups(attributes: str, mesh_sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    """The groups of devices of a collective, in any form in which XLA writes them.

    >>> replica_groups("replica_groups={{0,1},{2,3}}", {"data": 4})
    [(0, 1), (2, 3)]
    >>> replica_groups("replica_groups=[2,2]<=[2,2]T(1,0)", {"data": 4})
    [(0, 2), (1, 3)]
    >>> replica_groups("replica_groups=mesh['x'=2,'y'=2] {'x'}", {"data": 4})
    [(0, 2), (1, 3)]
    """
    everyone = tuple(range(math.prod(mesh_sizes.values())))
    if lists := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        return _braces(lists[1])
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, source, order = (_numbers(part) for part in iota.groups(""))
        devices = np.arange(math.prod(source)).reshape(source).transpose(order or range(len(source)))
        return _rows(devices.reshape(shape))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?) ?\{([^}]*)\}", attributes):
        names, sizes = zip(*re.findall(r"'([^']+)'=(\d+)", mesh[1]), strict=True)
        devices = _mesh_devices(mesh[2], [int(size) for size in sizes])
        # 'x':(2)4 is a part of axis 'x': 4 devices whose places are those after the first 2.
        parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", mesh[3])
        split, taken = list[int](), list[int]()
        for name, size in zip(names, map(int, sizes), strict=True):
            done = 1
            for outer, part in sorted((int(outer or 1), int(part or size)) for n, outer, part in parts if n == name):
                taken.append(len(split) + 1)
                split += [outer // done, part]
                done = outer * part
            split.append(size // done)
        rest = [axis for axis in range(len(split)) if axis not in taken]
        members = math.prod(split[axis] for axis in taken)
        return _rows(devices.reshape(split).transpose(rest + taken).reshape(-1, members))
    return [everyone]


def _mesh_devices(text: str, sizes: Sequence[int]) -> np.ndarray:
    """The devices of a mesh that lists them, `device_ids=([2,2]<=[4])` or `device_ids=(0,2,1,3)`, or all in order."""
    if iota := re.search(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        _, source, order = (_numbers(part) for part in iota.groups(""))
        return np.arange(math.prod(source)).reshape(source).transpose(order or range(len(source))).reshape(sizes)
    listed = _numbers(",".join(re.findall(r"\d+", text)))
    return np.array(listed or range(math.prod(sizes))).reshape(sizes)


def _axes(groups: Sequence[Sequence[int]], mesh_sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which members of a group differ."""
    sizes = tuple(mesh_sizes.values())
    varying = set[str]()
    for group in groups:
        for name, places in zip(mesh_sizes, np.unravel_index(list(group), sizes), strict=True):
            if len(set(places.tolist())) > 1:
                varying.add(name)
    return tuple(name for name in mesh_sizes if name in varying)


def _braces(text: str) -> list[tuple[int, ...]]:
    return [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", text)]


def _rows(array: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(row) for row in array.reshape(array.shape[0], -1).tolist()]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
