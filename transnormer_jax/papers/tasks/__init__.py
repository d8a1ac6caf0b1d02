"""The tasks of the papers' comparisons."""

from transnormer_jax.papers.tasks.classification import Classification, Retrieval
from transnormer_jax.papers.tasks.duplication import Duplication
from transnormer_jax.papers.tasks.images import AutoregressiveImages
from transnormer_jax.papers.tasks.speech import SpeechRecognition

__all__ = ["AutoregressiveImages", "Classification", "Duplication", "Retrieval", "SpeechRecognition"]
