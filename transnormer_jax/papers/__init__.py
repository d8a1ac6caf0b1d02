"""What only the papers' comparisons need. Importing it registers its datasets, tasks and models by name."""

from transnormer_jax.papers import data, models, tasks

__all__ = ["data", "models", "tasks"]
