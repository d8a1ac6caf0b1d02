"""Fills in what the commands of docs/commands/ print: `python -m docs.transcripts` runs them and writes their output.

A block that begins with "$ transnormer ..." is a transcript. Commands run in a scratch directory, with a text and a run
that was trained on it for a few steps, so that the mistakes of a page are real ones.
"""

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from docs import forked

PAGES = Path(__file__).parent / "commands"

_BLOCK = re.compile(r"```console\n\$ (transnormer .*?)\n(.*?)```", re.DOTALL)
_CONFIG = """from transnormer_jax.training.config import default_config


def get_config():
    config = default_config(vocab_size=259, num_layers=2, model_dim=32, num_heads=2, glu_dim=48)
    config.data.dataset = "plain_text"
    config.data.files = "text.txt"
    config.data.documents = "line"
    config.data.held_out = 0.2
    config.data.data_dir = "data"
    config.num_steps = 2
    config.optimizer.warmup_steps = 1
    config.batch_size = 2
    config.sequence_length = 64
    return config
"""


def make_scratch(directory: Path) -> None:
    """Writes what the commands of the pages refer to: text.txt, tiny.py, and the run runs/tiny."""
    (directory / "text.txt").write_text("".join(f"line {i} of a text that is here to be read\n" for i in range(100)))
    (directory / "tiny.py").write_text(_CONFIG)
    (directory / "lost").mkdir()
    (directory / "taken").mkdir()
    (directory / "taken" / "something").touch()
    status, output = run("transnormer train --config=tiny.py --workdir=runs/tiny", directory)
    assert status == 0, output


def run(command: str, directory: Path) -> tuple[int, str]:
    """Runs a command in a process of its own; returns its exit status, and what it writes to stdout and stderr."""
    _, *arguments = shlex.split(command)
    status, out, err = forked.run(["-m", "transnormer_jax", *arguments], directory, {"COLUMNS": "100"})
    return status, out + err


def transcripts(page: str) -> Iterator[tuple[str, str]]:
    """The commands of a page, each with the output that the page shows."""
    for match in _BLOCK.finditer(page):
        yield match[1], match[2]


def main() -> None:
    """Writes the output of every command into its page."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        make_scratch(Path(scratch))
        for path in sorted(PAGES.glob("*.md")):
            page = path.read_text()
            commands = [command for command, _ in transcripts(page)]
            outputs = dict(zip(commands, pool.map(lambda x: run(x, Path(scratch)), commands), strict=True))
            for command, (status, output) in outputs.items():
                if status != (0 if "--help" in command else 2):
                    sys.exit(f"{path.name}: {command} ended with {status}:\n{output}")

            def fill(match, outputs=outputs):
                return f"```console\n$ {match[1]}\n{outputs[match[1]][1]}```"

            path.write_text(_BLOCK.sub(fill, page))


if __name__ == "__main__":
    main()
