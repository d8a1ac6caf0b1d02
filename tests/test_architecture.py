"""The subpackages and the direction of imports, as docs/architecture.md draws them."""

import re
import subprocess
import sys
from pathlib import Path

import jax

from tests.training.small_config import small_config, write_counting
from transnormer_jax.distributed import make_mesh
from transnormer_jax.training.batches import batches_on_mesh
from transnormer_jax.training.config import Config
from transnormer_jax.training.optimizer import make_optimizer, make_schedule
from transnormer_jax.training.placement import place_state
from transnormer_jax.training.setup import load_setup
from transnormer_jax.training.step import make_train_step

ROOT = Path(__file__).resolve().parents[1]


def test_imports_point_one_way():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_operators_know_neither_flax_nor_optax():
    for path in (ROOT / "transnormer_jax" / "ops").rglob("*.py"):
        for line in path.read_text().splitlines():
            assert not line.startswith(("import flax", "from flax", "import optax", "from optax")), path


def test_every_question_has_a_file_of_an_evening():
    _, _, section = (ROOT / "docs" / "architecture.md").read_text().partition("## Where is ...?")
    table, _, _ = section.partition("\n## ")
    questions = [line for line in table.splitlines() if "](../" in line]
    assert len(questions) >= 12
    for line in questions:
        for file in re.findall(r"\]\(\.\./([^)]+)\)", line):
            assert len((ROOT / file).read_text().splitlines()) < 350, file


def test_every_subpackage_is_drawn():
    drawing = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "transnormer_jax").iterdir():
        if path.name not in ("__init__.py", "__pycache__", "py.typed"):
            assert re.search(rf"  {re.escape(path.name)}\b", drawing), path.name


def test_a_step_passes_through_the_subpackages_in_order(tmp_path):
    values = small_config(tmp_path)
    values.data.files = write_counting(tmp_path)
    config = Config.from_dict(values.to_dict())
    mesh = make_mesh(config.mesh)
    setup = load_setup(config, mesh)
    batches = batches_on_mesh(setup.training.rows, config.batch_size, 0, mesh)
    reading = subpackages_entered(lambda: next(batches))
    assert {"data", "distributed"} <= set(reading)

    schedule = make_schedule(config.optimizer, config.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    step = make_train_step(setup.task, optimizer, schedule, accumulation_steps=1)
    state = place_state(setup.task, optimizer, mesh)
    with jax.set_mesh(mesh):
        entered = subpackages_entered(lambda: jax.eval_shape(step, state, next(batches)))
    way = ["training", "tasks", "models", "layers", "ops"]
    assert [name for name in entered if name in way[:-1]] == way[:-1]
    assert "ops" in entered  # by models for positions, before layers call it for everything else
    drawing = (ROOT / "docs" / "architecture.md").read_text()
    assert re.findall(r"^\d\. `(\w+)`:", drawing, flags=re.MULTILINE) == ["data", "distributed", *way]


def subpackages_entered(function) -> list[str]:
    """The subpackages whose functions run inside a call, in the order of their first."""
    entered = dict[str, None]()
    package = str(ROOT / "transnormer_jax")

    def enter(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(package):
            entered.setdefault(Path(frame.f_code.co_filename).relative_to(package).parts[0])

    sys.setprofile(enter)
    try:
        function()
    finally:
        sys.setprofile(None)
    return list(entered)
