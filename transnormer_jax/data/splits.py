"""The tokenised splits of text that a configuration names: from the documents of a corpus to tokens on disk."""

import hashlib
import itertools
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from transnormer_jax import storage
from transnormer_jax.data.bad_records import BadRecord, InvalidBytes, notes_in_words
from transnormer_jax.data.chat import RELEASED_TEMPLATE, ChatTemplate
from transnormer_jax.data.config import DataConfig
from transnormer_jax.data.conversations import ConversationTokens
from transnormer_jax.data.corpus import Corpus
from transnormer_jax.data.datasets import find_dataset
from transnormer_jax.data.held_out import split_numbers, text_key
from transnormer_jax.data.records import as_text, fingerprint, local_data_dir, open_source, prepared, read_records
from transnormer_jax.data.stored_tokens import load_stored
from transnormer_jax.data.tokenize import Coder, Tokenization
from transnormer_jax.data.tokenized import FORMAT, Manifest, TokenizedDocuments, open_tokenized
from transnormer_jax.data.tokenizer_files import find_chat_template
from transnormer_jax.data.tokenizers import Tokenizer, tokenizer_directory
from transnormer_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


def load_split(config: DataConfig, tokenizer: Tokenizer, split: str) -> TokenizedDocuments:
    """Returns a split's documents as tokens; the first call tokenises the corpus on disk.

    Args:
      config: the dataset, without a mixture.
      tokenizer: of the documents.
      split: as TFDS writes it, such as "train[:95%]".

    Raises:
      UserError: the dataset, split or feature does not exist, or cannot be prepared or read here.
    """
    if config.documents == "conversation":
        raise UserError(
            "config.data.documents='conversation' is for config.task.name='supervised_lm' and one dataset: set both, "
            "or choose other documents."
        )
    return _load(config, split, tokenizer)


def load_conversations(config: DataConfig, tokenizer: Tokenizer, split: str, max_tokens: int) -> TokenizedDocuments:
    """Returns a split's conversations as the numbers that `read_numbers` reads.

    The dataset is `"plain_text"` with `documents="conversation"`.

    Args:
      config: the dataset, without a mixture.
      tokenizer: of the conversations.
      split: as TFDS writes it.
      max_tokens: of a row; longer conversations are shortened.

    Raises:
      UserError: as `load_split`, or the template refuses a conversation.
    """
    return _load(config, split, coder_of(config, tokenizer, max_tokens))


def coder_of(config: DataConfig, tokenizer: Tokenizer, max_tokens: int) -> Coder:
    """What makes tokens of the documents of a configuration: the tokenizer, or for conversations a chat template.

    The chat template is that of the tokenizer or, if it has none, that of TransNormerLLM's fine-tuning.

    Args:
      config: the dataset, without a mixture.
      tokenizer: of the documents.
      max_tokens: of a conversation.

    Raises:
      UserError: the chat template cannot be read.
    """
    if config.documents != "conversation":
        return tokenizer
    directory = tokenizer_directory(config.tokenizer)
    own = None if directory is None else find_chat_template(directory)
    template = ChatTemplate(own or RELEASED_TEMPLATE, tokenizer)
    return ConversationTokens(template, tokenizer, max_tokens, skip=config.bad_records == "skip")


def _load(config: DataConfig, split: str, coder: Coder) -> TokenizedDocuments:
    def write() -> Path:
        work = tokenization(config, split, coder)
        if not work.directory.exists():
            from transnormer_jax.log import log  # which needs JAX

            for line in describe_files(work):
                log(f"{config.dataset}: {line}")
            work.run()
            for line in describe_tokens(config, split, work.directory):
                log(f"{config.dataset}: {line}")
        return work.directory

    directory = load_stored(config, split, coder, write)[1] if storage.is_remote(config.data_dir) else write()
    return select_split(config, directory, split)


def tokenization(config: DataConfig, split: str, coder: Coder) -> Tokenization:
    """The work that tokenises a split, and the other splits of its corpus with it."""
    corpus = open_corpus(config, split)
    identity = f"{FORMAT} {corpus.fingerprint} {coder.fingerprint}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Tokenization(corpus, coder, local_data_dir(config) / "tokenized" / name, config.bad_records)


def describe_files(work: Tokenization) -> list[str]:
    """Returns a line that says which files will be read, for a corpus of files."""
    found = getattr(work.corpus, "found", None)
    return [f"files: {found}"] if found else []


def describe_tokens(config: DataConfig, split: str, directory: Path) -> list[str]:
    """Returns lines for a log: the documents in each split of a corpus, and what was wrong with the texts."""
    numbers = _numbers(config, split, open_tokenized(directory).keys)
    counts = ", ".join(f"{len(of_split):,} {name}" for name, of_split in numbers.items())
    return [f"documents: {counts}", *notes_in_words(Manifest.read(directory).notes)]


def open_corpus(config: DataConfig, split: str) -> Corpus:
    """The corpus with a split of a dataset: all splits of text, or this one of a dataset of TFDS, which is prepared."""
    dataset = find_dataset(config.dataset)
    return dataset.corpus(config) if dataset and dataset.corpus else Records(config, split)


def select_split(config: DataConfig, directory: Path, split: str) -> TokenizedDocuments:
    """Returns the documents of a split from the tokens of its corpus.

    Raises:
      UserError: there is no such split, or it is empty.
    """
    documents = open_tokenized(directory)
    chosen = _chosen(config, split, documents.keys)
    return documents if np.array_equal(chosen, np.arange(len(documents))) else documents.select(chosen)


def read_split(config: DataConfig, split: str) -> Iterator[str]:
    """Yields the texts of a split in order; where some are held out, the keys of all documents are read first.

    Raises:
      UserError: as `load_split`; also for a bad record, unless `bad_records` is "skip".
    """
    corpus = open_corpus(config, split)

    def documents() -> Iterator[tuple[int, str]]:
        for item in itertools.chain.from_iterable(map(corpus.read, range(len(corpus)))):
            if not isinstance(item, BadRecord | InvalidBytes):
                yield item
            elif isinstance(item, BadRecord) and config.bad_records == "stop":
                raise item.error()

    if split == "train" and not any(_fractions(config).values()):
        yield from (text for _, text in documents())
        return
    keys = np.fromiter((key for key, _ in documents()), np.uint64)
    chosen = _chosen(config, split, keys)
    for ascending in np.split(chosen, np.flatnonzero(np.diff(chosen) <= 0) + 1):
        wanted = np.isin(np.arange(len(keys)), ascending)
        yield from (text for (_, text), is_wanted in zip(documents(), wanted, strict=True) if is_wanted)


class Records:
    """The texts of one split of a TFDS dataset; a `Corpus`."""

    _PART_BYTES, _MOST_PARTS = 1 << 24, 1024

    def __init__(self, config: DataConfig, split: str):
        """Prepares the dataset, if it is not.

        Raises:
          UserError: as `load_split`.
        """
        builder = prepared(config)
        self._source = open_source(builder, config, split)
        self._feature = _text_feature(builder, config)
        self.fingerprint = fingerprint(builder, split, self._feature)
        info, count = builder.info, len(self._source)
        num_bytes = info.dataset_size * count // max(1, info.splits.total_num_examples)
        parts = max(1, min(-(-num_bytes // self._PART_BYTES), self._MOST_PARTS, count))
        self._borders = [number * count // parts for number in range(parts + 1)]

    def __len__(self) -> int:
        return len(self._borders) - 1

    def read(self, part: int) -> Iterator[tuple[int, str]]:
        """See `Corpus`."""
        for records in read_records(self._source, *self._borders[part : part + 2]):
            texts = [as_text(record[self._feature]) for record in records]
            yield from ((text_key(text), text) for text in texts)


def _fractions(config: DataConfig) -> Mapping[str, float]:
    dataset = find_dataset(config.dataset)
    return dataset.held_out(config) if dataset else {}


def _numbers(config: DataConfig, split: str, keys: npt.NDArray[np.uint64]) -> dict[str, npt.NDArray[np.int64]]:
    """The numbers of the documents of each split with tokens in one directory: those of a corpus, or `split` alone."""
    dataset = find_dataset(config.dataset)
    if not (dataset and dataset.corpus):
        return {split: np.arange(len(keys))}
    fractions = dataset.held_out(config)
    splits = split_numbers(keys, fractions)
    numbers = {name: np.flatnonzero(splits == number) for number, name in enumerate([*fractions, "train"])}
    return {"train": numbers["train"]} | numbers


def _chosen(config: DataConfig, split: str, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The numbers of the documents of a split or of a slice of one.

    Raises:
      UserError: there is no such split, or it is empty.
    """
    numbers = _numbers(config, split, keys)
    if split not in numbers:
        import tensorflow_datasets as tfds

        known = {name: types.SimpleNamespace(num_examples=len(of_split)) for name, of_split in numbers.items()}
        try:
            pieces = tfds.core.ReadInstruction.from_spec(split).to_absolute(known)
        except (KeyError, ValueError, AssertionError) as error:
            suggestion = did_you_mean(split, numbers)
            raise UserError(f"dataset {config.dataset!r} has no split {split!r}: {suggestion}") from error
        numbers[split] = np.concatenate([numbers[one.splitname][one.from_ : one.to] for one in pieces])
    if len(numbers[split]):
        return numbers[split]
    if split in ("validation", "test") and config.dataset == "plain_text":
        raise UserError(
            f"too few different documents to hold any out for {split!r}: raise held_out ({config.held_out}), or divide "
            f"the files into more documents than documents={config.documents!r} does."
        )
    raise UserError(f"split {split!r} of dataset {config.dataset!r} is empty: choose another.")


def _text_feature(builder: "tfds.core.DatasetBuilder", config: DataConfig) -> str:
    import tensorflow_datasets as tfds

    feature = ",".join(config.input_features)
    known = [name for name, kind in builder.info.features.items() if isinstance(kind, tfds.features.Text)]
    if feature not in known:
        suggestion = did_you_mean(feature, known) if known else "choose a dataset of text."
        raise UserError(f"dataset {config.dataset!r} has no text feature {feature!r}: {suggestion}")
    return feature
