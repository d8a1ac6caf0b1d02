"""Each example of docs/frameworks.md runs, where its framework is installed."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "frameworks.md"
SECTIONS = re.findall(r"\n## (\w[\w ]*)\n.*?```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_every_framework_has_an_example():
    assert [name for name, _ in SECTIONS] == ["JAX", "Flax NNX", "Equinox", "PyTorch"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of other libraries
@pytest.mark.parametrize(("name", "code"), SECTIONS, ids=[name for name, _ in SECTIONS])
def test_an_example_runs(name, code):
    for module in ("equinox", "torch"):
        if re.search(rf"^import {module}\b", code, flags=re.MULTILINE):
            pytest.importorskip(module, reason=f"{module} is not installed")
    exec(code, {})
