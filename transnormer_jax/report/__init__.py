"""One self-contained HTML page about a run: `python -m transnormer_jax.report`."""
