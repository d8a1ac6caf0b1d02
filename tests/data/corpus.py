"""Documents made up for the tests, and their recovery from what the pipeline makes of them."""

from collections.abc import Iterable

import numpy as np

from transnormer_jax.data.held_out import text_key

BOS, EOS, PAD = 1, 2, 0
SPECIAL = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}


class ListDocuments:
    """Documents in a list; the smallest thing that fulfils `Documents`."""

    def __init__(self, documents: Iterable[Iterable[int]]):
        self.documents = [np.array(document, np.uint16) for document in documents]
        self.lengths = np.array([len(document) for document in self.documents], np.int64)

        self.num_bytes = self.lengths

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.documents[index]


def random_documents(count: int = 40, longest: int = 50) -> ListDocuments:
    """Documents of 0 to `longest` tokens, none of them special, all different or empty."""
    generator = np.random.default_rng(0)
    return ListDocuments(generator.integers(3, 1000, generator.integers(0, longest + 1)) for _ in range(count))


def recover(rows: Iterable[dict[str, np.ndarray]]) -> list[tuple[int, ...]]:
    """The documents of consecutive rows; a segment that does not start with BOS goes on from the one before it.

    Checks on the way that inputs and targets are one document, shifted by one.
    """
    pieces: list[tuple[list[int], list[int]]] = []
    for row in rows:
        for segment in dict.fromkeys(row["segment_ids"].tolist()):
            inside = row["segment_ids"] == segment
            inputs, targets = row["inputs"][inside].tolist(), row["targets"][inside].tolist()
            if segment == 0:
                assert set(inputs + targets) == {PAD}
            elif inputs[0] == BOS:
                pieces.append((inputs, targets))
            else:
                pieces[-1][0].extend(inputs)
                pieces[-1][1].extend(targets)
    for inputs, targets in pieces:
        assert inputs == [BOS, *targets[:-1]]
        assert targets[-1] == EOS
    return [tuple(targets[:-1]) for _, targets in pieces]


class ListCorpus:
    """Texts in a list, `size` to a part; the smallest thing that fulfils `Corpus`."""

    fingerprint = "list"

    def __init__(self, texts, size=1):
        self.texts, self.size = texts, size

    def __len__(self):
        return -(-len(self.texts) // self.size)

    def read(self, part):
        return ((text_key(text), text) for text in self.texts[part * self.size : (part + 1) * self.size])
