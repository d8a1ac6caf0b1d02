"""Small directories in the formats of public datasets, and what builders read from them."""

import tarfile
from pathlib import Path

import numpy as np

from tests.shared import shared_file


def read(builder):
    """The examples of each split, as the builder hands them to TFDS."""
    splits = builder.builder_config.splits.items()
    return {split: [example for _, example in builder._generate_examples(files)] for split, files in splits}


def unpack(archive, directory, *wanted, limit=None):
    """Unpacks members of a shared archive whose names contain one of `wanted`; stops after `limit` of them."""
    with tarfile.open(shared_file(f"data/{archive}"), "r|xz") as tar:
        count = 0
        for member in tar:
            if member.isfile() and any(part in member.name for part in wanted or ("",)):
                tar.extract(member, directory, filter="data")
                count += 1
                if count == limit:
                    return


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes bytes in the format of MNIST."""
    sizes = np.array(array.shape, ">i4").tobytes()
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())


def write_mnist(directory: Path, num_train: int = 20, num_test: int = 5) -> np.ndarray:
    """Writes random images; returns those of the training split, [num_train, 28, 28]."""
    generator = np.random.default_rng(0)
    train = generator.integers(0, 256, (num_train, 28, 28))
    write_idx(directory / "train-images-idx3-ubyte", train)
    write_idx(directory / "train-labels-idx1-ubyte", np.arange(num_train) % 10)
    write_idx(directory / "t10k-images-idx3-ubyte", generator.integers(0, 256, (num_test, 28, 28)))
    write_idx(directory / "t10k-labels-idx1-ubyte", np.arange(num_test))
    return train


def write_reviews(directory: Path, count: int = 20) -> None:
    """Writes reviews in the format of IMDb; good and bad ones alternate."""
    for split in ("train", "test"):
        rows = [f"{('neg', 'pos')[i % 2]}\t{i}\t{i}\tthis {split} film is number {i}\n" for i in range(count)]
        (directory / f"imdb_{split}.tsv").write_text("".join(rows))


def write_speech(directory: Path) -> dict[str, np.ndarray]:
    """Writes utterances in the format of AN4; returns their cepstra by name."""
    (directory / "etc").mkdir(parents=True)
    (directory / "etc" / "an4.dic").write_text("GO G OW\nYES Y EH S\nYES(2) Y AE S\n")
    generator, cepstra = np.random.default_rng(0), {}
    for split, words in (("train", ("GO", "YES", "GO YES")), ("test", ("YES GO",))):
        names = [f"{split}{i}" for i in range(len(words))]
        lines = [f"<s> {text} </s> ({name})" for text, name in zip(words, names, strict=True)]
        (directory / "etc" / f"an4_{split}.fileids").write_text("".join(f"{split}/{name}\n" for name in names))
        (directory / "etc" / f"an4_{split}.transcription").write_text("\n".join(lines))
        (directory / "feat" / split).mkdir(parents=True)
        for size, name in enumerate(names, 5):
            cepstra[name] = generator.normal(3, 2, (size, 13)).astype(np.float32)
            content = (13 * size).to_bytes(4, "big") + cepstra[name].astype(">f4").tobytes()
            (directory / "feat" / split / f"{name}.mfc").write_bytes(content)
    return cepstra
