"""The tokenised splits of text that a configuration names: from the documents of a corpus to tokens on disk."""

import hashlib
import itertools
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transnormer_jax import storage
from transnormer_jax.data.chat import ChatTemplate
from transnormer_jax.data.config import DataConfig
from transnormer_jax.data.conversations import ConversationTokens
from transnormer_jax.data.corpus import Corpus
from transnormer_jax.data.datasets import find_dataset
from transnormer_jax.data.records import as_text, fingerprint, local_data_dir, open_source, prepared, read_records
from transnormer_jax.data.stored_tokens import load_stored
from transnormer_jax.data.tokenize import Coder, Tokenization
from transnormer_jax.data.tokenized import Manifest, TokenizedDocuments, open_tokenized
from transnormer_jax.data.tokenizers import Tokenizer
from transnormer_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_FORMAT = 2  # of the directories of tokens


def load_split(config: DataConfig, tokenizer: Tokenizer, split: str) -> TokenizedDocuments:
    """Returns a split's documents as tokens; the first call tokenises the corpus on disk.

    Args:
      config: the dataset, without a mixture.
      tokenizer: of the documents.
      split: as TFDS writes it, such as "train[:95%]".

    Raises:
      UserError: the dataset, split or feature does not exist, or cannot be prepared or read here.
    """
    return _load(config, split, tokenizer)


def load_conversations(
    config: DataConfig, tokenizer: Tokenizer, template: ChatTemplate, split: str, max_tokens: int
) -> TokenizedDocuments:
    """Returns a split's conversations as the numbers that `split_numbers` divides.

    The dataset is `"plain_text"` with `documents="conversation"`.

    Args:
      config: the dataset, without a mixture.
      tokenizer: of the conversations.
      template: makes text of messages.
      split: as TFDS writes it.
      max_tokens: of a row; longer conversations are shortened.

    Raises:
      UserError: as `load_split`, or the template refuses a conversation.
    """
    return _load(config, split, ConversationTokens(template, tokenizer, max_tokens))


def _load(config: DataConfig, split: str, coder: Coder) -> TokenizedDocuments:
    def write() -> Path:
        work = tokenization(config, split, coder)
        work.run()
        return work.directory

    directory = load_stored(config, split, coder, write)[1] if storage.is_remote(config.data_dir) else write()
    return select_split(config, directory, split)


def tokenization(config: DataConfig, split: str, coder: Coder) -> Tokenization:
    """The work that tokenises a split, and the other splits of its corpus with it."""
    corpus = open_corpus(config, split)
    identity = f"{_FORMAT} {corpus.fingerprint} {coder.fingerprint}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Tokenization(corpus, coder, local_data_dir(config) / "tokenized" / name)


def open_corpus(config: DataConfig, split: str) -> Corpus:
    """The corpus with a split of a dataset: all splits of text, or this one of a dataset of TFDS, which is prepared."""
    dataset = find_dataset(config.dataset)
    return dataset.corpus(config) if dataset and dataset.corpus else Records(config, split)


def select_split(config: DataConfig, directory: Path, split: str) -> TokenizedDocuments:
    """Returns the documents of a split from the tokens of its corpus.

    Raises:
      UserError: there is no such split, or it is empty.
    """
    manifest = Manifest.read(directory)
    counts = {name: manifest.counts(name)["documents"] for name in {shard.split: None for shard in manifest.shards}}
    pieces = _pieces(config, split, counts)
    documents = open_tokenized(directory, *(name for name, _ in pieces))
    if split not in counts:
        firsts = itertools.accumulate((counts[name] for name, _ in pieces), initial=0)
        chosen = [first + np.array(numbers, np.int64) for first, (_, numbers) in zip(firsts, pieces, strict=False)]
        documents = documents.select(np.concatenate(chosen))
    if not len(documents):
        raise UserError(f"split {split!r} of dataset {config.dataset!r} is empty: choose another.")
    return documents


def read_split(config: DataConfig, split: str) -> Iterator[str]:
    """Yields the texts of a split, in order. For a slice such as "train[:95%]" the documents are counted first."""
    corpus = open_corpus(config, split)

    def documents() -> Iterator[tuple[str, str]]:
        return itertools.chain.from_iterable(map(corpus.read, range(len(corpus))))

    if split in corpus.splits:
        yield from (text for name, text in documents() if name == split)
        return
    for name, numbers in _pieces(config, split, Counter(name for name, _ in documents())):
        texts = enumerate(text for of, text in documents() if of == name)
        yield from (text for number, text in texts if number in numbers)


class Records:
    """The texts of one split of a TFDS dataset; a `Corpus`."""

    _PART_BYTES, _MOST_PARTS = 1 << 24, 1024

    def __init__(self, config: DataConfig, split: str):
        """Prepares the dataset, if it is not.

        Raises:
          UserError: as `load_split`.
        """
        builder = prepared(config)
        self._source, self._split = open_source(builder, config, split), split
        self.splits: tuple[str, ...] = (split,)
        self._feature = _text_feature(builder, config)
        self.fingerprint = fingerprint(builder, split, self._feature)
        info, count = builder.info, len(self._source)
        num_bytes = info.dataset_size * count // max(1, info.splits.total_num_examples)
        parts = max(1, min(-(-num_bytes // self._PART_BYTES), self._MOST_PARTS, count))
        self._borders = [number * count // parts for number in range(parts + 1)]

    def __len__(self) -> int:
        return len(self._borders) - 1

    def read(self, part: int) -> Iterator[tuple[str, str]]:
        """See `Corpus`."""
        for records in read_records(self._source, *self._borders[part : part + 2]):
            yield from ((self._split, as_text(record[self._feature])) for record in records)


def _pieces(config: DataConfig, split: str, counts: Mapping[str, int]) -> list[tuple[str, range]]:
    """The whole splits that a split is made of, and the numbers of the documents of each."""
    if split in counts:
        return [(split, range(counts[split]))]
    if split in ("validation", "test") and config.dataset == "plain_text":
        raise UserError(
            f"too few documents to hold any out for {split!r}: raise held_out ({config.held_out}), or divide the files "
            f"into more documents than documents={config.documents!r} does."
        )
    import tensorflow_datasets as tfds

    try:
        known = {name: types.SimpleNamespace(num_examples=count) for name, count in counts.items()}
        pieces = tfds.core.ReadInstruction.from_spec(split).to_absolute(known)
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(f"dataset {config.dataset!r} has no split {split!r}: {did_you_mean(split, counts)}") from error
    return [(one.splitname, range(counts[one.splitname])[one.from_ : one.to]) for one in pieces]


def _text_feature(builder: "tfds.core.DatasetBuilder", config: DataConfig) -> str:
    import tensorflow_datasets as tfds

    feature = ",".join(config.input_features)
    known = [name for name, kind in builder.info.features.items() if isinstance(kind, tfds.features.Text)]
    if feature not in known:
        suggestion = did_you_mean(feature, known) if known else "choose a dataset of text."
        raise UserError(f"dataset {config.dataset!r} has no text feature {feature!r}: {suggestion}")
    return feature
