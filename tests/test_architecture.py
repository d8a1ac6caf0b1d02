"""The rooms and the direction of imports, as docs/architecture.md draws them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_imports_point_one_way():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_operators_know_neither_flax_nor_optax():
    for path in (ROOT / "transnormer_jax" / "ops").rglob("*.py"):
        for line in path.read_text().splitlines():
            assert not line.startswith(("import flax", "from flax", "import optax", "from optax")), path


def test_every_room_is_drawn():
    drawing = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "transnormer_jax").iterdir():
        if path.name not in ("__init__.py", "__pycache__", "py.typed"):
            assert f"  {path.name}" in drawing, path.name
