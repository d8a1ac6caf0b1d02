"""Reference data beside the checkout, where there is any: tests that use it skip without it."""

from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_file(name: str) -> Path:
    """The path of a file in ../shared, or a skip that says which is missing."""
    path = _SHARED / name
    if not path.exists():
        pytest.skip(f"needs ../shared/{name}, which is not here")
    return path
