"""The examples of docs/extending.md, each as a file outside the package: they train, are evaluated and decoded."""

import json
import re

import httpx
import jax
import numpy as np
import pytest

from tests.commands import ROOT, assert_fails, run
from tests.serve.server import served
from transnormer_jax.data import DATASETS
from transnormer_jax.errors import UserError
from transnormer_jax.models import ARCHITECTURES, MIXERS, TransNormer
from transnormer_jax.registry import Registry, load_plugin
from transnormer_jax.run_flags import load_generator
from transnormer_jax.tasks import TASKS
from transnormer_jax.training import Config, default_config, evaluate_run, load_workdir, train

pytestmark = pytest.mark.usefixtures("on_one_device")

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), flags=re.DOTALL)
FILES = {match[1]: block for block in BLOCKS if (match := re.match(r"# (\w+\.py)\n", block))}


@pytest.fixture
def plugin(tmp_path):
    """Writes an example beside the run and returns its path; what it registers is gone after the test."""
    registries = [(registry, set(registry)) for registry in (ARCHITECTURES, MIXERS, TASKS, DATASETS)]

    def write(name: str) -> str:
        (tmp_path / name).write_text(FILES[name])
        return str(tmp_path / name)

    yield write
    for registry, names in registries:
        for name in set(registry) - names:
            del registry[name]


def small(tmp_path, architecture="transnormer", attention="norm_t2"):
    config = default_config(architecture, preset="tiny", attention=attention, num_layers=1)
    (tmp_path / "text.txt").write_text("".join(f"line {i} says {i * i}\n" for i in range(300)))
    config.data.dataset, config.data.documents, config.data.held_out = "plain_text", "line", 0.1
    config.data.files, config.data.data_dir = str(tmp_path / "text.txt"), str(tmp_path / "datasets")
    config.num_steps, config.batch_size, config.sequence_length = 4, 8, 32
    config.log_every = config.checkpoint_every = 2
    config.optimizer.warmup_steps = 1
    config.evaluation.every, config.evaluation.batch_size = 0, 8
    return config


def frozen(config) -> Config:
    return Config.from_dict(config.to_dict())


def test_every_example_is_short():
    assert len(FILES) == 5
    assert max(block.count("\n") for block in BLOCKS) <= 40


@pytest.mark.slow
def test_blocks_that_are_no_files_run():
    for block in BLOCKS:
        if block not in FILES.values():
            exec(block, {})


@pytest.mark.slow
def test_a_mixer(tmp_path, plugin):
    config = small(tmp_path)
    config.plugins, config.model.attention = (plugin("retention.py"),), "retention"
    trained = train(frozen(config), tmp_path / "run")

    loaded = load_workdir(tmp_path / "run")
    model, variables = TransNormer(loaded.model_config), {"params": loaded.params}
    tokens = jax.random.randint(jax.random.key(0), (2, 12), 3, 259)
    expected = jax.jit(model.apply)(variables, tokens)
    step = jax.jit(lambda tokens, cache: model.apply(variables, tokens, cache=cache))
    logits, cache = step(tokens[:, :8], model.init_cache(2))
    np.testing.assert_allclose(logits, expected[:, :8], atol=1e-4)
    for i in range(8, 12):
        logits, cache = step(tokens[:, i : i + 1], cache)
        np.testing.assert_allclose(logits[:, 0], expected[:, i], atol=1e-4)

    [text] = load_generator(tmp_path / "run").generate(["line 7"], max_new_tokens=8)
    with served(loaded.params, config=loaded.model_config) as (url, _):
        body = {"prompt": "line 7", "max_tokens": 8, "temperature": 0}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"] == text

    # A process of its own finds the file through the run's configuration.
    status, _, errors = run("eval.py", f"--workdir={tmp_path / 'run'}")
    assert status == 0, errors
    evaluated = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert evaluated["loss"] == pytest.approx(trained["loss"], rel=1e-6)
    (tmp_path / "retention.py").unlink()
    assert_fails(run("eval.py", f"--workdir={tmp_path / 'run'}"), "config.plugins: there is no file", "retention.py")


@pytest.mark.slow
def test_a_mixer_with_options_of_its_own(tmp_path, plugin):
    file = plugin("convolution.py")
    load_plugin(file)
    config = small(tmp_path, "convolution", "convolution")
    config.plugins, config.model.convolution_width = (file,), 3
    trained = train(frozen(config), tmp_path / "run")
    assert evaluate_run(tmp_path / "run")["loss"] == pytest.approx(trained["loss"], rel=1e-6)

    loaded = load_workdir(tmp_path / "run")
    model = TransNormer(loaded.model_config)
    assert model.config.convolution_width == 3
    with pytest.raises(UserError, match="attention 'convolution' has no recurrent form"):
        model.init_cache(1)
    # Two documents in one row are what each is alone.
    tokens = jax.random.randint(jax.random.key(0), (1, 12), 3, 259)
    apply = jax.jit(model.apply)
    both = apply({"params": loaded.params}, tokens, segment_ids=np.repeat([[1, 2]], 6, axis=1))
    alone = apply({"params": loaded.params}, tokens.reshape(2, 6))
    np.testing.assert_allclose(both[0], alone.reshape(12, -1), atol=1e-5)
    config.model.convolution_width = "3"
    with pytest.raises(UserError, match="convolution_width='3' must be a whole number"):
        frozen(config)


@pytest.mark.slow
def test_a_task_and_a_metric(tmp_path, plugin):
    config = small(tmp_path)
    config.plugins, config.task.name = (plugin("parity.py"),), "parity"
    result = train(frozen(config), tmp_path / "run")
    assert 0 < result["error_rate"] == pytest.approx(1 - result["accuracy"])
    assert evaluate_run(tmp_path / "run")["error_rate"] == pytest.approx(result["error_rate"])


@pytest.mark.slow
def test_a_dataset(tmp_path, plugin):
    config = small(tmp_path)
    config.plugins, config.data.dataset, config.data.files = (plugin("squares.py"),), "squares", ""
    assert train(frozen(config), tmp_path / "run")["tokens"] > 1000


@pytest.mark.slow
def test_an_evaluation_and_a_callback(tmp_path, capsys):
    example = {}
    exec(FILES["evaluation.py"], example)
    example["run"](frozen(small(tmp_path)), tmp_path / "run")
    params = load_workdir(tmp_path / "run").params
    norm = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(params)))
    lines = re.findall(r"^(\d+) ([\d.]*)$", capsys.readouterr().out, flags=re.MULTILINE)
    assert [(step, bool(value)) for step, value in lines] == [("2", False), ("4", False), ("4", True)]
    assert float(lines[-1][1]) == pytest.approx(norm, rel=1e-5)


def test_a_name_has_one_owner():
    registry = Registry("thing")
    mine, other = type("Mine", (), {"__module__": "a"}), type("Other", (), {"__module__": "b"})
    registry["x"] = mine
    registry["x"] = mine  # a cell of a notebook is run again
    with pytest.raises(UserError, match="thing 'x' is registered by a and by b: rename one"):
        registry["x"] = other
    with pytest.raises(UserError, match="unknown thing 'y': choose one of: x"):
        registry["y"]
    with pytest.raises(UserError, match="cannot import 'no_such_module'"):
        load_plugin("no_such_module")


def test_the_core_names_nothing_of_papers():
    for path in (ROOT / "transnormer_jax").rglob("*.py"):
        if "papers" not in path.parts and path.name not in ("registry.py", "__main__.py"):
            assert not re.search(r"transnormer_jax[./]papers", path.read_text()), path
