"""Import and export of Hugging Face TransNormerLLM checkpoints."""

from transnormer_jax.convert.hugging_face import load_hugging_face, save_hugging_face

__all__ = ["load_hugging_face", "save_hugging_face"]
