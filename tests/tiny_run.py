"""A run that was never trained, for commands that open one."""

import json

from transnormer_jax.training.workdir import write_model


def write_run(directory, config, params, tokenizer="bytes"):
    """Writes a model as a run whose tokenizer has this name; returns the directory."""
    write_model(directory, config, params)
    content = json.loads((directory / "config.json").read_text())
    content["data"]["tokenizer"] = tokenizer
    (directory / "config.json").write_text(json.dumps(content))
    return directory
