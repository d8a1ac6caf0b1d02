"""`ListOps`: a TFDS builder that generates Long Range Arena's ListOps, at its lengths or shorter ones."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transnormer_jax.data import DATASETS, DataConfig, Dataset
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.listops_sampler import ListOpsSampler, listops_samples
from transnormer_jax.papers.data.options import config_from_name


@dataclasses.dataclass(kw_only=True)
class ListOpsConfig(tfds.core.BuilderConfig):
    """The sampler, the sizes of the splits and the seed; made by `listops_config`."""

    sampler: ListOpsSampler
    num_train: int
    num_validation: int
    num_test: int
    seed: int
    processes: int


def listops_config(
    num_train: int = 96_000,
    num_validation: int = 2_000,
    num_test: int = 2_000,
    min_length: int = 500,
    max_length: int = 2000,
    max_depth: int = 10,
    max_args: int = 10,
    seed: int = 0,
    processes: int = 0,
) -> ListOpsConfig:
    """Returns the builder config; the defaults are Long Range Arena's.

    Args:
      num_train: examples in `train`.
      num_validation: examples in `validation`.
      num_test: examples in `test`.
      min_length: kept are expressions of more tokens than this,
      max_length: and of fewer than this.
      max_depth: levels of a tree, the digits below the innermost operators counted.
      max_args: most arguments of an operator.
      seed: of everything.
      processes: that generate at once, 0 for one on each CPU; the data are the same.

    Raises:
      UserError: a split is empty, no tree is so small, or a number is negative.
    """
    if min(num_train, num_validation, num_test) < 1:
        raise UserError("a ListOps split has no example: choose at least 1 for num_train, num_validation and num_test.")
    if max_depth < 2 or max_args < 2:
        raise UserError(f"max_depth is {max_depth} and max_args {max_args}: a ListOps tree needs at least 2 of both.")
    if min_length < 3 or max_length < min_length + 2:
        raise UserError(
            f"no ListOps list has more than {min_length} and fewer than {max_length} tokens: choose a min_length of 3 "
            "or more and a max_length at least 2 above it."
        )
    if seed < 0 or processes < 0:
        raise UserError(f"seed is {seed} and processes {processes}: neither is negative.")
    sampler = ListOpsSampler(min_length, max_length, max_depth, max_args)
    sizes = f"{num_train}-{num_validation}-{num_test}"
    name = f"length{min_length}-{max_length}-depth{max_depth}-args{max_args}-seed{seed}-{sizes}"
    return ListOpsConfig(
        name=name,
        sampler=sampler,
        num_train=num_train,
        num_validation=num_validation,
        num_test=num_test,
        seed=seed,
        processes=processes,
    )


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
    return ListOps(config=config_from_name(config, listops_config), data_dir=data_dir)


DATASETS["listops"] = Dataset(_open, inputs=("tokens",))
