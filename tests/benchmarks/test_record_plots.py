"""Every committed record has a plot beside it, and those that no benchmark draws come from the JSON alone."""

import json

import pytest

from benchmarks import record_plots

_RECORDS = sorted(record_plots.RECORDS.glob("*/*.json"))


@pytest.mark.parametrize("record", _RECORDS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_record_has_a_plot(record):
    assert record.with_suffix(".png").is_file(), f"python -m benchmarks.record_plots has to draw {record.name}"


@pytest.mark.parametrize("name", record_plots.PLOTS)
def test_the_plots_are_drawn(name, tmp_path):
    figure = record_plots.PLOTS[name](json.loads((record_plots.RECORDS / f"{name}.json").read_text()))
    figure.savefig(tmp_path / "plot.png", dpi=10)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
