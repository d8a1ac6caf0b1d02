"""From raw text to a corpus by rules, near-duplicates and a model's judgement: `python -m transnormer_jax.cleaning`."""
