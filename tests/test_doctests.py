"""The examples in docstrings are true."""

import doctest
import importlib

import pytest

MODULES = [
    "transnormer_jax.models.config",
    "transnormer_jax.models.transnormer_llm",
    "transnormer_jax.ops.linear_attention.api",
    "transnormer_jax.training.progress",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
