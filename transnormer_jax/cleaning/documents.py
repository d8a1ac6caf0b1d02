"""Documents in and out of the engine: a reader of our files in equal parts, words, and shards of JSON lines."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.word_tokenizers import WordTokenizer

from transnormer_jax.data.corpus import TextFiles

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Words(WordTokenizer):
    """Words are what stands between white space, as the rules of Gopher count them."""

    def __init__(self) -> None:
        """For every language that puts white space between its words."""
        super().__init__("")

    def word_tokenize(self, text: str) -> list[str]:
        """Returns the words."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """Returns the sentences, by their punctuation."""
        return _SENTENCE_END.split(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Returns where the words are."""
        return [match.span() for match in re.finditer(r"\S+", text)]


# One for all: the engine remembers the words of a text by this object.
WORDS = Words()


class ReadText(PipelineStep):
    """The first step: task i of the engine reads part i of the files."""

    name = "Read text"
    type = "Reader"

    def __init__(self, texts: TextFiles):
        """Reads these."""
        super().__init__()
        self._texts = texts

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yields the documents of a part, each with the name of its file and its number there."""
        del data, world_size
        for file, number, text in self._texts.documents(rank):
            document = Document(text=text, id=f"{Path(file).name}#{number}", metadata={"file": file})
            self.update_doc_stats(document)
            yield document


def reader(directory: Path) -> JsonlReader:
    """What a stage before this one has written; task i reads the shard of its task i."""
    return JsonlReader(str(directory), glob_pattern="*.jsonl.gz", doc_progress=False)


def writer(directory: Path) -> JsonlWriter:
    """One compressed shard of JSON lines for each task: `text`, `id`, `metadata`."""
    return JsonlWriter(str(directory))


def shards_of(directory: Path) -> list[Path]:
    """Returns the shards of a directory, in order."""
    return sorted(directory.glob("*.jsonl.gz"))


def read_shard(shard: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a shard."""
    with gzip.open(shard, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)
