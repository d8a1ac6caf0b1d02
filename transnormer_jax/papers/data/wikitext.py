"""`WikiTextFiles`: verified Wikipedia articles."""

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from transnormer_jax.data import DATASETS, Dataset
from transnormer_jax.papers.data.local_files import LocalFiles, Splits, first_existing, open_binary

_FILES = {"train": "train", "validation": "valid", "test": "test"}
# " = Title = " is an article; " = = Section = = " is not.
_TITLE = re.compile(r" = (?!= ).*(?<! =) = \n")


class WikiTextFiles(LocalFiles):
    """WikiText-103 or -2 (Merity et al., 2016), whichever the directory holds. Feature: `text`, one article.

    An article begins with its title line; nothing between two titles is left out or changed.

    Splits: those of `train`, `validation` and `test` whose files are there.

    Files: `wiki.train.tokens`, `wiki.train.raw` or `train.txt`, and so on; the held-out one is called `valid`.
    """

    @staticmethod
    def find(directory: Path, task: str) -> Splits:
        """See `LocalFiles`."""
        found = {
            split: first_existing(directory, f"wiki.{name}.tokens", f"wiki.{name}.raw", f"{name}.txt")
            for split, name in _FILES.items()
        }
        return {split: (path,) for split, path in found.items() if path}

    def features(self) -> dict[str, Any]:
        """See `LocalFiles`."""
        return {"text": tfds.features.Text()}

    def _generate_examples(self, files: Sequence[Path]) -> Iterator[tuple[int, dict[str, str]]]:
        with io.TextIOWrapper(open_binary(files[0]), "utf-8", newline="\n") as lines:
            for index, text in enumerate(read_articles(lines)):
                yield index, {"text": text}


DATASETS["wikitext"] = Dataset(WikiTextFiles.open)


def read_articles(lines: Iterator[str]) -> Iterator[str]:
    """Yields the articles of a WikiText file. A title stands between blank lines; other lines may look like one."""
    article: list[str] = []
    before, line = "\n", next(lines, "")
    for after in itertools.chain(lines, ["\n"]):
        if _TITLE.fullmatch(line) and not before.strip() and not after.strip():
            yield from _filled(article)
            article = []
        article.append(line)
        before, line = line, after
    yield from _filled(article)


def _filled(article: list[str]) -> Iterator[str]:
    text = "".join(article)
    if text.strip():
        yield text
