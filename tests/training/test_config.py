"""What does not fit together is refused when the configuration is made, or when the mesh is known."""

import pytest

from tests.commands import assert_fails, run
from transnormer_jax.data import DataConfig
from transnormer_jax.distributed import MeshConfig, make_mesh
from transnormer_jax.errors import UserError
from transnormer_jax.training.config import Config, TaskConfig
from transnormer_jax.training.placement import check_mesh


def test_a_mixture_is_for_text():
    with pytest.raises(UserError, match="mixture is for language models on text, not for task 'supervised_lm'"):
        Config(data=DataConfig(mixture={"a": 1.0}), task=TaskConfig("supervised_lm"))


def test_rows_of_a_curriculum_lie_on_the_mesh_that_was_found():
    config = Config(mesh=MeshConfig(data=1, context=-1), sequence_length=64, curriculum=((4, 4),), batch_size=1)
    with pytest.raises(UserError, match=r"up to step 4 = 4 must be a multiple of config.mesh.context = 8"):
        check_mesh(config, make_mesh(config.mesh))


def test_the_config_flag_has_both_forms_and_a_file_must_be_one(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    mistake = run("train.py", "--config", "mnist_images", workdir, "--config.model.attentoin=softmax")
    assert_fails(mistake, "config.model.attentoin", "config.model.attention")
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert_fails(run("train.py", f"--config={tmp_path / 'empty.py'}", workdir), "no function get_config()")
