"""`ImdbFiles`: movie reviews and whether they praise."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from transnormer_jax.data import DATASETS, Dataset
from transnormer_jax.papers.data.local_files import LocalFiles, Splits, read_rows, required


class ImdbFiles(LocalFiles):
    """IMDb reviews (Maas et al., 2011) as TFDS `imdb_reviews`. Features: `text`, `label` (neg, pos).

    Splits: `train` and `test`, 25,000 each. The dataset has no validation split; the Long Range Arena evaluates on
    `test` throughout, and so does who sets `eval_split="test"`.

    Files: `imdb_train.tsv`, `imdb_test.tsv`, rows of label (neg or pos), id, rating, text.
    """

    in_tfds = True

    @staticmethod
    def find(directory: Path, task: str) -> Splits:
        """See `LocalFiles`."""
        return {split: (required(directory, f"imdb_{split}.tsv"),) for split in ("train", "test")}

    def features(self) -> dict[str, Any]:
        """See `LocalFiles`."""
        return {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["neg", "pos"])}

    def _generate_examples(self, files: Sequence[Path]) -> Iterator[tuple[str, dict[str, str]]]:
        for label, number, _rating, text in read_rows(files[0]):
            yield f"{label}_{number}", {"text": text, "label": label}


DATASETS["imdb_reviews"] = Dataset(ImdbFiles.open)
