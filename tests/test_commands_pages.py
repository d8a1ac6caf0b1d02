"""The pages of docs/commands/ show what the commands print."""

import pytest

from docs import transcripts
from transnormer_jax.__main__ import COMMANDS

PAGES = {path.stem: path.read_text() for path in sorted(transcripts.PAGES.glob("*.md"))}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scratch")
    transcripts.make_scratch(directory)
    return directory


def test_every_command_has_a_page_with_its_help_and_three_mistakes():
    assert PAGES.keys() == COMMANDS.keys() | {"index"}
    for name in COMMANDS:
        commands = [command for command, _ in transcripts.transcripts(PAGES[name])]
        assert commands[0] == f"transnormer {name} --help"
        assert len(commands) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_what_its_commands_print(name, scratch):
    for command, shown in transcripts.transcripts(PAGES[name]):
        status, output = transcripts.run(command, scratch)
        assert output == shown, command
        assert status == (0 if "--help" in command else 2)
