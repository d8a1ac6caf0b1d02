"""An HTTP server for the OpenAI protocol: `python -m transnormer_jax.serve`."""
