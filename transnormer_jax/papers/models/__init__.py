"""Models that stand on the stack of TransNormer, or beside it."""

from transnormer_jax.papers.models.bilstm import BiLSTM, BiLSTMConfig
from transnormer_jax.papers.models.classifiers import DualEncoder, SequenceClassifier
from transnormer_jax.papers.models.image_model import ImageModel
from transnormer_jax.papers.models.speech_model import SpeechModel

__all__ = ["BiLSTM", "BiLSTMConfig", "DualEncoder", "ImageModel", "SequenceClassifier", "SpeechModel"]
