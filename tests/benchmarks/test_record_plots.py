"""Every committed record has a plot beside it, and those that no benchmark draws come from the JSON alone."""

import pytest

from benchmarks import record_plots

_RECORDS = sorted(path for platform in ("cpu", "tpu") for path in (record_plots.RECORDS / platform).glob("*.json"))


@pytest.mark.parametrize("record", _RECORDS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_record_has_a_plot(record):
    assert record.with_suffix(".png").is_file(), f"python -m benchmarks.record_plots has to draw {record.name}"


def test_the_plots_are_drawn(tmp_path):
    written = record_plots.draw(tmp_path)
    assert written == [tmp_path / f"{name}.png" for name in record_plots.PLOTS]
    assert len(written) == 9
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
