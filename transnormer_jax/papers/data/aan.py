"""`AanFiles`: pairs of papers, and whether one cites the other."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from transnormer_jax.data import DATASETS, Dataset
from transnormer_jax.papers.data.local_files import LocalFiles, Splits, read_rows, required

_FILES = {"train": "train", "validation": "eval", "test": "test"}


class AanFiles(LocalFiles):
    """ACL Anthology Network pairs as in the Long Range Arena. Features: `text1`, `text2`, `label` (0, 1).

    Splits: `train`, `validation`, `test`. The public release holds ids alone; the text must be had from its owners.

    Files: `new_aan_pairs.train.tsv`, `.eval.tsv`, `.test.tsv`, rows of label, id1, id2, text1, text2.
    """

    @staticmethod
    def find(directory: Path, task: str) -> Splits:
        """See `LocalFiles`."""
        return {split: (required(directory, f"new_aan_pairs.{name}.tsv"),) for split, name in _FILES.items()}

    def features(self) -> dict[str, Any]:
        """See `LocalFiles`."""
        text = tfds.features.Text()
        return {"text1": text, "text2": text, "label": tfds.features.ClassLabel(num_classes=2)}

    def _generate_examples(self, files: Sequence[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (label, _id1, _id2, text1, text2) in enumerate(read_rows(files[0])):
            # Some copies write labels as floats.
            yield index, {"text1": text1, "text2": text2, "label": int(float(label))}


DATASETS["aan"] = Dataset(AanFiles.open, inputs=("text1", "text2"))
