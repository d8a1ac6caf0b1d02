"""Which documents are held out: those of the lowest keys; or of a single document, its end."""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

_LAST_KEY = 2**64 - 1


def text_key(text: str) -> int:
    """Returns 64 bits that depend on the text alone, and are uniform over texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def split_numbers(keys: npt.NDArray[np.uint64], fractions: Mapping[str, float]) -> npt.NDArray[np.int64]:
    """Returns the number of the split of each document, [documents]: `fractions` in order, then the rest.

    Each split has the documents of lowest key that the ones before it have left: its fraction of all documents,
    rounded, and at least one if the fraction is not 0. Documents with the same key are in the same split, and one key
    is left for the rest.

    Args:
      keys: of the documents.
      fractions: of the documents in each split but the last.
    """
    ordered = np.sort(keys)
    left = int(np.searchsorted(ordered, ordered[-1])) if len(keys) else 0  # without the copies of the highest key
    stop, borders = 0, []
    for fraction in fractions.values():
        wanted = max(1, round(fraction * len(keys))) if fraction else 0
        end = min(stop + wanted, left)
        if end > stop:  # and copies of the last one
            stop = int(np.searchsorted(ordered, ordered[end - 1], side="right"))
        borders.append(stop)
    return np.searchsorted(ordered[borders], keys, side="right") if len(keys) else np.empty(0, np.int64)


def cut_document(text: str, held_out: float) -> list[tuple[int, str]]:
    """Returns a document in up to three pieces with the keys of training, validation and test documents, in order.

    Validation and test are the last `held_out` of its bytes each, rounded to a line break before them. Where there is
    none nearby, they begin in the middle of a line.
    """
    content = text.encode()
    length = len(content.rstrip())
    size = max(1, round(length * held_out))
    test = _cut(content, length - size, size)
    validation = _cut(content, min(length - 2 * size, test - 1), size)
    if validation <= 0 or not content[validation:test].strip():  # two lines or letters are training and validation
        validation, test = test, len(content)
    pieces = content[:validation], content[validation:test], content[test:]
    keys = (_LAST_KEY, 0, 1)
    return [(key, piece.decode()) for key, piece in zip(keys, pieces, strict=True) if piece.strip()]


def _cut(content: bytes, wanted: int, size: int) -> int:
    """The place before `wanted` that begins a line, or a character."""
    behind_break = content.rfind(b"\n", max(0, wanted - max(size // 10, 4096)), max(0, wanted)) + 1
    if content[:behind_break].strip():
        return behind_break
    while 0 < wanted < len(content) and content[wanted] & 0xC0 == 0x80:
        wanted -= 1
    return wanted
