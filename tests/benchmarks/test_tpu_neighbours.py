"""What XLA makes of the operator and its neighbours: where a kernel of ours pays, and where it would not."""

import json

from benchmarks.tpu_neighbours import Settings, run


def test_the_operator_needs_a_kernel_and_its_neighbours_do_not(libtpu, tmp_path):
    output = tmp_path / "neighbours.json"
    programs = ("decode_step", "norm_gate_projection", "chunked_training_128")
    summary = run(Settings(("v5e",), programs), output, "the command")
    assert 1 <= summary["decode_step"]["v5e"] < 1.2  # the states are read and written once
    assert 1 <= summary["norm_gate_projection"]["v5e"] < 1.5  # one array twice
    # The operator itself is another matter: kernels move 1.1 times the least.
    assert summary["chunked_training_128"]["v5e"] > 2
    assert {row["program"] for row in json.loads(output.read_text())["rows"]} == summary.keys() - {"output"}
