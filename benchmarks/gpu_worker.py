"""The processes that `benchmarks.gpu` starts: a task comes in, rows go out as they are measured.

The task is one JSON object, the first argument; its "rows" are [contender, shape, computation]. In their order each is
answered by a JSON object on a line of stdout, with the times or with the reason why there are none. A kernel that fails
may leave the device unusable for its process, so the process ends there with status 1, and `benchmarks.gpu` starts
another one for the rows that are left. Without rows, it describes the device and the speed of a copy.

How a call of 10 to 1000 microseconds of JAX is timed: one program makes n calls, each on fresh operands, and each from
the state that the call before returned (the gradient of that state, where gradients are taken): no call can start early
or be merged with another, and none can be dropped, because all results are returned. The program is run many times; the
time of a call is the median wall time less that of a program that does nothing with the same operands, over n.

A peer is called as its authors advise: in its own layout, without states, its autotuning over before the clock starts.
Its operands change from call to call as ours do. It is timed by CUDA events in two ways, launched from Python and as a
replayed CUDA graph, and the faster one counts: a jitted JAX program pays no Python per call either.
"""

import functools
import json
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import describe_environment, one_line, time_calls, too_large, versions
from benchmarks.definition import attend, relative_rms, truth
from benchmarks.gpu import LAYER, NUM_LAYERS, PEERS, SHAPES, Shape
from transnormer_jax.errors import UserError
from transnormer_jax.ops.linear_attention import Problem, linear_attention, resolve_backend

# Four times what the L2 cache of an NVIDIA H200 holds: it has forgotten each operand by its next use.
_CACHE_BYTES = 256_000_000
_WORK_SECONDS = 2e-3
# What XLA compiles takes long to compile, and is slow enough to be measured in few calls.
_MAX_CALLS, _MAX_CALLS_XLA = 32, 4
_KERNELS = ("pallas_gpu", "triton")
_MIN_REPEATS = 5
_COPIES = 8

Task = dict[str, Any]
Row = dict[str, Any]


class Skip(Exception):
    """There is no time for this row; the message is half a sentence that says why."""


def serve(measure_row: Callable[[Task, str, Shape, str], Row]) -> None:
    """Measures the rows of the task, up to the first that fails for no known reason."""
    task = json.loads(sys.argv[1])
    for contender, name, computation in task["rows"]:
        failed = False
        try:
            row = measure_row(task, contender, SHAPES[name], computation)
        except Skip as skip:
            row = {"skipped": str(skip)}
        except Exception as error:
            row, failed = {"skipped": one_line(error)}, True
        print(json.dumps(row), flush=True)
        if failed:
            sys.exit(1)


def plan(task: Task, shape: Shape, computation: str, *, max_calls: int) -> tuple[int, int]:
    """Returns how many calls to time at once, and on how many sets of operands.

    The calls are about two milliseconds of work at half the speed of the memory floor.
    """
    floor_seconds = shape.least_bytes(computation) / task["copy_bytes_per_second"]
    num_calls = min(max(math.ceil(_WORK_SECONDS / (2 * floor_seconds)), 1), max_calls)
    # q, k, v and d_out are as many numbers as the forward pass moves; it reads three quarters of them at K = V.
    operand_bytes = shape.least_bytes("forward") * (0.75 if computation == "forward" else 1)
    return num_calls, min(num_calls, math.ceil(_CACHE_BYTES / operand_bytes))


def verify(
    task: Task, shape: Shape, operands: list[Any], results: dict[str, Any], one_head: Callable[..., np.ndarray]
) -> dict[str, float]:
    """Returns the relative RMS error of each result, over the first and the last head; the others are checked for NaN.

    Args:
      task: has the tolerance.
      shape: the problem.
      operands: q, k, v, and d_out where the results have gradients.
      results: "out", and perhaps "dq", "dk" and "dv".
      one_head: (array, row, head) -> [N, K] float32.

    Raises:
      Skip: the results are wrong.
    """
    errors = {name: list[float]() for name in results}
    for row, head in ((0, 0), (shape.batch - 1, shape.heads - 1)):
        sample = [one_head(x, row, head) for x in operands]
        decay, lengths = float(shape.log_decay[head]), shape.lengths
        expected = truth(*sample, decay, lengths) if len(sample) == 4 else {"out": attend(*sample, decay, lengths)}
        for name, value in results.items():
            errors[name].append(relative_rms(one_head(value, row, head), expected[name]))
    worst = {name: float(np.max(both)) for name, both in errors.items()}
    bad = [name for name, error in worst.items() if not error <= task["tolerance"][shape.dtype]]  # NaN is bad, too.
    if bad:
        raise Skip("wrong, by relative RMS errors of " + ", ".join(f"{worst[name]:.1e} in {name}" for name in bad))
    not_finite = [name for name, value in results.items() if not math.isfinite(float(abs(value).max()))]
    if not_finite:
        raise Skip(f"wrong, {', '.join(not_finite)} is not finite everywhere")
    return worst


# JAX.


def describe(task: Task) -> dict[str, Any]:
    """Returns the environment, and the speed of a copy: bytes read and written per second, by one large kernel."""
    environment = describe_environment()
    size = task["copy_bytes"][environment["platform"] == "gpu"] // 2
    x = jax.random.normal(jax.random.key(0), (size,), jnp.bfloat16)
    negate = jax.jit(jnp.negative)

    def copies() -> jax.Array:
        return functools.reduce(lambda y, _: negate(y), range(_COPIES), x)

    median = statistics.median(time_calls(copies, seconds=task["seconds"], at_least=_MIN_REPEATS))
    return {"environment": environment, "copy_bytes_per_second": _COPIES * 2 * x.nbytes / median}


def measure_backend(task: Task, contender: str, shape: Shape, computation: str) -> Row:
    """Checks one backend at one shape against float64, and times it.

    Raises:
      Skip: the backend refuses, does not fit, or is wrong; or it is "auto", which is another one.
    """
    sizes = (shape.batch, shape.num_tokens, shape.heads, shape.key_dim, shape.value_dim)
    try:
        backend = resolve_backend(contender, Problem(*sizes, jnp.dtype(shape.dtype)))
    except (UserError, ImportError) as error:
        raise Skip(one_line(error)) from error
    if contender == "auto":
        raise Skip(f"it takes {backend}")
    max_calls = _MAX_CALLS if backend in _KERNELS else _MAX_CALLS_XLA
    num_calls, num_sets = plan(task, shape, computation, max_calls=max_calls)
    sets = [_random_jax(shape, seed, 3 if computation == "forward" else 4) for seed in range(num_sets)]
    state = jnp.zeros((shape.batch, shape.heads, shape.key_dim, shape.value_dim))
    ids = None if shape.segment_ids is None else jnp.asarray(shape.segment_ids)
    operands = (sets, state, jnp.asarray(shape.log_decay), ids)

    compiled = jax.jit(chain(backend, computation, num_calls)).lower(*operands).compile()
    reason = too_large(compiled, task["max_gigabytes"])
    if reason is not None:
        raise Skip(reason)

    def one_head(x: jax.Array, row: int, head: int) -> np.ndarray:
        return np.asarray(x[row, :, head]).astype(np.float32)

    # The first call of the chain starts from no state, as the truth does.
    errors = verify(task, shape, sets[0], compiled(*operands)[0][0], one_head)
    # The last state alone is waited for: a device works in order.
    times = time_calls(lambda: compiled(*operands)[1], seconds=task["seconds"], at_least=_MIN_REPEATS)
    nothing = time_calls(lambda: _nothing(*operands), seconds=task["seconds"] / 4, at_least=_MIN_REPEATS)
    launch = statistics.median(nothing)
    milliseconds = [1e3 * (t - launch) / num_calls for t in times]
    return {
        "median_ms": statistics.median(milliseconds),
        "min_ms": min(milliseconds),
        "launch_ms": 1e3 * launch,
        "calls": num_calls,
        "sets": num_sets,
        "repeats": len(times),
        "relative_rms_error": errors,
        "compiler_temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def chain(backend: str, computation: str, num_calls: int) -> Callable[..., Any]:
    """Returns the program (sets, state, log_decay, segment ids) -> (the results of every call, the last state)."""

    @jax.jit  # Traced and lowered once, however often it is called.
    def call(operands: list[jax.Array], state: jax.Array, log_decay: jax.Array, ids: jax.Array | None) -> Any:
        def forward(q: jax.Array, k: jax.Array, v: jax.Array, state: jax.Array) -> Any:
            return linear_attention(q, k, v, log_decay, initial_state=state, segment_ids=ids, backend=backend)

        q, k, v = operands[:3]
        if computation == "forward":
            out, state = forward(q, k, v, state)
            return {"out": out}, state
        (out, end), pull_back = jax.vjp(forward, q, k, v, state)
        dq, dk, dv, d_state = pull_back((operands[3], jnp.zeros_like(end)))
        return {"out": out, "dq": dq, "dk": dk, "dv": dv}, d_state

    def program(sets: list[list[jax.Array]], state: jax.Array, log_decay: jax.Array, ids: jax.Array | None) -> Any:
        results = []
        for i in range(num_calls):
            result, state = call(sets[i % len(sets)], state, log_decay, ids)
            results.append(result)
        return results, state

    return program


@functools.partial(jax.jit, keep_unused=True)
def _nothing(sets: Any, state: jax.Array, log_decay: jax.Array, ids: jax.Array | None) -> jax.Array:
    return state[0, 0, 0, 0] + 1


def _random_jax(shape: Shape, seed: int, count: int) -> list[jax.Array]:
    """The first `count` of q [B, N, H, K], k [B, N, H, K], v [B, N, H, V] and d_out [B, N, H, V]."""
    features = (shape.key_dim, shape.key_dim, shape.value_dim, shape.value_dim)[:count]
    keys = jax.random.split(jax.random.key(seed), count)
    return [
        jax.random.normal(key, (shape.batch, shape.num_tokens, shape.heads, size), shape.dtype)
        for key, size in zip(keys, features, strict=True)
    ]


# PyTorch.


def peer_function(contender: str, shape: Shape, torch: Any) -> Callable[..., Any]:
    """(q, k, v) -> out of a peer, in its own layout.

    Raises:
      Skip: it does not know packed documents.
    """
    decay, options = torch.tensor(shape.log_decay, device="cuda"), {}
    if shape.documents > 1:
        options = {"cu_seqlens": torch.tensor([0, *shape.lengths], device="cuda").cumsum(0)}
    if contender == "fla_simple_gla":
        from fla.ops.simple_gla import chunk_simple_gla

        return lambda q, k, v: chunk_simple_gla(q, k, v, g_gamma=decay, scale=1.0, **options)[0]
    if contender == "fla_lightning_attn":
        from fla.ops.lightning_attn import chunk_lightning_attn

        return lambda q, k, v: chunk_lightning_attn(q, k, v, LAYER, NUM_LAYERS, scale=1.0, **options)[0]
    from lightning_attn.ops import lightning_attn_func

    if shape.documents > 1:
        raise Skip("it knows no packed documents")
    return lambda q, k, v: lightning_attn_func(q, k, v, -decay.reshape(-1, 1, 1))


def measure_peer(task: Task, contender: str, shape: Shape, computation: str) -> Row:
    """Checks one peer at one shape against float64, and times it.

    Raises:
      Skip: there is no PyTorch, no GPU or no such peer, it does not know such a shape, or it is wrong.
    """
    if shape.dtype == "float32":
        raise Skip("peers are measured in bfloat16, which they are made for")
    heads_first = contender == "lightning_attn"  # [B, H, N, K]
    try:
        import torch

        if not torch.cuda.is_available():
            raise Skip("PyTorch finds no GPU")
        function = peer_function(contender, shape, torch)
    except ImportError as error:
        raise Skip(f"not installed ({one_line(error)})") from error

    num_calls, num_sets = plan(task, shape, computation, max_calls=_MAX_CALLS)
    count = 3 if computation == "forward" else 4
    sets = [random_torch(shape, seed, torch, "cuda", heads_first=heads_first)[:count] for seed in range(num_sets)]

    def one_head(x: Any, row: int, head: int) -> np.ndarray:
        return (x[row, head] if heads_first else x[row, :, head]).detach().float().cpu().numpy()

    errors = verify(task, shape, sets[0], results_of(function, torch, sets[0]), one_head)

    def calls() -> None:
        for i in range(num_calls):
            results_of(function, torch, sets[i % num_sets])

    launched = _milliseconds(calls, torch, seconds=task["seconds"] / 2)
    times, more = launched, {}
    try:
        replayed = _milliseconds(_as_graph(calls, torch), torch, seconds=task["seconds"] / 2)
        times = min(launched, replayed, key=statistics.median)
    except Exception as error:  # Not every kernel can be recorded.
        more["no_graph"] = one_line(error)
    package = "lightning_attn" if contender == "lightning_attn" else "fla-core"
    return {
        "median_ms": statistics.median(times) / num_calls,
        "min_ms": min(times) / num_calls,
        "launched_median_ms": statistics.median(launched) / num_calls,
        "calls": num_calls,
        "sets": num_sets,
        "repeats": len(times),
        "relative_rms_error": errors,
        "versions": versions(("torch", "triton", package)),
        **more,
    }


def results_of(function: Callable[..., Any], torch: Any, operands: list[Any]) -> dict[str, Any]:
    """Returns the output, and the gradients where d_out is the fourth operand."""
    if len(operands) == 3:
        with torch.no_grad():
            return {"out": function(*operands)}
    *qkv, d_out = operands
    out = function(*qkv)
    dq, dk, dv = torch.autograd.grad(out, qkv, d_out)
    return {"out": out, "dq": dq, "dk": dk, "dv": dv}


def random_torch(shape: Shape, seed: int, torch: Any, device: str, *, heads_first: bool) -> list[Any]:
    """q, k, v, which take gradients, and d_out; [B, N, H, K], or [B, H, N, K] if the heads come first."""
    generator = torch.Generator(device).manual_seed(seed)
    middle = (shape.heads, shape.num_tokens) if heads_first else (shape.num_tokens, shape.heads)
    dtype = getattr(torch, shape.dtype)

    def normal(features: int) -> Any:
        return torch.randn(shape.batch, *middle, features, generator=generator, device=device, dtype=dtype)

    q, k, v = (normal(size).requires_grad_() for size in (shape.key_dim, shape.key_dim, shape.value_dim))
    return [q, k, v, normal(shape.value_dim)]


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


def _measure_row(task: Task, contender: str, shape: Shape, computation: str) -> Row:
    measure = measure_peer if contender in PEERS else measure_backend
    return measure(task, contender, shape, computation)


if __name__ == "__main__":
    sys.path[:0] = json.loads(sys.argv[1])["peers"]
    if json.loads(sys.argv[1])["rows"]:
        serve(_measure_row)
    else:
        print(json.dumps(describe(json.loads(sys.argv[1]))), flush=True)
