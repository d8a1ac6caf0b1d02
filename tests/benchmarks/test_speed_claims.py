"""The commands for the papers' claims of speed, at tiny sizes: what they measure and write."""

import pytest

from benchmarks import linformer_speed, steps_per_second
from benchmarks.measure import Measurement
from tests.benchmarks.records import record_of


def test_steps_per_second_are_set_beside_softmax(tmp_path, capsys):
    output = tmp_path / "steps.json"
    settings = steps_per_second.Settings(
        attentions=("softmax", "linear"), num_tokens=(64,), preset="tiny", seconds=1e-3
    )
    summary = steps_per_second.run(settings, output, "the command")
    rows = {(row["attention"], row["computation"]): row for row in record_of(output)["rows"]}
    assert len(rows) == 4
    for computation in steps_per_second.COMPUTATIONS:
        ours, softmax = rows["linear", computation], rows["softmax", computation]
        assert ours["steps_per_second"] == pytest.approx(1e3 / ours["median_ms"])
        ratio = ours["steps_per_second"] / softmax["steps_per_second"]
        assert ours["over_softmax"] == pytest.approx(ratio)
        assert summary[computation] == {"linear over softmax at 64": round(ratio, 2)}
    assert capsys.readouterr().out.count("skipped") == 0


def test_the_linformer_is_set_beside_softmax_and_the_paper(tmp_path, capsys):
    output = tmp_path / "linformer.json"
    settings = linformer_speed.Settings(num_tokens=(256,), projected=(64, 256), preset="tiny", seconds=1e-3)
    summary = linformer_speed.run(settings, output, "the command")
    softmax, linformer = record_of(output)["rows"]  # k = 256 is more than half of n
    assert (softmax["projected"], linformer["projected"]) == (0, 64)
    assert linformer["speed"] == pytest.approx(softmax["median_ms"] / linformer["median_ms"])
    assert linformer["memory"] == pytest.approx(softmax["compiler_temp_bytes"] / linformer["compiler_temp_bytes"])
    assert linformer["memory"] > 1  # the N x N matrix, which one has and the other has not
    assert summary["memory"] == {"n = 256, k = 64": round(linformer["memory"], 2)}

    row = linformer_speed.Row(1024, 512, Measurement(skipped="no room"))
    assert str(row).split() == ["1024", "k", "=", "512", "1.30", "1.80", "skipped:", "no", "room"]
