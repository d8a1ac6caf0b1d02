"""The GPU benchmark on a CPU, at sizes too small to time: its truth, its programs, its processes, what it writes."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.attention import COMPUTATIONS
from benchmarks.definition import attend, definition, relative_rms, truth
from benchmarks.gpu import CONTENDERS, MEASURED, PEERS, SHAPES, TOLERANCE, Settings, Shape, compare
from benchmarks.gpu_worker import Skip, chain, plan, serve, verify
from tests.benchmarks.runs import run_benchmark
from transnormer_jax.errors import UserError
from transnormer_jax.ops import linear_attention
from transnormer_jax.ops.linear_attention import BACKENDS as REGISTRY

ROOT = Path(__file__).parents[2]


def test_the_truth_is_the_definition_document_by_document():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 400, 6))
    v = rng.normal(size=(400, 5))
    for log_decay, lengths in itertools.product((0.0, -0.01, -5.0), ([400], [130, 1, 269])):
        pieces = [
            definition(*(x[None, end - n : end, None] for x in (q, k, v)), np.array([log_decay]))[0, :, 0]
            for n, end in zip(lengths, np.cumsum(lengths), strict=True)
        ]
        out = attend(q, k, v, log_decay, lengths)
        np.testing.assert_allclose(out, np.concatenate(pieces), rtol=1e-10, atol=1e-10)


def test_the_true_gradients_are_those_of_the_output():
    rng = np.random.default_rng(0)
    q, k, v, d_out = (rng.normal(size=(300, size)) for size in (6, 6, 5, 5))
    lengths = [170, 130]

    def weighted_sum(**changed):
        return np.sum(attend(*({"q": q, "k": k, "v": v} | changed).values(), -0.02, lengths) * d_out)

    true = truth(q, k, v, d_out, -0.02, lengths)
    for name, operand in {"q": q, "k": k, "v": v}.items():
        # The output is linear in each of its three operands, so that a difference is exact.
        direction = rng.normal(size=operand.shape)
        difference = (weighted_sum(**{name: operand + direction}) - weighted_sum(**{name: operand - direction})) / 2
        np.testing.assert_allclose(np.sum(true[f"d{name}"] * direction), difference, rtol=1e-9)


def test_the_shapes_are_what_they_say():
    # A token-head of d features in bfloat16 takes 8 d bytes forward and 14 d backward.
    tokens = 8 * 32 * 8192
    assert SHAPES["wide"].least_bytes("forward") == tokens * 8 * 128
    assert SHAPES["wide"].least_bytes("forward_backward") == tokens * 22 * 128
    assert SHAPES["row_8k_float32"].least_bytes("forward") == 2 * SHAPES["row_8k"].least_bytes("forward")
    assert SHAPES["lrpe"].least_bytes("forward") == tokens * (2 * 128 + 2 * 64) * 2
    for name in ("packed", "tiny"):
        shape = SHAPES[name]
        assert sum(shape.lengths) == shape.num_tokens
        assert len(set(shape.lengths)) == shape.documents
        assert all(length % 64 for length in shape.lengths)
        assert np.bincount(shape.segment_ids[-1])[1:].tolist() == shape.lengths
    assert all(shape.log_decay[0] == 0 and (np.diff(shape.log_decay) < 0).all() for shape in SHAPES.values())


def _operands(shape: Shape, count: int, sets: int) -> list[list[jax.Array]]:
    rng = np.random.default_rng(0)
    size = (shape.batch, shape.num_tokens, shape.heads, shape.key_dim)
    return [[jnp.asarray(rng.normal(size=size), shape.dtype) for _ in range(count)] for _ in range(sets)]


@pytest.mark.slow
@pytest.mark.parametrize("computation", COMPUTATIONS)
def test_a_timed_program_is_one_call_after_another(computation):
    shape = Shape(2, 2, 40, 8, 8, "float32")
    sets = _operands(shape, 3 if computation == "forward" else 4, sets=2)
    state, log_decay = jnp.zeros((2, 2, 8, 8)), jnp.asarray(shape.log_decay)
    results, last = jax.jit(chain("chunked", computation, 3))(sets, state, log_decay, None)
    assert len(results) == 3
    for operands, result in zip([sets[0], sets[1], sets[0]], results, strict=True):

        def forward(q, k, v, state):
            return linear_attention(q, k, v, log_decay, initial_state=state)

        (out, end), pull_back = jax.vjp(forward, *operands[:3], state)
        np.testing.assert_allclose(result["out"], out, rtol=1e-4, atol=1e-4)
        if computation == "forward":
            state = end
        else:
            *gradients, state = pull_back((operands[3], jnp.zeros_like(end)))
            for name, gradient in zip(("dq", "dk", "dv"), gradients, strict=True):
                np.testing.assert_allclose(result[name], gradient, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(last, state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("speed", [3e9, 3e12])
@pytest.mark.parametrize("computation", COMPUTATIONS)
def test_operands_are_forgotten_before_their_next_use(computation, speed):
    for name in MEASURED:
        shape = SHAPES[name]
        calls, sets = plan({"copy_bytes_per_second": speed}, shape, computation, max_calls=32)
        assert 1 <= sets <= calls <= 32
        if speed == 3e12:
            read = 3 if computation == "forward" else 4
            operands = sets * read * shape.batch * shape.num_tokens * shape.heads * min(shape.key_dim, shape.value_dim)
            assert operands * 2 > 100e6, name


def _verify(shape: Shape, operands, results):
    return verify({"tolerance": TOLERANCE}, shape, operands, results, lambda x, row, head: np.asarray(x[row, :, head]))


@pytest.mark.slow
def test_wrong_results_are_not_timed():
    shape = Shape(2, 3, 40, 8, 8, "float32")
    (operands,) = _operands(shape, 3, sets=1)
    out, _ = linear_attention(*operands, shape.log_decay)
    assert _verify(shape, operands, {"out": out})["out"] < 1e-6
    with pytest.raises(Skip, match=r"wrong, by relative RMS errors of .* in out"):
        _verify(shape, operands, {"out": 1.001 * out})
    with pytest.raises(Skip, match="wrong, by relative RMS errors of nan in out"):
        _verify(shape, operands, {"out": out.at[1, 7, 2].set(jnp.nan)})
    with pytest.raises(Skip, match="wrong, out is not finite everywhere"):
        _verify(shape, operands, {"out": out.at[0, 7, 1].set(jnp.inf)})


def test_a_worker_ends_at_a_failure_and_goes_on_after_a_skip(monkeypatch, capsys):
    rows = [["triton", name, "forward"] for name in ("tiny", "wide", "lrpe", "packed")]
    monkeypatch.setattr(sys, "argv", ["worker", json.dumps({"rows": rows})])

    def measure_row(task, contender, shape, computation):
        if shape is SHAPES["tiny"]:
            raise Skip("it is too small")
        if shape is SHAPES["lrpe"]:
            raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS\nand much detail")
        return {"median_ms": 1.0}

    with pytest.raises(SystemExit) as end:
        serve(measure_row)
    assert end.value.code == 1
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"skipped": "it is too small"},
        {"median_ms": 1.0},
        {"skipped": "RuntimeError: CUDA_ERROR_ILLEGAL_ADDRESS"},
    ]


def test_rows_left_by_a_process_go_to_another(monkeypatch):
    """A worker that dies is a result, one that ends early is started again, and the time runs out."""
    started = []

    def worker_results(rows, task, end):
        started.append([row["shape"] for row in rows])
        for shape in started[-1]:
            if shape == "row_2k":
                time.sleep(max(end - time.monotonic(), 0))
                return
            yield {"skipped": "its process ended"} if shape == "lrpe" else {"median_ms": 1.0}
            if shape == "lrpe":
                return

    monkeypatch.setattr(gpu, "worker_results", worker_results)
    names = ("wide", "lrpe", "packed", "row_2k", "row_8k")
    settings = Settings(("triton",), names)
    rows = list(gpu._measure_all(settings, {"copy_bytes_per_second": 1e12}, "gpu", time.monotonic() + 0.4))
    found = {row["shape"]: row.get("skipped", "timed") for row in rows if row["computation"] == "forward_backward"}
    assert found == {
        "wide": "timed",
        "lrpe": "its process ended",
        "packed": "timed",
        "row_2k": "the time ran out",
        "row_8k": "the time ran out",
    }
    assert [row["shape"] for row in rows] == [name for name in names for _ in COMPUTATIONS]
    assert len(started) == 3  # once more after each of two deaths


@pytest.mark.slow
def test_a_worker_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nothing")
    task = {"seconds": 0.01, "copy_bytes": (1 << 10, 1 << 10), "peers": []}
    [result] = gpu.worker_results([], task, time.monotonic() + 60)
    assert result["skipped"].startswith("its process ended: RuntimeError: Unable to initialize backend 'nothing'")


def test_a_process_is_stopped_in_time():
    row = {"contender": "chunked", "shape": "wide", "computation": "forward"}
    assert list(gpu.worker_results([row], {"peers": []}, time.monotonic() + 0.2)) == []


@pytest.mark.slow
def test_the_whole_on_a_cpu(tmp_path, capsys):
    contenders, shapes = ("fla_simple_gla", "chunked", "auto"), ("wide", "tiny")
    settings = Settings(contenders, shapes, seconds=0.01)
    summary, record = run_benchmark(gpu, settings, tmp_path / "results" / "gpu.json", plot=False)
    assert record["copy_gigabytes_per_second"] > 0
    rows = {(row["contender"], row["shape"], row["computation"]): row for row in record["rows"]}
    assert rows.keys() == set(itertools.product(contenders, shapes, COMPUTATIONS))
    for (contender, shape, computation), row in rows.items():
        if shape == "wide":
            assert row["skipped"] == "jax finds no GPU, it runs on cpu"
        elif contender == "chunked":
            assert row["median_ms"] >= row["min_ms"]
            assert row["floor_ms"] > 0
            assert 1 <= row["sets"] <= row["calls"]
            names = ["out"] if computation == "forward" else ["dk", "dq", "dv", "out"]
            assert sorted(row["relative_rms_error"]) == names
            assert max(row["relative_rms_error"].values()) <= 5e-3
        elif contender == "auto":
            assert row["skipped"] == "it takes chunked"
        else:
            assert row["skipped"]
    assert summary == {"measured": 2, "skipped": 10}
    assert "'skipped': 'jax finds no GPU" in capsys.readouterr().out


def _row(contender, shape, computation, median_ms):
    result = {"skipped": "no"} if median_ms is None else {"median_ms": median_ms}
    return {"contender": contender, "shape": shape, "computation": computation, "floor_ms": 0.5, **result}


def test_the_best_backend_is_set_beside_the_best_peer():
    rows = [
        _row("pallas_gpu", "wide", "forward", 0.7),
        _row("triton", "wide", "forward", 0.8),
        _row("fla_simple_gla", "wide", "forward", 2.1),
        _row("pallas_gpu", "wide", "forward_backward", 2.5),
        _row("lightning_attn", "wide", "forward_backward", 2.4),
        _row("triton", "row_8k", "forward", 0.08),
        _row("fla_simple_gla", "row_8k", "forward", None),
    ]
    first, second, third = compare(rows)
    assert (first["backend"], first["backend_ms"], first["peer_ms"], first["loses"]) == ("pallas_gpu", 0.7, 2.1, False)
    assert (second["peer"], second["loses"]) == ("lightning_attn", True)
    assert third.items() >= {"backend": "triton", "backend_ms": 0.08}.items()
    assert "peer" not in third


def test_the_contenders_are_known_to_the_library():
    assert set(CONTENDERS) - set(PEERS) - {"auto"} <= REGISTRY.keys()
    assert set(PEERS) <= set(CONTENDERS)
    assert relative_rms(np.full(4, 1.1), np.ones(4)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contenders": ("trition",)}, "unknown name 'trition' in contenders: did you mean 'triton'"),
        ({"shapes": ("wild",)}, "unknown name 'wild' in shapes: did you mean 'wide'"),
        ({"shapes": ()}, "shapes is empty: give one"),
        ({"peers": ("/nowhere",)}, "no directory '/nowhere'"),
        ({"seconds": 0.0}, "seconds is 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Settings(**settings)


_PYTHON = """#!/bin/bash
# A stand-in for Python that says what it was asked, and fails at the tests and where it cannot tell the platform.
case "$*" in
  *describe_environment*) [[ -n "FOUND" ]] && echo ' "platform": "FOUND",' ;;
  "-m pytest"*) echo "on $TRANSNORMER_TEST_PLATFORM, preallocate=$XLA_PYTHON_CLIENT_PREALLOCATE"; exit 1 ;;
  *) echo "asked for $*" ;;
esac
"""


def _run_script(name: str, tmp_path: Path, platform: str, *, nvidia: bool = False) -> tuple[int, list[str], str]:
    """Exit status, the last words, and the log of a script whose Python is a stand-in."""
    programs = {"python": _PYTHON.replace("FOUND", platform), "nvidia-smi": f"#!/bin/sh\nexit {int(not nvidia)}\n"}
    for program, text in programs.items():
        (tmp_path / program).write_text(text)
        (tmp_path / program).chmod(0o755)
    given = {"PYTHON": str(tmp_path / "python"), "PEERS": "the peers", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", f"benchmarks/{name}", str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["log"]
    return result.returncode, result.stdout.rpartition("\n\n")[2].splitlines(), (tmp_path / "out" / "log").read_text()


def test_the_script_goes_on_after_a_failure_and_tells(tmp_path):
    status, (environment, tests, benchmark, attention), log = _run_script("gpu_all.sh", tmp_path, "gpu")
    assert status == 1
    assert environment.startswith("environment: finished")
    assert re.fullmatch(r"tests: FAILED after \d+ s \(status 1\)", tests)
    assert benchmark.startswith("gpu: finished")
    assert attention.startswith("attention: finished")
    assert "on cuda, preallocate=false\n" in log
    assert "asked for -m benchmarks.gpu --limit_seconds=270" in log
    assert "--peers=the peers" in log


def test_the_script_skips_what_needs_a_gpu(tmp_path):
    status, words, log = _run_script("gpu_all.sh", tmp_path, "cpu")
    assert status == 1
    assert words[-1] == "attention: skipped, its sizes are for a GPU, and jax runs on cpu"
    assert "--shapes=row_8k,tiny" in log


@pytest.mark.parametrize(("platform", "found", "attention"), [("", "nothing", "finished"), ("cpu", "cpu", "skipped")])
def test_a_gpu_that_jax_does_not_find_is_told(tmp_path, platform, found, attention):
    status, words, _ = _run_script("gpu_all.sh", tmp_path, platform, nvidia=True)
    assert status == 1
    assert words[1] == f"environment: there is a GPU, and jax runs on {found}: mend jax, or name another PYTHON"
    assert words[-1].startswith(f"attention: {attention}")


def test_the_papers_tables_are_made(tmp_path):
    status, words, log = _run_script("gpu_papers.sh", tmp_path, "gpu")
    assert status == 0
    assert [line.partition(":")[0] for line in words] == ["images_per_second", "linformer_speed"]
    assert log.count("asked for -m benchmarks.") == 2


@pytest.mark.parametrize("script", ["gpu_all.sh", "gpu_papers.sh"])
def test_the_scripts_stay_under_ten_minutes(script):
    text = (ROOT / "benchmarks" / script).read_text()
    # The last of the same name: one of two branches runs.
    limits = {name: int(limit) for name, limit in re.findall(r"(?:part|table) (\w+) (\d+) ", text)}
    assert len(limits) >= 2
    assert sum(limits.values()) + 5 * len(limits) < 600
    for name, own in re.findall(r"part (\w+) .*--limit_seconds=(\d+)", text):
        assert int(own) + 30 <= limits[name]
