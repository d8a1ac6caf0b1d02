"""The documents' Python runs, and what they name exists: links, paths, modules, flags, keys of the configuration."""

import functools
import importlib.util
import re
from pathlib import Path

import pytest

import transnormer_jax
from transnormer_jax.__main__ import COMMANDS
from transnormer_jax.models import ARCHITECTURES, MIXERS
from transnormer_jax.ops.linear_attention import BACKENDS
from transnormer_jax.tasks import TASKS
from transnormer_jax.training import default_config
from transnormer_jax.training.config import Config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# Those whose Python stands alone. docs/export.md and docs/extending.md have tests of their own, others show a few
# lines of a config file.
PROGRAMS = [
    pytest.param("README.md", marks=pytest.mark.slow),
    pytest.param("docs/coming_from.md", marks=pytest.mark.slow),
    "docs/hardware.md",
    pytest.param("docs/tutorials/long_context.md", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("document", PROGRAMS)
def test_python_blocks_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(block, names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document):
    text = document.read_text()
    for link in re.findall(r"\]\(((?!https?:|#)[^)#]+)(?:#[^)]*)?\)", text):
        assert (document.parent / link).exists(), link
    for path in re.findall(
        r"`((?:tests|transnormer_jax|benchmarks|docs|configs)/[\w./]+)`|--config=(configs/\S+\.py)", text
    ):
        [name] = filter(None, path)
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m ((?:transnormer_jax|benchmarks|docs)[\w.]+)", text):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_document_have_the_flags_that_it_gives_them(document):
    for module, arguments in commands(document.read_text()):
        known = flags_of(module)
        for argument in arguments:
            name = argument.removeprefix("--").partition("=")[0]
            if name.startswith("config.model."):  # which keys there are depends on the configuration's architecture
                continue
            if name.startswith("config."):
                functools.reduce(lambda config, key: config[key], name.split(".")[1:], default_config())
            else:
                assert name in known, (module, argument)


def commands(text):
    """The commands of the package in the code blocks that are not transcripts: module, and arguments with dashes."""
    modules = {"train.py": COMMANDS["train"], "eval.py": COMMANDS["eval"]}
    for block in re.findall(r"```\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.search(
                r"(?:python -m (transnormer_jax[\w.]*)|(train\.py|eval\.py)|^transnormer (\w+)) (.*)", line
            )
            if match is None:
                continue
            module = match[1] or modules.get(match[2] or "") or COMMANDS[match[3]]
            yield module, re.findall(r"(?<!\S)--[\w.]+", match[4])


@functools.cache
def flags_of(module):
    """The flags that a command's module defines, as they stand in its source."""
    source = Path(importlib.util.find_spec(module).origin)
    if source.name == "__init__.py":
        source = source.with_name("__main__.py")
    text = source.read_text()
    names = set(re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", text)) | {"help"}
    if "define_config_flag" in text:
        names.add("config")
    if "define_run_flags" in text:
        names |= {"workdir", "step", "config"}
    if "define_int8" in text:
        names.add("int8")
    if "processes.define_flags" in text:
        names |= {"coordinator", "num_processes", "process_id"}
    return names


def test_the_reference_of_the_configuration_has_every_choice():
    page = (ROOT / "docs" / "configuration.md").read_text()
    text = page + " ".join(kind.__doc__ for kind in (Config, *ARCHITECTURES.values()))
    assert [name for name in (*ARCHITECTURES, *TASKS, *MIXERS, *BACKENDS) if f'"{name}"' not in text] == []


def test_every_file_has_the_same_version():
    version = transnormer_jax.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
