"""The benchmark of the Linformer's speed, at a tiny size: what it measures and writes."""

import pytest

from benchmarks import linformer_speed
from tests.benchmarks.runs import run_benchmark


@pytest.mark.slow
def test_the_linformer_is_set_beside_softmax(tmp_path):
    settings = linformer_speed.Settings(num_tokens=(256,), projected=(64, 256), preset="tiny", seconds=1e-3)
    summary, record = run_benchmark(linformer_speed, settings, tmp_path / "linformer.json")
    softmax, linformer = record["rows"]  # k = 256 is more than half of n
    assert (softmax["projected"], linformer["projected"]) == (0, 64)
    assert linformer["speed"] == pytest.approx(softmax["median_ms"] / linformer["median_ms"])
    assert linformer["memory"] == pytest.approx(softmax["compiler_temp_bytes"] / linformer["compiler_temp_bytes"])
    assert linformer["memory"] > 1  # the N x N matrix, which one has and the other has not
    assert summary["memory"] == {"n = 256, k = 64": round(linformer["memory"], 2)}
