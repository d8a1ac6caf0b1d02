"""What every kernel is held to on a CPU, where it is emulated."""

from typing import Any

import jax.numpy as jnp

from tests.ops.definition import Case, define, define_gradients, make_inputs, relative_rms
from tests.ops.test_linear_attention import apply, gradients
from transnormer_jax.ops import interpret_kernels


def assert_equals_definition(backend: str, case: Case, dtype: Any, bound: float, mode: Any = True) -> None:
    """Outputs, final state and all gradients have a relative RMS error of at most `bound` against float64."""
    inputs = make_inputs(case, dtype)
    with interpret_kernels(mode):
        out, state = apply(inputs, backend)
        actual = gradients(inputs, backend)
    expected_out, expected_state = define(inputs)
    assert out.dtype == dtype
    assert state.dtype == jnp.float32
    assert relative_rms(out, expected_out) <= bound
    assert relative_rms(state, expected_state) <= bound
    for name, expected in define_gradients(inputs).items():
        assert relative_rms(actual[name], expected) <= bound, name
