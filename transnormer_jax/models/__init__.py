"""Models, assembled from layers, with their configurations."""

from transnormer_jax.models.bilstm import BiLSTM, BiLSTMConfig
from transnormer_jax.models.cache import Cache
from transnormer_jax.models.classifiers import DualEncoder, SequenceClassifier
from transnormer_jax.models.image_model import ImageModel
from transnormer_jax.models.speech_model import SpeechModel
from transnormer_jax.models.transnormer import TransNormer
from transnormer_jax.models.transnormer_config import TransNormerConfig
from transnormer_jax.models.transnormer_llm import TransNormerLLM, unstack_layers
from transnormer_jax.models.transnormer_llm_config import TransNormerLLMConfig

__all__ = [
    "BiLSTM",
    "BiLSTMConfig",
    "Cache",
    "DualEncoder",
    "ImageModel",
    "SequenceClassifier",
    "SpeechModel",
    "TransNormer",
    "TransNormerConfig",
    "TransNormerLLM",
    "TransNormerLLMConfig",
    "unstack_layers",
]
