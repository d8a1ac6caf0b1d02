"""Tasks: what a model is trained for, as batch -> sums of loss and metrics."""

from transnormer_jax.tasks.causal_lm import CausalLM, Sums

__all__ = ["CausalLM", "Sums"]
