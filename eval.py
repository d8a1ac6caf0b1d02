"""Evaluates a run: `python eval.py --workdir=runs/quickstart`; see --help."""

import runpy

from transnormer_jax import start

if __name__ == "__main__":
    start.run_interruptible(lambda: runpy.run_module("transnormer_jax.evaluate", run_name="__main__", alter_sys=True))
