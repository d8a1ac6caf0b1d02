"""Every command has a page and a --help, and a mistake in a command line is one sentence."""

import pytest

from tests.commands import ROOT, assert_fails, run
from tests.training.small_config import small_config
from transnormer_jax.__main__ import COMMANDS
from transnormer_jax.training.config import Config
from transnormer_jax.training.workdir import write_config

PAGES = ROOT / "docs" / "commands"


def test_every_command_has_a_page():
    assert {path.stem for path in PAGES.glob("*.md")} == COMMANDS.keys() | {"index"}
    index = (PAGES / "index.md").read_text()
    assert [name for name in COMMANDS if f"[`{name}`]({name}.md)" not in index] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_lists_its_flags(name):
    status, out, err = run("-m", "transnormer_jax", name, "--help")
    assert status == 0, err
    assert "\nFlags:\n" in out


# Those of which no other test speaks.
MISTAKES = {
    "compile --config=tnl_7b --topology=v5p:4x4x4 --step=serve": "value should be one of <",
    "convert --workdir=WORKDIR": "give one of --from_hugging_face=DIR and --to_hugging_face=DIR",
    "eval WORKDIR": "--workdir=... is missing; --help lists the flags",
    "sample_images --workdir=WORKDIR": "holds a model of the task 'causal_lm': give a run of 'images'",
    "serve --workdir=WORKDIR --port=99999": "99999 is not an integer in the range [0, 65535]",
    "train --config=quickstar --workdir=WORKDIR": "there is no config file 'quickstar': did you mean 'quickstart'?",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_sentence(command, tmp_path):
    write_config(tmp_path, Config.from_dict(small_config(tmp_path).to_dict()))
    arguments = command.replace("WORKDIR", str(tmp_path)).split()
    assert_fails(run("-m", "transnormer_jax", *arguments), MISTAKES[command])
