"""`An4Files`: short utterances as cepstra, and the phones that were said."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow_datasets as tfds

from transnormer_jax.data import DATASETS, Dataset
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.local_files import LocalFiles, Splits, required

_COEFFICIENTS = 13


class An4Files(LocalFiles):
    """CMU AN4, census answers spelled and spoken. Features: `mfcc` float32 [n, 13], `phones` ints [u], `text`, `id`.

    13 mel-frequency cepstral coefficients at 100 frames a second. Phones are numbered from 1 in the order of the
    alphabet; 0 is free for padding and for CTC's blank. A word is said as the dictionary's first entry has it.

    Splits: `train` (948) and `test` (130), which share no speaker; take `train[:95%]` and `train[95%:]` to hold some
    out.

    Files: `etc/an4.dic`, `etc/an4_SPLIT.fileids`, `etc/an4_SPLIT.transcription`, `feat/ID.mfc` (big-endian: int32, the
    number of values, then float32).
    """

    @staticmethod
    def find(directory: Path, task: str) -> Splits:
        """See `LocalFiles`."""
        splits = {}
        dictionary = required(directory, "etc/an4.dic")
        for split in ("train", "test"):
            names = required(directory, f"etc/an4_{split}.fileids")
            features = [names.parent.parent / "feat" / f"{name}.mfc" for name in names.read_text().split()]
            missing = [path for path in features if not path.exists()]
            if missing:
                raise UserError(f"no {str(missing[0])!r}: give the directory with all files of AN4.")
            splits[split] = (dictionary, required(directory, f"etc/an4_{split}.transcription"), *features)
        return splits

    def features(self) -> dict[str, Any]:
        """See `LocalFiles`."""
        words = _read_dictionary(self.builder_config.splits["train"][0])
        phones = sorted({phone for said in words.values() for phone in said})
        return {
            "id": tfds.features.Text(),
            "mfcc": tfds.features.Tensor(shape=(None, _COEFFICIENTS), dtype=np.float32),
            "phones": tfds.features.Sequence(tfds.features.ClassLabel(names=["<blank>", *phones])),
            "text": tfds.features.Text(),
        }

    def _generate_examples(self, files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        dictionary, transcription, *features = files
        words = _read_dictionary(dictionary)
        transcripts = dict(_read_transcripts(transcription))
        for path in features:
            text = transcripts[path.stem]
            phones = [phone for word in text.split() for phone in words[word]]
            yield path.stem, {"id": path.stem, "mfcc": read_mfcc(path), "phones": phones, "text": text}


DATASETS["an4"] = Dataset(An4Files.open, inputs=("mfcc",), label="phones")


def read_mfcc(path: Path) -> npt.NDArray[np.float32]:
    """Returns the cepstra of one utterance, float32 [n, 13].

    Raises:
      UserError: the file does not hold as many values as it says.
    """
    content = path.read_bytes()
    values = np.frombuffer(content[4:], ">f4") if len(content) % 4 == 0 else np.empty(0, ">f4")
    if int.from_bytes(content[:4], "big") != values.size or not values.size or values.size % _COEFFICIENTS:
        raise UserError(f"{str(path)!r} is cut or no file of cepstra: replace it with an intact one.")
    return values.reshape(-1, _COEFFICIENTS).astype(np.float32)


def _read_dictionary(path: Path) -> dict[str, list[str]]:
    # Other ways to say a word are entries of their own: "A" and "A(2)".
    return {word: phones for word, *phones in map(str.split, path.read_text().splitlines()) if phones}


def _read_transcripts(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        text, _, name = line.rpartition("(")
        words = [word for word in text.split() if word not in ("<s>", "</s>")]
        yield name.rstrip(") "), " ".join(words)
