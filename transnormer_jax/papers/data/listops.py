"""`ListOps`: a TFDS builder that generates Long Range Arena's ListOps, at its lengths or shorter ones."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transnormer_jax.data import DATASETS, DataConfig, Dataset
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.generated import config_from_name
from transnormer_jax.papers.data.listops_sampler import ListOpsSampler, listops_samples


@dataclasses.dataclass(kw_only=True)
class ListOpsConfig(tfds.core.BuilderConfig):
    """Which expressions are generated; the defaults are Long Range Arena's.

    Attributes:
      num_train: examples in `train`.
      num_validation: examples in `validation`.
      num_test: examples in `test`.
      min_length: kept are expressions of more tokens than this,
      max_length: and of fewer than this.
      max_depth: levels of a tree, the digits below the innermost operators counted.
      max_args: most arguments of an operator.
      seed: of everything.
      processes: that generate at once, 0 for one on each CPU; the data are the same.
    """

    name: str = ""
    num_train: int = 96_000
    num_validation: int = 2_000
    num_test: int = 2_000
    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10
    seed: int = 0
    processes: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for an empty split, lengths that no tree has, or a negative number."""
        sizes = (self.num_train, self.num_validation, self.num_test)
        if min(sizes) < 1:
            raise UserError(
                "a ListOps split has no example: choose at least 1 for num_train, num_validation and num_test."
            )
        if self.max_depth < 2 or self.max_args < 2:
            raise UserError(
                f"max_depth is {self.max_depth} and max_args {self.max_args}: a ListOps tree needs at least 2 of both."
            )
        if self.min_length < 3 or self.max_length < self.min_length + 2:
            raise UserError(
                f"no ListOps list has more than {self.min_length} and fewer than {self.max_length} tokens: choose a "
                "min_length of 3 or more and a max_length at least 2 above it."
            )
        if self.seed < 0 or self.processes < 0:
            raise UserError(f"seed is {self.seed} and processes {self.processes}: neither is negative.")
        self.sampler = ListOpsSampler(self.min_length, self.max_length, self.max_depth, self.max_args)
        lengths = f"length{self.min_length}-{self.max_length}-depth{self.max_depth}-args{self.max_args}"
        self.name = f"{lengths}-seed{self.seed}-{'-'.join(map(str, sizes))}"


class ListOps(tfds.core.GeneratorBasedBuilder):
    """Features: `tokens` uint8 [n], places in `listops_expression.SYMBOLS`, and `label`, the value.

    Splits: `test`, `validation` and `train` are consecutive parts of one stream without duplicates, in this order, so
    that another number of training examples leaves the held-out ones as they are.
    """

    VERSION = tfds.core.Version("1.0.0")
    builder_config: ListOpsConfig

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "tokens": tfds.features.Tensor(shape=(None,), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        config = self.builder_config
        sizes = {"test": config.num_test, "validation": config.num_validation, "train": config.num_train}
        ends = dict(zip(sizes, itertools.accumulate(sizes.values()), strict=True))
        return {split: self._generate_examples(ends[split] - size, ends[split]) for split, size in sizes.items()}

    def _generate_examples(self, start: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
        # Each split draws the stream from its beginning: to know what is a duplicate takes all that came before.
        config = self.builder_config
        stream = listops_samples(config.sampler, config.seed, config.processes)
        for index, (tokens, value) in enumerate(itertools.islice(stream, start, end)):
            yield index, {"tokens": tokens, "label": value}


def _open(config: DataConfig, data_dir: str | None) -> ListOps:
    return ListOps(config=config_from_name(config, ListOpsConfig), data_dir=data_dir)


DATASETS["listops"] = Dataset(_open, inputs=("tokens",))
