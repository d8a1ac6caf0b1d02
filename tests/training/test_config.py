"""What does not fit together is refused when the configuration is made, or when the mesh is known."""

import math

import pytest

from tests.commands import assert_fails, run
from transnormer_jax.data import DataConfig
from transnormer_jax.distributed import MeshConfig, make_mesh
from transnormer_jax.errors import UserError
from transnormer_jax.training.config import Config, TaskConfig, default_config
from transnormer_jax.training.placement import check_mesh


def test_a_mixture_is_for_text():
    with pytest.raises(UserError, match="mixture is for language models on text, not for task 'supervised_lm'"):
        Config(data=DataConfig(mixture={"a": 1.0}), task=TaskConfig("supervised_lm"))


def test_rows_of_a_curriculum_lie_on_the_mesh_that_was_found():
    config = Config(mesh=MeshConfig(fsdp=1, context=-1), sequence_length=64, curriculum=((4, 4),), batch_size=1)
    with pytest.raises(UserError, match=r"up to step 4 = 4 must be a multiple of config.mesh.context = 8"):
        check_mesh(config, make_mesh(config.mesh))


@pytest.mark.slow
def test_the_config_flag_has_both_forms_and_a_file_must_be_one(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    mistake = run("train.py", "--config", "mnist_images", workdir, "--config.model.attentoin=softmax")
    assert_fails(mistake, "config.model.attentoin", "config.model.attention")
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert_fails(run("train.py", f"--config={tmp_path / 'empty.py'}", workdir), "no function get_config()")


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("optimizer.learning_rate", [-1e-3, math.inf, math.nan], "at least 0"),
        ("optimizer.clip_norm", [-1, math.nan], "at least 0"),
        ("optimizer.b1", [-0.1, 1.0], "at least 0 and less than 1"),
        ("optimizer.b2", [1.0, 2], "at least 0 and less than 1"),
        ("optimizer.eps", [0, -1e-8], "greater than 0"),
        ("optimizer.weight_decay", [-0.1], "at least 0"),
        ("optimizer.warmup_steps", [-1], "at least 0"),
        ("optimizer.final_fraction", [-0.1, 1.1], "at least 0 and at most 1"),
        ("optimizer.decay_fraction", [0, 1.5], "greater than 0 and at most 1"),
        ("evaluation.every", [-1], "at least 0"),
        ("evaluation.max_tokens", [-1], "at least 0"),
        ("evaluation.window", [0], "at least 1"),
        ("seed", [-1], "at least 0"),
        ("profile_at", [-1], "at least 0"),
        ("profiler_port", [-1, 65536], "from 0 to 65535"),
        ("watchdog_seconds", [-1], "at least 0"),
        ("checkpoint_minutes", [-1, math.inf], "at least 0"),
        ("keep_checkpoints", [0], "at least 1"),
        ("data.held_out", [-0.1, 0.5, math.nan], "at least 0 and less than 0.5"),
        ("data.read_ahead", [0], "at least 1"),
        ("model.init_std", [-0.1, math.nan], "at least 0"),
    ],
)
def test_a_number_without_meaning_is_refused(key, values, words):
    for value in values:
        with pytest.raises(UserError, match=rf"{key.removeprefix('model.')}=.* must be {words}"):
            changed(key, value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_steps", 1.5, "a whole number"),
        ("num_steps", "many", "a whole number"),
        ("num_steps", None, "a whole number"),
        ("num_steps", math.inf, "a whole number"),
        ("num_steps", True, "a whole number"),
        ("optimizer.learning_rate", "high", "a number"),
        ("model.use_bias", 1, "True or False"),
        ("data.files", ["a.txt"], "a text in quotes"),
        ("data.mixture", ["a"], "a dictionary"),
        ("optimizer", 3, "a section of keys"),
        ("model.lrpe_layers", "0", "a list"),
        ("curriculum", ((100, 64, 1),), "2 values"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_key(key, value, words):
    with pytest.raises(UserError, match=rf"config\.{key}.* must be {words}"):
        changed(key, value)


def test_a_whole_number_may_be_written_as_a_float():
    config = changed("num_steps", 1e2)
    assert config.num_steps == 100
    assert isinstance(config.num_steps, int)
    assert isinstance(changed("optimizer.learning_rate", 1).optimizer.learning_rate, float)
    assert changed("curriculum", [[1e2, 256], [200, 512]]).curriculum == ((100, 256), (200, 512))


def test_checkpoints_come_by_steps_or_by_time():
    with pytest.raises(UserError, match="both 0: set one of them"):
        Config(checkpoint_every=0, checkpoint_minutes=0)
    assert Config(checkpoint_every=0).checkpoint_minutes > 0


def test_a_file_with_a_wrong_type_is_one_sentence(tmp_path):
    file = tmp_path / "config.py"
    text = "from transnormer_jax.training import default_config\n\n\ndef get_config():\n    c = default_config()\n"
    file.write_text(f"{text}    c.num_steps = 'many'\n    return c\n")
    mistake = run("train.py", f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert_fails(mistake, "config.num_steps='many' must be a whole number")


def changed(key: str, value) -> Config:
    """The default configuration with another value of one key, as a file in configs/ would set it."""
    config = section = default_config()
    *path, name = key.split(".")
    for part in path:
        section = section[part]
    section[name] = value
    return Config.from_dict(config.to_dict())
