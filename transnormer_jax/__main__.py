"""Every command under one name: `transnormer COMMAND --flag=value`, or `python -m transnormer_jax COMMAND`."""

import ast
import importlib.util
import runpy
import sys
from pathlib import Path

from transnormer_jax import start
from transnormer_jax.errors import did_you_mean, fail

# Command -> module, in the order of a model's life. `python -m MODULE` is the same.
COMMANDS = {
    "clean": "transnormer_jax.cleaning",
    "train_tokenizer": "transnormer_jax.data.train_tokenizer",
    "prepare": "transnormer_jax.data.prepare",
    "inspect": "transnormer_jax.data.inspect",
    "compile": "transnormer_jax.compile",
    "train": "transnormer_jax.train",
    "eval": "transnormer_jax.evaluate",
    "report": "transnormer_jax.report",
    "generate": "transnormer_jax.generate",
    "sample_images": "transnormer_jax.papers.sample_images",
    "serve": "transnormer_jax.serve",
    "lm_eval": "transnormer_jax.lm_eval",
    "convert": "transnormer_jax.convert",
    "export": "transnormer_jax.export",
}


_COMMON = "Every command takes --verbosity=N: -1 shows warnings of JAX, Orbax and TFDS, 0 what they do, 1 everything."


def main() -> None:
    """Runs the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(usage())
    elif name == "--version":
        from transnormer_jax import __version__

        print(__version__)
    elif name in COMMANDS:
        del sys.argv[1]
        if name == "train":
            start.begin()
        start.run_interruptible(lambda: runpy.run_module(COMMANDS[name], run_name="__main__", alter_sys=True))
    else:
        fail(f"there is no command {name!r}: {did_you_mean(name, COMMANDS)}")


def usage() -> str:
    """The commands, each with the first line of what its --help says."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{_first_line(module)}" for name, module in COMMANDS.items()]
    return "\n".join(["transnormer COMMAND --flag=value; COMMAND --help lists the flags.", "", *lines, "", _COMMON])


def _first_line(module: str) -> str:
    # Read, not imported: the help of all commands should not wait for all of their imports.
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin)
    if source.name == "__init__.py":
        source = source.with_name("__main__.py")
    return (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
