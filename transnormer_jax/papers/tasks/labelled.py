"""Tasks on labelled examples, one to a row."""

import dataclasses
from typing import ClassVar

from transnormer_jax.data import Tokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data import ExampleRows, Examples, HeldOutExamples, load_examples
from transnormer_jax.tasks import HeldOutRows, Task, TaskConfig, TrainingRows
from transnormer_jax.tasks.task import check_vocabulary
from transnormer_jax.training import Config


@dataclasses.dataclass(frozen=True)
class PositiveOptions(TaskConfig):
    """Options that are numbers from 1 on."""

    def __post_init__(self) -> None:
        """Raises UserError for a number below 1."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "name" and value < 1:
                raise UserError(f"config.task.{field.name}={value} must be at least 1.")


@dataclasses.dataclass(frozen=True)
class ClassesConfig(PositiveOptions):
    """Options of a task with classes.

    Attributes:
      name: "classification" or "retrieval".
      num_classes: how many classes there are.
    """

    num_classes: int = 2


class LabelledTask(Task):
    """A task whose rows are the padded examples of a dataset with classes.

    Attributes:
      pair_apart: whether two input features are two sequences.
      has_blank: whether class 0 is no label of the data.
    """

    options: ClassVar[type[TaskConfig]] = ClassesConfig
    pair_apart: ClassVar[bool] = False
    has_blank: ClassVar[bool] = False

    def training_rows(self, config: Config, tokenizer: Tokenizer) -> TrainingRows:
        """See `Task`."""
        examples = self._examples(config, tokenizer, config.data.train_split)
        rows = ExampleRows(examples, _lengths(config, examples), config.seed)
        return TrainingRows(rows, len(examples), describe(config, examples))

    def held_out(self, config: Config, tokenizer: Tokenizer, split: str, max_tokens: int = 0) -> HeldOutRows:
        """See `Task`."""
        examples = self._examples(config, tokenizer, split)
        count = rows_to_read(config, examples, max_tokens)
        return HeldOutRows(HeldOutExamples(examples, _lengths(config, examples), count), count)

    def _examples(self, config: Config, tokenizer: Tokenizer, split: str) -> Examples:
        examples = open_examples(config, tokenizer, split, pair_apart=self.pair_apart)
        assert isinstance(config.task, ClassesConfig), config.task
        classes = examples.num_classes - self.has_blank
        if classes > config.task.num_classes:
            raise UserError(
                f"dataset {config.data.dataset!r} has {classes} classes, config.task.num_classes="
                f"{config.task.num_classes}: set it to {classes}."
            )
        return examples


def open_examples(config: Config, tokenizer: Tokenizer, split: str, *, pair_apart: bool = False) -> Examples:
    """The examples of a split; raises UserError if the model knows too few tokens."""
    examples = load_examples(config.data, tokenizer, split, pair_apart=pair_apart)
    if examples.vocab_size is not None:
        check_vocabulary(config, examples.vocab_size)
    return examples


def describe(config: Config, examples: Examples) -> str:
    """The data in words."""
    return f"{len(examples):,} examples of {config.data.dataset}"


def rows_to_read(config: Config, examples: Examples, max_tokens: int) -> int:
    """How many rows of `config.sequence_length` tokens an evaluation reads; `max_tokens` 0 takes all."""
    return min(len(examples), max(1, max_tokens // config.sequence_length)) if max_tokens else len(examples)


def _lengths(config: Config, examples: Examples) -> dict[str, int]:
    """The length of every sequence of an example; labels are never cut."""
    longest = {name: int(column.lengths.max(initial=1)) for name, column in examples.columns.items()}
    return {name: longest[name] if name == "labels" else config.sequence_length for name in longest if name != "label"}
