"""Writes docs/configuration.md, every key of a run's configuration: `python -m docs.configuration`.

Keys and defaults are those of the dataclasses, and the meanings are in their docstrings.
"""

import dataclasses
import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any

from transnormer_jax.models import TransNormerLLMConfig
from transnormer_jax.tasks import TASKS, TaskConfig
from transnormer_jax.training.config import ARCHITECTURES, Config

FILE = Path(__file__).with_suffix(".md")

_PRESETS = ("tiny", "385m", "1b", "3b", "7b", "13b", "65b", "175b")

_INTRODUCTION = """# Configuration

Every key of a run, with its default and its meaning. `python -m docs.configuration` generates this page from the code.

A configuration is a Python file with a function `get_config()`, such as [`quickstart.py`](../configs/quickstart.py). It
starts from `default_config()` (or `default_config(preset="385m")`), which holds every key, and changes some:

```
config.optimizer.learning_rate = 1e-3                      # in the file
--config.optimizer.learning_rate=1e-3                      # on the command line, for this run only
--config.curriculum='((1000, 256), (3000, 512))'           # a tuple on the command line
```

A mixture of sources is written in the file. An unknown key, or a value that does not fit the others, is refused before
training begins. `WORKDIR/config.json` holds the configuration with which a run was last started.
[Continue a run, with changes](commands/train.md#continue-a-run-with-changes) says which keys may change in between.
"""


def page() -> str:
    """The page."""
    kinds = {name: kind for name, kind in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(kind)}
    parts = [_INTRODUCTION, _section("config", Config, leave_out=("model", *kinds))]
    parts += [_section(f"config.{name}", kind) for name, kind in kinds.items() if name != "task"]
    options = dict.fromkeys(task.options for task in TASKS.values())
    for section, names in (
        ("task", {kind: [name for name in TASKS if TASKS[name].options is kind] for kind in options}),
        ("model", {kind: [name] for name, kind in ARCHITECTURES.items()}),
    ):
        for kind, users in names.items():
            of = ", ".join(f'"{name}"' for name in users)
            leave_out = ("name",) if section == "task" and kind is not TaskConfig else ()
            parts.append(_section(f"config.{section}", kind, title=f"config.{section} of {of}", leave_out=leave_out))
    return "\n".join([*parts, _sizes()])


def _sizes() -> str:
    lines = [
        "## Presets of transnormer_llm",
        "",
        '`default_config(preset="385m")` starts from one of these sizes. `385m`, `1b` and `7b` are the released',
        "models, `tiny` is for tests, and the others are the paper's, with the released ratio of `glu_dim` to D.",
        "",
        "| preset | parameters | num_layers | model_dim | num_heads | glu_dim | vocab_size |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in _PRESETS:
        c = TransNormerLLMConfig.preset(name)
        layer = 5 * c.model_dim**2 + 3 * c.model_dim * c.glu_dim  # q, k, v, u, out; and the three of the channel mixer
        total = c.vocab_size * c.model_dim + c.num_layers * layer + len(c.lrpe_layers) * c.model_dim
        sizes = (total, c.num_layers, c.model_dim, c.num_heads, c.glu_dim, c.vocab_size)
        lines.append(f"| `{name}` | {' | '.join(f'{size:,}' for size in sizes)} |")
    return "\n".join(lines) + "\n"


def _section(prefix: str, kind: Any, *, title: str = "", leave_out: tuple[str, ...] = ()) -> str:
    meanings = _attributes(kind)
    lines = [f"## {title or prefix}", "", "| key | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        if field.name not in leave_out:
            lines.append(f"| `{prefix}.{field.name}` | `{_default(field)}` | {meanings[field.name]} |")
    return "\n".join(lines) + "\n"


def _attributes(kind: type) -> dict[str, str]:
    """Field -> what `Attributes:` in the docstring says about it, in one line."""
    _, _, text = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    entries = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", text, flags=re.MULTILINE)
    return {name: " ".join(words.split()).replace("|", "\\|") for name, words in entries}


def _default(field: dataclasses.Field) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return json.dumps(value) if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    FILE.write_text(page())
