"""The tokenised splits of text that a configuration names: from the records of a dataset to tokens on disk."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from transnormer_jax import storage
from transnormer_jax.data.chat import ChatTemplate
from transnormer_jax.data.config import DataConfig
from transnormer_jax.data.conversations import ConversationMask, ConversationTokens
from transnormer_jax.data.records import as_text, fingerprint, open_source, prepared, read_records
from transnormer_jax.data.stored_tokens import load_stored
from transnormer_jax.data.tokenize import Coder, tokenize
from transnormer_jax.data.tokenized import TokenizedDocuments, open_tokenized
from transnormer_jax.data.tokenizers import Tokenizer
from transnormer_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


def load_split(config: DataConfig, tokenizer: Tokenizer, split: str) -> TokenizedDocuments:
    """Returns a split's documents as tokens; the first call prepares the dataset and tokenises the split on disk.

    Args:
      config: the dataset, without a mixture.
      tokenizer: of the documents.
      split: a TFDS split, such as "train[:95%]".

    Raises:
      UserError: the dataset, split or feature does not exist, or cannot be prepared or read here.
    """
    return _tokenized(config, split, tokenizer)


def load_conversations(
    config: DataConfig, tokenizer: Tokenizer, template: ChatTemplate, split: str
) -> tuple[TokenizedDocuments, TokenizedDocuments]:
    """Returns a split's conversations as tokens, and as many numbers that are 1 where the assistant writes.

    The dataset is `"plain_text"` with `documents="conversation"`.

    Args:
      config: the dataset, without a mixture.
      tokenizer: of the conversations.
      template: what stands around the messages.
      split: a TFDS split.

    Raises:
      UserError: as `load_split`, or the template refuses a conversation.
    """
    coders = ConversationTokens(template, tokenizer), ConversationMask(template)
    tokens, mask = (_tokenized(config, split, coder) for coder in coders)
    return tokens, mask


def _tokenized(config: DataConfig, split: str, coder: Coder) -> TokenizedDocuments:
    def write() -> Path:
        texts = RecordTexts(config, split)
        directory = texts.tokens_directory(coder)
        tokenize(texts, coder, directory)
        return directory

    if storage.is_remote(config.data_dir):
        _, documents = load_stored(config, split, coder, write)
        return documents
    return open_tokenized(write())


class RecordTexts:
    """The documents of a split of one source; fulfils `tokenize.Texts`, q.v. for methods and attributes."""

    def __init__(self, config: DataConfig, split: str):
        """Prepares the dataset, if it is not.

        Raises:
          UserError: as `load_split`.
        """
        builder = prepared(config)
        self._source = open_source(builder, config, split)
        self._feature = _text_feature(builder, config)
        self._directory = Path(builder.data_dir) / "tokenized"
        self._identity = fingerprint(builder, split, self._feature)
        info = builder.info
        self.num_bytes = info.dataset_size * len(self._source) // max(1, info.splits.total_num_examples)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, start: int, stop: int) -> Iterator[str]:
        """See `tokenize.Texts`."""
        for records in read_records(self._source, start, stop):
            yield from (as_text(record[self._feature]) for record in records)

    def tokens_directory(self, coder: Coder) -> Path:
        """Where `coder`'s tokens of these documents lie, or will."""
        return self._directory / hashlib.sha256(f"{self._identity} {coder.fingerprint}".encode()).hexdigest()[:16]


def _text_feature(builder: "tfds.core.DatasetBuilder", config: DataConfig) -> str:
    import tensorflow_datasets as tfds

    # What holds the text in JSON lines and Parquet is `text` after `PlainText` has read it.
    feature = "text" if config.dataset == "plain_text" else ",".join(config.input_features)
    dataset = config.dataset
    known = [name for name, kind in builder.info.features.items() if isinstance(kind, tfds.features.Text)]
    if feature not in known:
        suggestion = did_you_mean(feature, known) if known else "choose a dataset of text."
        raise UserError(f"dataset {dataset!r} has no text feature {feature!r}: {suggestion}")
    return feature
