"""Trains a model: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`; see --help."""

import runpy

from transnormer_jax import start

if __name__ == "__main__":
    start.begin()
    runpy.run_module("transnormer_jax.train", run_name="__main__", alter_sys=True)
