"""The process of `benchmarks.gpu` that runs PyTorch: the same shapes by the peers' kernels.

A peer is called as its authors advise: in its own layout, without states, its autotuning over before the clock starts.
Its operands change from call to call as ours do. It is timed by CUDA events in two ways, launched from Python and as a
replayed CUDA graph, and the faster one counts: a jitted JAX program pays no Python per call either.
"""

import functools
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.environment import versions
from benchmarks.gpu_shapes import LAYER, NUM_LAYERS, Shape
from benchmarks.gpu_worker import Row, Skip, Task, plan, serve, verify
from benchmarks.measure import one_line

_MAX_CALLS = 32
_MIN_REPEATS = 5

# (q, k, v) -> out, in the layout of the peer.
_Function = Callable[..., Any]


def fla_simple_gla(shape: Shape, torch: Any, device: str) -> _Function:
    """flash-linear-attention's chunked form with a constant decay for each head."""
    from fla.ops.simple_gla import chunk_simple_gla

    decay = torch.tensor(shape.log_decay, device=device)
    options = _documents(shape, torch, device)
    return lambda q, k, v: chunk_simple_gla(q, k, v, g_gamma=decay, scale=1.0, **options)[0]


def fla_lightning_attn(shape: Shape, torch: Any, device: str) -> _Function:
    """flash-linear-attention's lightning attention, which computes the decay itself."""
    from fla.ops.lightning_attn import chunk_lightning_attn

    options = _documents(shape, torch, device)
    return lambda q, k, v: chunk_lightning_attn(q, k, v, LAYER, NUM_LAYERS, scale=1.0, **options)[0]


def lightning_attn(shape: Shape, torch: Any, device: str) -> _Function:
    """Lightning attention by its authors; [B, H, N, K]."""
    from lightning_attn.ops import lightning_attn_func

    if shape.documents > 1:
        raise Skip("it knows no packed documents")
    slopes = -torch.tensor(shape.log_decay, device=device).reshape(-1, 1, 1)
    return lambda q, k, v: lightning_attn_func(q, k, v, slopes)


PEERS = {"fla_simple_gla": fla_simple_gla, "fla_lightning_attn": fla_lightning_attn, "lightning_attn": lightning_attn}
_PACKAGES = {
    "fla_simple_gla": "fla-core",
    "fla_lightning_attn": "fla-core",
    "lightning_attn": "lightning_attn",
}
_HEADS_FIRST = {"lightning_attn"}


def measure_row(task: Task, contender: str, shape: Shape, computation: str) -> Row:
    """Checks one peer at one shape against float64, and times it.

    Raises:
      Skip: there is no PyTorch, no GPU or no such peer, it does not know such a shape, or it is wrong.
    """
    if shape.dtype == "float32":
        raise Skip("peers are measured in bfloat16, which they are made for")
    heads_first = contender in _HEADS_FIRST
    try:
        import torch

        if not torch.cuda.is_available():
            raise Skip("PyTorch finds no GPU")
        function = PEERS[contender](shape, torch, "cuda")
    except ImportError as error:
        raise Skip(f"not installed ({one_line(error)})") from error

    num_calls, num_sets = plan(task, shape, computation, max_calls=_MAX_CALLS)
    count = 3 if computation == "forward" else 4
    sets = [random(shape, seed, torch, "cuda", heads_first=heads_first)[:count] for seed in range(num_sets)]
    call = functools.partial(results_of, function, torch)
    one_head = _one_head_first if heads_first else _one_head
    errors = verify(task, shape, sets[0], call(sets[0]), one_head=one_head, finite=_finite)

    def calls() -> None:
        for i in range(num_calls):
            call(sets[i % num_sets])

    launched = _milliseconds(calls, torch, seconds=task["seconds"] / 2)
    times, more = launched, {}
    try:
        replayed = _milliseconds(_as_graph(calls, torch), torch, seconds=task["seconds"] / 2)
        times = min(launched, replayed, key=statistics.median)
    except Exception as error:  # Not every kernel can be recorded.
        more["no_graph"] = one_line(error)
    return {
        "median_ms": statistics.median(times) / num_calls,
        "min_ms": min(times) / num_calls,
        "launched_median_ms": statistics.median(launched) / num_calls,
        "calls": num_calls,
        "sets": num_sets,
        "repeats": len(times),
        "relative_rms_error": errors,
        "versions": versions(("torch", "triton", _PACKAGES[contender])),
        **more,
    }


def results_of(function: _Function, torch: Any, operands: list[Any]) -> dict[str, Any]:
    """Returns the output, and the gradients where d_out is the fourth operand."""
    if len(operands) == 3:
        with torch.no_grad():
            return {"out": function(*operands)}
    *qkv, d_out = operands
    out = function(*qkv)
    dq, dk, dv = torch.autograd.grad(out, qkv, d_out)
    return {"out": out, "dq": dq, "dk": dk, "dv": dv}


def random(shape: Shape, seed: int, torch: Any, device: str, *, heads_first: bool) -> list[Any]:
    """q, k, v, which take gradients, and d_out; [B, N, H, K], or [B, H, N, K] if the heads come first."""
    generator = torch.Generator(device).manual_seed(seed)
    middle = (shape.heads, shape.num_tokens) if heads_first else (shape.num_tokens, shape.heads)
    dtype = getattr(torch, shape.dtype)

    def normal(features: int) -> Any:
        return torch.randn(shape.batch, *middle, features, generator=generator, device=device, dtype=dtype)

    q, k, v = (normal(size).requires_grad_() for size in (shape.key_dim, shape.key_dim, shape.value_dim))
    return [q, k, v, normal(shape.value_dim)]


def _documents(shape: Shape, torch: Any, device: str) -> dict[str, Any]:
    if shape.documents == 1:
        return {}
    return {"cu_seqlens": torch.tensor([0, *shape.lengths], device=device).cumsum(0)}


def _milliseconds(function: Callable[[], None], torch: Any, *, seconds: float) -> list[float]:
    function()
    torch.cuda.synchronize()
    times = list[float]()
    while len(times) < _MIN_REPEATS or sum(times) < 1e3 * seconds:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return times


def _as_graph(function: Callable[[], None], torch: Any) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _one_head(x: Any, row: int, head: int) -> np.ndarray:
    return x[row, :, head].detach().float().cpu().numpy()


def _one_head_first(x: Any, row: int, head: int) -> np.ndarray:
    return x[row, head].detach().float().cpu().numpy()


def _finite(x: Any) -> bool:
    return bool(x.isfinite().all())


if __name__ == "__main__":
    sys.path[:0] = json.loads(sys.argv[1])["peers"]
    serve(measure_row)
