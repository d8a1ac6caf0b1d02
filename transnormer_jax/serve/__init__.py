"""An HTTP server that speaks the protocol of OpenAI: `python -m transnormer_jax.serve`."""
