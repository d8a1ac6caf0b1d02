"""What only the papers' comparisons need. Importing it registers its datasets, mixers, models and tasks."""

from transnormer_jax.papers import config, data, mixers, models, ops, tasks

__all__ = ["config", "data", "mixers", "models", "ops", "tasks"]
