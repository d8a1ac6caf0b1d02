"""Keeps compiled programs between starts of a run, so that a resumed run does not compile again."""

import os

import jax
from etils import epath


def use_compilation_cache(setting: str, workdir: epath.Path) -> None:
    """Turns on JAX's persistent cache of compiled programs, unless the environment has configured it.

    Args:
      setting: `config.compilation_cache`: a directory, "" for `WORKDIR/compilation_cache`, or "off".
    """
    if setting == "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", setting or os.fspath(workdir / "compilation_cache"))
