"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLOW = ("transnormer_jax.models.language_model", "transnormer_jax.ops.linear_attention.api")
MODULES = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for path in sorted((ROOT / "transnormer_jax").rglob("*.py"))
    if ">>> " in path.read_text()
    for name in [".".join(path.relative_to(ROOT).with_suffix("").parts)]
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
