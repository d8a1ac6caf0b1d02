"""A run on a mixture: what it reads is logged, and every source is evaluated."""

import json

import pytest

from tests.commands import assert_fails, run
from tests.training.small_config import small_config
from transnormer_jax.distributed import MeshConfig, make_mesh
from transnormer_jax.training import Config, evaluate_run, train
from transnormer_jax.training.setup import load_setup

pytestmark = pytest.mark.usefixtures("on_one_device")

TEXTS = {
    "counting": "".join(f"{i} and {i + 1} are {2 * i + 1}\n" for i in range(400)),
    "words": "".join(f"the word {chr(97 + i % 26) * 5} has five letters\n" for i in range(400)),
}


@pytest.fixture
def config(tmp_path):
    config = small_config(tmp_path)
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.txt").write_text(text)
    config.data.mixture = {
        name: {
            "dataset": "plain_text",
            "files": str(tmp_path / f"{name}.txt"),
            "documents": "line",
            "held_out": 0.1,
            "weight": weight,
        }
        for name, weight in (("counting", 3), ("words", 1))
    }
    return config


@pytest.mark.slow
def test_a_run_logs_what_it_read_of_every_source(config, tmp_path):
    workdir = tmp_path / "run"
    result = train(Config.from_dict(config.to_dict()), workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    [last] = [line for line in lines if line["step"] == 40 and "loss" in line]
    tokens = 40 * 16 * 64
    assert last["data/counting/tokens"] == 0.75 * tokens
    assert last["data/words/tokens"] == 0.25 * tokens
    assert last["data/words/epochs"] == pytest.approx(
        0.25 * tokens / sum(map(len, TEXTS["words"].split("\n"))), rel=0.3
    )
    assert set(result) >= {"counting/loss", "counting/bits_per_byte", "words/loss", "words/bits_per_byte", "seconds"}
    assert result["words/loss"] < 2.5
    again = evaluate_run(workdir)
    assert again["words/loss"] == result["words/loss"]


def test_epochs_instead_of_weights(config):
    for name, epochs in (("counting", 1.0), ("words", 3.0)):
        del config.data.mixture[name]["weight"]
        config.data.mixture[name]["epochs"] = epochs
    setup = load_setup(Config.from_dict(config.to_dict()), make_mesh(MeshConfig()))
    read = setup.training.consumption(64)
    assert read["data/words/epochs"] == pytest.approx(3 * read["data/counting/epochs"], rel=0.05)


@pytest.mark.slow
def test_the_command_line_changes_a_weight_and_says_what_is_wrong(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from transnormer_jax.training.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.data.mixture = {'wikipedia': 0.5, 'python_source': 0.5}\n"
        f"    config.data.data_dir = {str(tmp_path)!r}\n"
        "    return config\n"
    )
    arguments = ("train.py", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert_fails(run(*arguments), "TFDS has no dataset 'wikipedia'")
    assert_fails(run(*arguments, "--config.data.mixture.wikipedia=0.0"), "source 'wikipedia'", "positive number")
