"""Datasets to batches: builders, tokenizers, splits encoded on disk, rows for training, batches for evaluation."""

from transnormer_jax.data.chat import RELEASED_TEMPLATE, ChatTemplate
from transnormer_jax.data.config import DataConfig
from transnormer_jax.data.conversation_rows import ConversationRows
from transnormer_jax.data.conversations import read_numbers
from transnormer_jax.data.datasets import DATASETS, Dataset
from transnormer_jax.data.masked_rows import MaskedRows
from transnormer_jax.data.mixture import MixedRows
from transnormer_jax.data.packing import PackedRows
from transnormer_jax.data.pipeline import train_batches
from transnormer_jax.data.rows import Rows, batches_of
from transnormer_jax.data.splits import load_conversations, load_split
from transnormer_jax.data.streams import evaluation_windows
from transnormer_jax.data.tokenized import TokenizedDocuments
from transnormer_jax.data.tokenizer_export import copy_tokenizer
from transnormer_jax.data.tokenizer_files import find_chat_template
from transnormer_jax.data.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    tokenizer_directory,
    tokenizer_exists,
)

__all__ = [
    "DATASETS",
    "RELEASED_TEMPLATE",
    "ByteTokenizer",
    "ChatTemplate",
    "ConversationRows",
    "DataConfig",
    "Dataset",
    "MaskedRows",
    "MixedRows",
    "PackedRows",
    "Rows",
    "TokenizedDocuments",
    "Tokenizer",
    "batches_of",
    "copy_tokenizer",
    "evaluation_windows",
    "find_chat_template",
    "load_conversations",
    "load_split",
    "load_tokenizer",
    "read_numbers",
    "tokenizer_directory",
    "tokenizer_exists",
    "train_batches",
]
