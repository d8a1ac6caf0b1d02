"""Evaluates a run: `python eval.py --workdir=runs/quickstart`; see --help."""

import runpy

if __name__ == "__main__":
    runpy.run_module("transnormer_jax.evaluate", run_name="__main__", alter_sys=True)
