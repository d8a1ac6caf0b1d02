"""Text to batches: datasets, tokenizers, tokenised splits on disk, packed training rows, evaluation windows."""

from transnormer_jax.data.dataset import DataConfig, load_split
from transnormer_jax.data.packing import PackedRows
from transnormer_jax.data.pipeline import train_batches
from transnormer_jax.data.streams import evaluation_windows
from transnormer_jax.data.tokenized import TokenizedDocuments
from transnormer_jax.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "ByteTokenizer",
    "DataConfig",
    "PackedRows",
    "TokenizedDocuments",
    "Tokenizer",
    "evaluation_windows",
    "load_split",
    "load_tokenizer",
    "train_batches",
]
