"""What every kernel is held to on a CPU, where it is emulated."""

from typing import Any

from tests.ops import test_linear_attention
from tests.ops.definition import Case, make_inputs
from transnormer_jax.ops import interpret_kernels


def assert_equals_definition(backend: str, case: Case, dtype: Any, bound: float, mode: Any = True) -> None:
    """Outputs, states and gradients have a relative RMS error of at most `bound` against float64, the decay 2e-5."""
    with interpret_kernels(mode):
        test_linear_attention.assert_equals_definition(
            make_inputs(case, dtype), backend, {"all": bound, "log_decay": max(bound, 2e-5)}
        )
