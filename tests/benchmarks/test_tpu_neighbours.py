"""What XLA makes of the operator's neighbours: little enough traffic that a kernel of ours would not pay."""

import json

import pytest

from benchmarks.tpu_compiler import find_libtpu
from benchmarks.tpu_neighbours import run
from transnormer_jax.errors import UserError


def test_neighbours_need_no_kernel(tmp_path):
    try:
        find_libtpu()
    except UserError as error:
        pytest.skip(str(error))
    output = tmp_path / "neighbours.json"
    summary = run(["v5e"], output)
    assert 1 <= summary["decode_step"]["v5e"] < 1.2  # the states are read and written once
    assert 1 <= summary["norm_gate_projection"]["v5e"] < 1.5  # one array twice
    rows = json.loads(output.read_text())["rows"]
    assert [row["neighbour"] for row in rows] == ["decode_step", "norm_gate_projection"]
