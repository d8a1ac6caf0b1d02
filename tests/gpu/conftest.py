"""The tests of this directory need a GPU. Elsewhere each is skipped and says so, unless a GPU was asked for."""

import os

import jax
import pytest


@pytest.fixture(autouse=True)
def _on_a_gpu():
    if jax.default_backend() != "gpu":
        reason = f"needs a GPU, and jax runs on {jax.default_backend()}"
        if os.environ.get("TRANSNORMER_TEST_PLATFORM") == "cuda":
            pytest.fail(reason)
        pytest.skip(f"{reason}; where there is one, set TRANSNORMER_TEST_PLATFORM=cuda")
