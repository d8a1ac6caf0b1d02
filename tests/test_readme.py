"""The README's Python runs, and its commands name files that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})


def test_files_named_exist():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"\]\(((?!https?:)[^)]+)\)|--config=(\S+\.py)|`(tests/\S+?\.py)`", text):
        (path,) = filter(None, name)
        assert (ROOT / path).exists(), path
