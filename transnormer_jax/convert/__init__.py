"""TransNormerLLM checkpoints of Hugging Face, in and out."""

from transnormer_jax.convert.hugging_face import load_hugging_face, save_hugging_face

__all__ = ["load_hugging_face", "save_hugging_face"]
