"""The LM Evaluation Harness (EleutherAI, package `lm_eval`): `python -m transnormer_jax.lm_eval`."""
