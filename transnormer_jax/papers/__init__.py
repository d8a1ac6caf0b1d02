"""What only the papers' comparisons need. Importing it registers its datasets, mixers, models and tasks."""

from transnormer_jax.papers import data, mixers, models, ops, tasks

__all__ = ["data", "mixers", "models", "ops", "tasks"]
