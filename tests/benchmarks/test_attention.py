"""The attention benchmark, at lengths too small to time: what it writes, what it leaves out, what it refuses."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import attention
from benchmarks.attention import COMPUTATIONS, CONTENDERS, Settings, forward, forward_backward, summarize
from benchmarks.definition import definition
from tests.benchmarks.runs import run_benchmark
from transnormer_jax.errors import UserError
from transnormer_jax.ops.linear_attention import BACKENDS, Backend

_SMALL = {"num_tokens": (8, 16), "heads": 2, "head_dim": 8, "seconds": 1e-3}


def _run(tmp_path: Path, **settings) -> tuple[dict, dict]:
    return run_benchmark(attention, Settings(**(_SMALL | settings)), tmp_path / "results" / "attention.json")


@pytest.mark.slow
def test_every_contender_is_checked_and_measured(tmp_path, capsys):
    summary, record = _run(tmp_path, num_tokens=(16,))

    assert record["settings"]["num_tokens"] == [16]
    assert len(record["log_decay"]) == 2

    others = set(CONTENDERS) - {"chunked"}
    errors = record["check"]["relative_rms_error"]
    assert errors.keys() == set(CONTENDERS) - {"softmax"}
    assert max(errors.values()) < 1e-6

    names = [(row["num_tokens"], row["backend"], row["computation"]) for row in record["rows"]]
    assert names == list(itertools.product((16,), CONTENDERS, COMPUTATIONS))
    for row in record["rows"]:
        assert "skipped" not in row
        assert row["median_ms"] >= row["min_ms"] > 0
        assert row["repeats"] >= 3
        assert row["compiler_temp_bytes"] > 0

    assert summary == record["summary"]
    for computation in COMPUTATIONS:
        assert all(summary[computation][f"time_{name}_over_chunked"]["num_tokens"] == 16 for name in others)
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in table] == [[backend, computation] for _, backend, computation in names]


@pytest.mark.slow
def test_what_needs_too_much_memory_is_not_run(tmp_path, capsys):
    summary, record = _run(tmp_path, backends=("chunked", "softmax"), max_gigabytes=1e-6)
    places = [(row["num_tokens"], row["backend"], row["computation"]) for row in record["rows"]]
    assert places == list(itertools.product((8, 16), ("chunked", "softmax"), COMPUTATIONS))
    for row in record["rows"]:
        assert row["skipped"].startswith("the compiler plans 0.00")
        assert row["skipped"].endswith("GB, the limit is 1e-06 GB")
        assert row["compiler_temp_bytes"] > 0
        assert row["repeats"] == 0
        assert "median_ms" not in row
    assert "time_softmax_over_chunked" not in summary["forward"]
    assert capsys.readouterr().out.count("skipped: the compiler plans") == 8


@pytest.mark.slow
def test_what_fails_or_is_wrong_is_not_timed(tmp_path, monkeypatch):
    def failing(*operands, **options):
        raise NotImplementedError("no kernel for this device\nand much detail")

    def wrong(operands, **options):
        return 1.01 * operands.v, operands.state, None

    monkeypatch.setitem(BACKENDS, "quadratic", Backend(failing))
    monkeypatch.setitem(BACKENDS, "recurrent", Backend(wrong))
    _, record = _run(tmp_path, backends=("quadratic", "recurrent", "chunked"), num_tokens=(32,))
    reasons = {row["backend"]: row.get("skipped") for row in record["rows"]}
    assert reasons["quadratic"] == "NotImplementedError: no kernel for this device"
    assert reasons["recurrent"].startswith("wrong, its relative RMS error is ")
    assert reasons["chunked"] is None
    assert record["check"]["relative_rms_error"].keys() == {"recurrent", "chunked"}


def test_the_definition_is_the_recurrence():
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 7, 3, 4))
    log_decay = np.array([0.0, -0.1, -2.0])
    state = np.zeros((2, 3, 4, 4))
    out = np.zeros_like(v)
    for t in range(7):
        state = np.exp(log_decay)[:, None, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        out[:, t] = np.einsum("bhk,bhkv->bhv", q[:, t], state)
    np.testing.assert_allclose(definition(q, k, v, log_decay), out, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["chunked", "softmax"])
def test_the_timed_gradient_is_that_of_a_weighted_sum(backend):
    q, k, v, cotangent = jax.random.normal(jax.random.key(0), (4, 1, 70, 2, 8))
    log_decay = jnp.array([-0.1, -0.01])
    out, gradients = jax.jit(forward_backward(backend))(q, k, v, log_decay, cotangent)

    def weighted_sum(q, k, v):
        return jnp.sum(forward(backend)(q, k, v, log_decay) * cotangent)

    np.testing.assert_allclose(out, jax.jit(forward(backend))(q, k, v, log_decay), rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(gradients, jax.jit(jax.grad(weighted_sum, (0, 1, 2)))(q, k, v), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_the_summary_compares_at_the_largest_common_length_of_each_pair():
    milliseconds = {
        ("associative_scan", 512): 30.0,
        ("quadratic", 512): 8.0,
        ("chunked", 512): 2.0,
        ("associative_scan", 1024): None,
        ("chunked", 1024): 4.0,
        ("softmax", 1024): 6.0,
    }
    rows = [
        {"backend": backend, "computation": "forward", "num_tokens": n, "median_ms": median_ms}
        for (backend, n), median_ms in milliseconds.items()
    ]
    assert summarize(rows) == {
        "forward": {
            "time_associative_scan_over_chunked": {"num_tokens": 512, "ratio": 15.0},
            "time_quadratic_over_chunked": {"num_tokens": 512, "ratio": 4.0},
            "time_softmax_over_chunked": {"num_tokens": 1024, "ratio": 1.5},
        },
        "forward_backward": {},
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backends": ("chunkd",)}, "unknown name 'chunkd' in backends: did you mean 'chunked'"),
        ({"backends": ()}, "backends is empty"),
        ({"num_tokens": (256, 0)}, "num_tokens is .* positive"),
        ({"heads": -1}, "heads is -1"),
        ({"dtype": "float64"}, "unknown name 'float64' in dtype"),
        ({"max_gigabytes": float("nan")}, "max_gigabytes is nan"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Settings(**settings)
