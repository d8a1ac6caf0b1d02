"""The memory of conversion, with a tiny model."""

import json

import pytest

from benchmarks import convert_memory
from transnormer_jax.errors import UserError


def test_a_checkpoint_is_converted_and_comes_back(tmp_path):
    output = tmp_path / "memory.json"
    settings = convert_memory.Settings(
        preset="tiny", steps=("import", "export"), drawn_gigabytes=1e-4, scratch=str(tmp_path)
    )
    summary = convert_memory.run(settings, output, "the command")
    record = json.loads(output.read_text())
    assert [row["step"] for row in record["rows"]] == ["write", "import", "export"]
    assert summary["files_identical"]
    assert summary["within_limit"]
    assert summary["peak_gigabytes"] == round(max(row["peak_bytes"] for row in record["rows"][1:]) / 1e9, 2)
    assert record["drawn"].startswith("one layer")
    assert list(tmp_path.iterdir()) == [output]


def test_the_peak_of_a_process_is_its_own():
    before, _ = convert_memory.measure_peak("-c", "pass")
    after, _ = convert_memory.measure_peak("-c", f"x = bytearray({before} + 2 * 10**8)")
    assert after > before + 1.5e8
    with pytest.raises(UserError, match="ended with status 3: no room"):
        convert_memory.measure_peak("-c", "import sys; print('no room', file=sys.stderr); sys.exit(3)")


@pytest.mark.parametrize("steps", [("export", "import"), ("generate",), ("import", "import")])
def test_steps_have_an_order(steps):
    with pytest.raises(UserError, match="begin with import"):
        convert_memory.Settings(steps=steps)
