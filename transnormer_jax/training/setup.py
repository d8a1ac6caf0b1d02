"""What a run trains and measures: from a configuration to a task, its rows of data, and its evaluation."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jax.sharding import Mesh

from transnormer_jax.data import (
    RELEASED_TEMPLATE,
    ChatTemplate,
    ConversationRows,
    DuplicationRows,
    ExampleRows,
    Examples,
    ImageRows,
    MaskedRows,
    MixedRows,
    PackedRows,
    Rows,
    TokenizedDocuments,
    Tokenizer,
    batches_of,
    example_batches,
    find_chat_template,
    load_conversations,
    load_examples,
    load_split,
    load_tokenizer,
    tokenizer_directory,
)
from transnormer_jax.errors import UserError
from transnormer_jax.models import (
    BiLSTMConfig,
    DualEncoder,
    ImageModel,
    LanguageModel,
    SequenceClassifier,
    SpeechModel,
    TransNormerConfig,
    TransNormerLLMConfig,
)
from transnormer_jax.tasks import (
    AutoregressiveImages,
    CausalLM,
    Classification,
    MaskedLM,
    Params,
    SpeechRecognition,
    Task,
)
from transnormer_jax.training.config import Config
from transnormer_jax.training.evaluators import DocumentEvaluator, OnBatch, RowEvaluator

# Parameters, and what is called between two batches -> metrics.
Evaluation = Callable[..., dict[str, float]]
Consumption = Callable[[int], dict[str, float]]

# Tasks of `CausalLM`.
_CAUSAL = ("causal_lm", "supervised_lm", "duplication")
_EVALUATION_SEED = 0
_DUPLICATION_EXAMPLES = 1024


def _untold(rows: int) -> dict[str, float]:
    """The consumption of a single source, which the number of steps tells."""
    del rows
    return {}


class TrainingRows(NamedTuple):
    """What a run is trained on.

    Attributes:
      rows: the source of all batches.
      per_epoch: how many of them hold all the data once.
      description: of the data, in words.
      consumption: number of rows read -> tokens and epochs of every source of a mixture.
    """

    rows: Rows
    per_epoch: int
    description: str
    consumption: Consumption = _untold


class TrainingSetup(NamedTuple):
    """All that differs between a language model and a classifier.

    Attributes:
      task: batch -> sums.
      training: what it is trained on.
      evaluate: parameters -> metrics on the held-out split.
      tokenizer: fingerprint of the tokenizer.
    """

    task: Task
    training: TrainingRows
    evaluate: Evaluation
    tokenizer: str


def load_setup(config: Config, mesh: Mesh) -> TrainingSetup:
    """Opens the data and assembles the task.

    Raises:
      UserError: the dataset, the task and the model do not fit together.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    task = make_task(config)
    evaluate = load_evaluation(config, tokenizer, mesh, config.data.eval_split, config.evaluation.max_tokens)
    return TrainingSetup(task, _training_rows(config, tokenizer), evaluate, tokenizer.fingerprint)


def make_task(config: Config) -> Task:
    """The task of a configuration, with its model.

    Raises:
      UserError: the architecture cannot do the task.
    """
    model, name = config.model, config.task.name
    if name in _CAUSAL and isinstance(model, TransNormerLLMConfig):
        return CausalLM(LanguageModel(model))
    if name == "speech" and isinstance(model, TransNormerConfig | BiLSTMConfig):
        return SpeechRecognition(
            SpeechModel(model, config.task.num_classes), config.task.num_features, config.task.frames_per_token
        )
    if not isinstance(model, TransNormerConfig):
        raise UserError(
            f"architecture {config.architecture!r} cannot do task {name!r}: set config.architecture='transnormer'."
        )
    if name in (*_CAUSAL, "images") and not model.causal:
        raise UserError(f"task {name!r} needs config.model.causal=True: otherwise a token sees what it predicts.")
    if name in _CAUSAL:
        return CausalLM(LanguageModel(model))
    if name == "masked_lm":
        return MaskedLM(LanguageModel(model))
    if name == "images":
        return AutoregressiveImages(ImageModel(model, config.task.num_mixtures))
    classifier = DualEncoder if name == "retrieval" else SequenceClassifier
    return Classification(classifier(model, config.task.num_classes))


def load_evaluation(config: Config, tokenizer: Tokenizer, mesh: Mesh, split: str, max_tokens: int = 0) -> Evaluation:
    """The evaluation of parameters on a split, or on about `max_tokens` tokens from all over it.

    Raises:
      UserError: as `load_setup`.
    """
    task, batch_size, length = make_task(config), config.evaluation.batch_size, config.sequence_length
    if config.data.mixture:
        return _mixture_evaluation(config, tokenizer, mesh, split, max_tokens)
    if config.task.name in ("causal_lm", "masked_lm"):
        documents = load_split(config.data, tokenizer, split)
        if max_tokens:
            documents = documents.sample(max_tokens)
        if isinstance(task, CausalLM) and task.model.config.has_constant_state:
            return DocumentEvaluator(task, documents, tokenizer, config.evaluation, mesh)
        packed = _packed(config, documents, tokenizer, _EVALUATION_SEED)
        rows, count = _text_rows(config, packed, tokenizer, _EVALUATION_SEED), packed.rows_per_epoch
        # Of a masked language model, the loss is that of the hidden tokens alone.
        num_bytes = int(documents.num_bytes.sum()) if config.task.name == "causal_lm" else 0
        return RowEvaluator(task, lambda: batches_of(rows, count, batch_size), mesh, num_bytes=num_bytes)
    if config.task.name == "supervised_lm":
        answers, _ = _conversation_rows(config, tokenizer, split, _EVALUATION_SEED, max_tokens)
        return RowEvaluator(task, lambda: batches_of(answers, answers.rows_per_epoch, batch_size), mesh)
    if config.task.name == "duplication":
        # No training run has this seed: it may not be negative, and ours are small.
        unseen = DuplicationRows(seed=2**32)
        return RowEvaluator(task, lambda: batches_of(unseen, _DUPLICATION_EXAMPLES, batch_size), mesh)
    examples = _examples(config, tokenizer, split)
    count = _head(len(examples), max_tokens, length)
    if config.task.name == "images":
        images = ImageRows(examples, seed=_EVALUATION_SEED)
        return RowEvaluator(task, lambda: batches_of(images, count, batch_size), mesh)
    lengths = _lengths(config, examples)
    return RowEvaluator(task, lambda: example_batches(examples, lengths, batch_size, count), mesh)


def _head(rows: int, max_tokens: int, length: int) -> int:
    """How many rows of `length` tokens are read; `max_tokens` 0 takes all."""
    return min(rows, max(1, max_tokens // length)) if max_tokens else rows


def _mixture_evaluation(config: Config, tokenizer: Tokenizer, mesh: Mesh, split: str, max_tokens: int) -> Evaluation:
    """Every source by itself; metrics carry the name of the source."""
    evaluations = {
        name: load_evaluation(
            dataclasses.replace(config, data=source),
            tokenizer,
            mesh,
            source.eval_split if split == config.data.eval_split else split,
            max_tokens,
        )
        for name, source in config.data.sources().items()
    }

    def evaluate(params: Params, *on_batch: OnBatch) -> dict[str, float]:
        results = {name: evaluation(params, *on_batch) for name, evaluation in evaluations.items()}
        report = {
            f"{name}/{key}": results[name][key]
            for name in results
            for key in ("loss", "bits_per_byte")
            if key in results[name]
        }
        return report | {"seconds": sum(result["seconds"] for result in results.values())}

    return evaluate


def _training_rows(config: Config, tokenizer: Tokenizer) -> TrainingRows:
    name, split = config.task.name, config.data.train_split
    if name in ("causal_lm", "masked_lm"):
        return _training_text(config, tokenizer)
    if name == "supervised_lm":
        answers, words = _conversation_rows(config, tokenizer, split, config.seed)
        return TrainingRows(answers, answers.rows_per_epoch, words)
    if name == "duplication":
        _check_vocabulary(config, DuplicationRows.vocab_size)
        rows_of_run = config.num_steps * config.batch_size
        return TrainingRows(DuplicationRows(config.seed), rows_of_run, "sequences made on the fly")
    examples = _examples(config, tokenizer, split)
    words = f"{len(examples):,} examples of {config.data.dataset}"
    if name == "images":
        return TrainingRows(ImageRows(examples, config.seed), len(examples), words)
    return TrainingRows(ExampleRows(examples, _lengths(config, examples), config.seed), len(examples), words)


def _training_text(config: Config, tokenizer: Tokenizer) -> TrainingRows:
    documents = {
        name: load_split(source, tokenizer, source.train_split) for name, source in config.data.sources().items()
    }
    packed = {name: _packed(config, source, tokenizer, config.seed) for name, source in documents.items()}
    rows_per_epoch = {name: source.rows_per_epoch for name, source in packed.items()}
    words = ", ".join(
        f"{f'{name} ' if config.data.mixture else ''}{len(source):,} documents and {source.num_tokens:,} tokens"
        for name, source in documents.items()
    )
    if not config.data.mixture:
        [rows] = packed.values()
        return TrainingRows(_text_rows(config, rows, tokenizer, config.seed), rows.rows_per_epoch, words)
    kind, amounts = config.data.amounts()
    weights = amounts if kind == "weight" else {name: amounts[name] * rows_per_epoch[name] for name in amounts}
    mixed = MixedRows(packed, weights)

    def consumption(rows: int) -> dict[str, float]:
        read = mixed.counts(rows)
        tokens = {f"data/{name}/tokens": float(count * config.sequence_length) for name, count in read.items()}
        return tokens | {f"data/{name}/epochs": count / rows_per_epoch[name] for name, count in read.items()}

    all_rows = sum(rows_per_epoch.values())
    return TrainingRows(_text_rows(config, mixed, tokenizer, config.seed), all_rows, words, consumption)


def _conversation_rows(
    config: Config, tokenizer: Tokenizer, split: str, seed: int, max_tokens: int = 0
) -> tuple[ConversationRows, str]:
    """Conversations by the chat template of the tokenizer, or by that of TransNormerLLM's fine-tuning."""
    if config.data.documents != "conversation" or config.data.dataset != "plain_text":
        raise UserError(
            "task 'supervised_lm' learns from one dataset of conversations: set config.data.dataset='plain_text' and "
            "config.data.documents='conversation'."
        )
    _check_vocabulary(config, tokenizer.vocab_size)
    directory = tokenizer_directory(config.data.tokenizer)
    own = None if directory is None else find_chat_template(directory)
    template = ChatTemplate(own or RELEASED_TEMPLATE, tokenizer)
    tokens, mask = load_conversations(config.data, tokenizer, template, split)
    if max_tokens:  # the mask has the lengths of the tokens, so these are the same conversations
        tokens, mask = tokens.sample(max_tokens), mask.sample(max_tokens)
    rows = ConversationRows(tokens, mask, config.sequence_length, **_special_ids(tokenizer), seed=seed)
    answered = sum(int(mask[i].sum()) for i in range(len(mask)))
    return rows, f"{len(tokens):,} conversations of {tokens.num_tokens:,} tokens, {answered:,} of them answers"


def _packed(config: Config, documents: TokenizedDocuments, tokenizer: Tokenizer, seed: int) -> PackedRows:
    return PackedRows(documents, config.sequence_length, seed=seed, **_special_ids(tokenizer))


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}


def _text_rows(config: Config, packed: Rows, tokenizer: Tokenizer, seed: int) -> Rows:
    if config.task.name == "causal_lm":
        _check_vocabulary(config, tokenizer.vocab_size)
        return packed
    _check_vocabulary(config, tokenizer.vocab_size + 1)  # the mask
    return MaskedRows(
        packed,
        seed,
        mask_id=tokenizer.vocab_size,
        vocab_size=tokenizer.vocab_size,
        special_ids=set(_special_ids(tokenizer).values()),
    )


def _examples(config: Config, tokenizer: Tokenizer, split: str) -> Examples:
    examples = load_examples(config.data, tokenizer, split, pair_apart=config.task.name == "retrieval")
    if examples.vocab_size is not None:
        _check_vocabulary(config, examples.vocab_size)
    # Speech has classes from 1 on, since 0 is the blank.
    classes = examples.num_classes - (1 if config.task.name == "speech" else 0)
    if config.task.name != "images" and classes > config.task.num_classes:
        raise UserError(
            f"dataset {config.data.dataset!r} has {classes} classes, config.task.num_classes="
            f"{config.task.num_classes}: set it to {classes}."
        )
    return examples


def _lengths(config: Config, examples: Examples) -> dict[str, int]:
    """The length of every sequence of an example; labels are never cut."""
    longest = {name: int(column.lengths.max(initial=1)) for name, column in examples.columns.items()}
    return {name: longest[name] if name == "labels" else config.sequence_length for name in longest if name != "label"}


def _check_vocabulary(config: Config, size: int) -> None:
    ours = getattr(config.model, "vocab_size", size)
    if size > ours:
        raise UserError(
            f"the data has {size} different tokens, config.model.vocab_size={ours}: set it to {size} or more."
        )
