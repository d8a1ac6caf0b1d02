"""On a GPU, every backend equals the definition, gives the same bits twice, and reaches the end of large arrays."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.definition import CASES, Case, Inputs, define, define_gradients, make_inputs, relative_rms
from transnormer_jax.ops import linear_attention
from transnormer_jax.ops.hardware import target_hardware
from transnormer_jax.ops.linear_attention import BACKENDS, Problem

KERNELS = ["pallas_gpu", "triton"]
XLA = ["recurrent", "quadratic", "associative_scan", "chunked", "chunked_associative_scan"]

# What kernels are made for: whole and ragged chunks, K and V of 64 and 128, and LRPE, which doubles K. A row of 2600
# tokens with few heads is cut into pieces that run at once.
LARGE_CASES = [
    Case("less_than_a_chunk", (2, 33, 2, 128, 128), [-0.7, -1e-5], initial_state=True),
    Case("whole_chunks_64", (2, 512, 2, 64, 64), [-0.3, -1e-5]),
    Case("ragged_64", (2, 333, 3, 64, 64), [-2.0, -0.05, -1e-5], initial_state=True),
    Case("whole_chunks_128", (2, 512, 2, 128, 128), [-0.3, -1e-5]),
    Case("ragged_128", (2, 333, 3, 128, 128), [-2.0, -0.05, -1e-5], initial_state=True),
    Case("lrpe", (2, 333, 2, 128, 64), [-0.3, -0.004], segments=True, initial_state=True),
    Case("segments_128", (3, 400, 2, 128, 128), [-0.5, -1e-5], segments=True, initial_state=True),
    Case("split_64", (1, 2600, 2, 64, 64), [-0.02, -1e-5], initial_state=True),
    Case("split_128", (1, 2600, 1, 128, 128), [-1e-3], initial_state=True),
    Case("split_segments", (1, 2600, 2, 64, 64), [-0.02, -1e-5], segments=True, initial_state=True),
]
ALL_CASES = {case.name: case for case in [*CASES, *LARGE_CASES]}
RUNS = [
    *((backend, name, dtype) for name in ALL_CASES for dtype in (jnp.float32, jnp.bfloat16) for backend in KERNELS),
    *((backend, "lrpe", jnp.float16) for backend in KERNELS),
    *((backend, "all", dtype) for dtype in (jnp.float32, jnp.bfloat16) for backend in XLA),
]


def skip_where_refused(backend: str, shape: tuple[int, ...], dtype: Any) -> None:
    reason = BACKENDS[backend].unsupported_reason(Problem(*shape, jnp.dtype(dtype)), target_hardware())
    if reason is not None:
        pytest.skip(f"{backend} does not support this: {reason}")


@functools.cache
def expected_results(name: str, dtype: Any) -> tuple[Inputs, dict[str, np.ndarray]]:
    """The inputs, and what they give by the definition in float64 on the CPU."""
    with jax.default_device(jax.devices("cpu")[0]):
        inputs = make_inputs(ALL_CASES[name], dtype)
        out, state = define(inputs)
        return inputs, {"out": out, "state": state, **define_gradients(inputs)}


def results_of(backend: str):
    """Returns the compiled function (operands, segment ids, cotangents) -> output, state and gradients."""

    @jax.jit
    def function(
        operands: dict[str, jax.Array], segment_ids: jax.Array | None, cotangents: Any
    ) -> dict[str, jax.Array]:
        def forward(operands: dict[str, jax.Array]) -> Any:
            return linear_attention(**operands, segment_ids=segment_ids, backend=backend)

        (out, state), pull_back = jax.vjp(forward, operands)
        return {"out": out, "state": state, **pull_back(cotangents)[0]}

    return function


def arguments_of(inputs: Inputs) -> tuple[dict[str, jax.Array], jax.Array | None, tuple[jax.Array, jax.Array]]:
    b, _, h, k = inputs.q.shape
    operands = {
        "q": inputs.q,
        "k": inputs.k,
        "v": inputs.v,
        "log_decay": np.zeros(h, np.float32) if inputs.log_decay is None else inputs.log_decay,
        "initial_state": np.zeros((b, h, k, inputs.v.shape[-1]), np.float32)
        if inputs.initial_state is None
        else inputs.initial_state,
    }
    return jax.tree.map(jnp.asarray, (operands, inputs.segment_ids, (inputs.d_out, inputs.d_state)))


@pytest.mark.parametrize(("backend", "name", "dtype"), RUNS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_equals_definition(backend: str, name: str, dtype: Any):
    skip_where_refused(backend, ALL_CASES[name].shape, dtype)
    inputs, expected = expected_results(name, dtype)
    actual = results_of(backend)(*arguments_of(inputs))
    assert actual["out"].dtype == dtype
    assert actual["state"].dtype == jnp.float32
    bound = 2e-5 if dtype == jnp.float32 else 5e-3
    errors = {name: relative_rms(actual[name], expected[name]) for name in expected}
    assert all(error <= bound for error in errors.values()), errors


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("shape", [(4, 2048, 16, 128, 128), (4, 2048, 16, 64, 64), (1, 8000, 4, 128, 128)])
@pytest.mark.parametrize("backend", KERNELS)
def test_same_bits_every_time(backend: str, shape: tuple[int, int, int, int, int], segments: bool):
    # Many blocks on all multiprocessors: a missing barrier shows as a result that moves.
    skip_where_refused(backend, shape, jnp.bfloat16)
    decay = np.geomspace(0.5, 1e-5, shape[2]).tolist()
    case = Case("many", shape, [-d for d in decay], segments=segments, initial_state=True)
    function, arguments = results_of(backend), arguments_of(make_inputs(case, jnp.bfloat16))
    first = function(*arguments)
    assert all(jnp.isfinite(x).all() for x in first.values())
    for _ in range(20):
        same = jax.tree.map(jnp.array_equal, function(*arguments), first)
        assert all(same.values()), same


@pytest.mark.xdist_group("large")  # two at once do not fit
@pytest.mark.parametrize("backend", KERNELS)
def test_more_elements_than_an_int32_counts(backend: str):
    # All rows have one q, k and d_out, and v is twice that of the row before. So are the results, to the last bit.
    rows, num_tokens, heads, features = 5, 32768, 104, 128
    shape = (rows, num_tokens, heads, features)
    assert np.prod(shape) > 2**31
    skip_where_refused(backend, (*shape, features), jnp.bfloat16)
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if memory < (needed := 9 * 2 * int(np.prod(shape))):
        pytest.skip(f"needs {needed / 1e9:.0f} GB on the device, jax has {memory / 1e9:.0f} GB")
    log_decay = -jnp.geomspace(1e-4, 0.5, heads)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, d_out = (jax.random.normal(key, (1, *shape[1:]), jnp.bfloat16) for key in keys)

    @jax.jit
    def results(q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array) -> dict[str, jax.Array]:
        def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return linear_attention(q, k, v, log_decay, backend=backend)[0]

        out, pull_back = jax.vjp(forward, q, k, v)
        dq, dk, dv = pull_back(d_out)
        return {"out": out, "dq": dq, "dk": dk, "dv": dv}

    @jax.jit
    def large(q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array) -> Any:
        powers = 2.0 ** jnp.arange(rows).reshape(-1, 1, 1, 1).astype(jnp.bfloat16)
        of_all = results(*(jnp.broadcast_to(x, shape) for x in (q, k)), powers * v, jnp.broadcast_to(d_out, shape))
        factors = {"out": powers, "dq": powers, "dk": powers, "dv": jnp.ones_like(powers)}
        equal = {name: jnp.all(of_all[name] == factors[name] * of_all[name][:1]) for name in of_all}
        return equal, {name: x[0] for name, x in of_all.items()}

    equal, first_row = large(q, k, v, d_out)
    assert all(equal.values()), equal
    for name, alone in results(q, k, v, d_out).items():
        assert (
            relative_rms(first_row[name][:, ::16].astype(jnp.float32), np.asarray(alone[0, :, ::16], np.float64))
            <= 5e-3
        )
