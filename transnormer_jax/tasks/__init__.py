"""Tasks: what a model is trained for, as batch -> sums of loss and metrics."""

from transnormer_jax.tasks.classification import Classification
from transnormer_jax.tasks.images import AutoregressiveImages
from transnormer_jax.tasks.language_modelling import CausalLM, MaskedLM
from transnormer_jax.tasks.speech import SpeechRecognition
from transnormer_jax.tasks.task import Batch, Params, Sums, Task

# By the names that configurations use. "supervised_lm" (fine-tuning on answers) and "duplication" are causal language
# models of which some targets count.
TASKS = ("causal_lm", "supervised_lm", "masked_lm", "duplication", "classification", "retrieval", "images", "speech")

__all__ = [
    "TASKS",
    "AutoregressiveImages",
    "Batch",
    "CausalLM",
    "Classification",
    "MaskedLM",
    "Params",
    "SpeechRecognition",
    "Sums",
    "Task",
]
