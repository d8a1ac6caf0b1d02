"""`GlueFiles`: sentences and pairs of sentences to classify."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from transnormer_jax.data import DATASETS, Dataset
from transnormer_jax.papers.data.local_files import LocalFiles, Splits, first_existing, read_rows, required


class _Task(NamedTuple):
    folders: tuple[str, ...]
    texts: tuple[str, ...]
    classes: tuple[str, ...]  # Empty: a score.
    columns: tuple[str, ...]  # Of a file without a header.


_PAIR = ("sentence1", "sentence2")
_INDEXED = ("index", *_PAIR, "label")
_ENTAILMENT = ("entailment", "not_entailment")
_TASKS = {
    "cola": _Task(("CoLA",), ("sentence",), ("unacceptable", "acceptable"), ("source", "label", "star", "sentence")),
    "sst2": _Task(("SST-2",), ("sentence",), ("negative", "positive"), ("sentence", "label")),
    "mrpc": _Task(("MRPC",), _PAIR, ("not_equivalent", "equivalent"), ("label", "id1", "id2", *_PAIR)),
    "qqp": _Task(
        ("QQP", "QQP_part"),
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("id", "qid1", "qid2", "question1", "question2", "label"),
    ),
    "stsb": _Task(("STS-B",), _PAIR, (), ()),
    "qnli": _Task(("QNLI",), ("question", "sentence"), _ENTAILMENT, ("index", "question", "sentence", "label")),
    "rte": _Task(("RTE",), _PAIR, _ENTAILMENT, _INDEXED),
    "wnli": _Task(("WNLI",), _PAIR, ("not_entailment", "entailment"), _INDEXED),
}
_SAME_COLUMN = {
    "quality": "label",
    "score": "label",
    "is_duplicate": "label",
    "#1 string": "sentence1",
    "#2 string": "sentence2",
}


class GlueFiles(LocalFiles):
    """GLUE tasks (Wang et al., 2018) as TFDS `glue/TASK`: cola, sst2, mrpc, qqp, stsb, qnli, rte, wnli.

    Features: the task's text or texts, `label` (-1 where it is secret; a float score for stsb), `idx`.

    Splits: those whose files are there, of `train`, `validation` and `test`. Two layouts are read, the official one and
    one in which part of the training set is kept apart: a `val.tsv` belongs to `train`; if `test.tsv` has labels, it is
    the official development set, and `dev.tsv` belongs to `train`. So the sizes are the official ones either way.
    MRPC is the original `msr_paraphrase_train.txt` and `msr_paraphrase_test.txt` (labelled, no validation split). A
    lone `qqp_part_labelled.tsv` is `train`.

    Files: the task's folder (`SST-2`, ...) or one above it.
    """

    in_tfds = True

    @staticmethod
    def find(directory: Path, task: str) -> Splits:
        """See `LocalFiles`."""
        if task == "mrpc":
            names = {split: f"msr_paraphrase_{split}.txt" for split in ("train", "test")}
            return {split: (required(directory, name, f"MRPC/{name}"),) for split, name in names.items()}
        folder = first_existing(directory, *_TASKS[task].folders) or directory
        train, val, dev, test = (
            path if (path := folder / f"{name}.tsv").exists() else None for name in ("train", "val", "dev", "test")
        )
        partial = folder / "qqp_part_labelled.tsv"
        if task == "qqp" and partial.exists():
            train = partial
        if test and _has_labels(test):
            files = {"train": (train, val, dev), "validation": (test,)}
        else:
            files = {"train": (train, val), "validation": (dev,), "test": (test,)}
        splits = {split: tuple(filter(None, paths)) for split, paths in files.items()}
        return {split: paths for split, paths in splits.items() if paths}

    def features(self) -> dict[str, Any]:
        """See `LocalFiles`."""
        task = _TASKS[self.builder_config.task]
        label = tfds.features.ClassLabel(names=task.classes) if task.classes else tfds.features.Scalar(np.float32)
        texts = {name: tfds.features.Text() for name in task.texts}
        return {**texts, "label": label, "idx": tfds.features.Scalar(np.int32)}

    def _generate_examples(self, files: Sequence[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
        task = _TASKS[self.builder_config.task]
        rows = itertools.chain.from_iterable(_records(path, task.columns) for path in files)
        for index, row in enumerate(rows):
            label = _parse(row["label"], task.classes) if "label" in row else -1
            yield index, {**{name: row[name] for name in task.texts}, "label": label, "idx": index}


for _name, _task in _TASKS.items():
    DATASETS[f"glue/{_name}"] = Dataset(GlueFiles.open, inputs=_task.texts)


def _records(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    rows = read_rows(path)
    first = next(rows, [])
    header = _header(first)
    if not header:
        rows = itertools.chain([first], rows)
    for row in rows:
        yield dict(zip(header or columns, row, strict=True))


def _header(row: Sequence[str]) -> list[str]:
    """Returns the column names of a header; an empty list if the row is none."""
    names = [_SAME_COLUMN.get(field.lower(), field.lower()) for field in row]
    texts = set(itertools.chain.from_iterable(task.texts for task in _TASKS.values()))
    return names if texts & set(names) else []


def _has_labels(path: Path) -> bool:
    return "label" in _header(next(read_rows(path), []))


def _parse(label: str, classes: Sequence[str]) -> int | float:
    if not classes:
        return float(label)
    return classes.index(label) if label in classes else int(label)
