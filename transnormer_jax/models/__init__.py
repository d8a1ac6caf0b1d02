"""Models, assembled from layers, with their configurations."""

from transnormer_jax.models.bilstm import BiLSTM, BiLSTMConfig
from transnormer_jax.models.classifiers import DualEncoder, SequenceClassifier
from transnormer_jax.models.image_model import ImageModel
from transnormer_jax.models.language_model import Cache, LanguageModel, unstack_layers
from transnormer_jax.models.model_config import ModelConfig
from transnormer_jax.models.speech_model import SpeechModel
from transnormer_jax.models.transnormer_config import TransNormerConfig
from transnormer_jax.models.transnormer_llm_config import TransNormerLLMConfig

TransNormer = TransNormerLLM = LanguageModel
"""The one model under its papers' names; the configuration says which it is."""

__all__ = [
    "BiLSTM",
    "BiLSTMConfig",
    "Cache",
    "DualEncoder",
    "ImageModel",
    "LanguageModel",
    "ModelConfig",
    "SequenceClassifier",
    "SpeechModel",
    "TransNormer",
    "TransNormerConfig",
    "TransNormerLLM",
    "TransNormerLLMConfig",
    "unstack_layers",
]
