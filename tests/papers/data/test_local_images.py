import lzma

import numpy as np
import pytest
from PIL import Image

from tests.papers.data.local_files import read, unpack, write_mnist
from transnormer_jax.data import ByteTokenizer, DataConfig
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data import load_examples
from transnormer_jax.papers.data.cifar10 import Cifar10Files
from transnormer_jax.papers.data.mnist import MnistFiles, read_idx


def test_mnist_keeps_every_byte(tmp_path):
    images = write_mnist(tmp_path)
    config = DataConfig(dataset="mnist", files=str(tmp_path), data_dir=str(tmp_path / "data"))
    examples = load_examples(config, ByteTokenizer(), "train")
    assert (len(examples), examples.num_classes, examples.vocab_size) == (20, 10, 256)
    # TFDS shuffles, so pictures are found by what they show.
    expected = {image.astype(np.uint8).tobytes(): index % 10 for index, image in enumerate(images)}
    assert {example["inputs"].tobytes(): int(example["label"]) for example in examples} == expected


def test_a_cut_idx_file_is_the_users_error(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    for content in (path.read_bytes()[:-1], b"", b"no IDX file"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no intact IDX file of bytes"):
            read_idx(path)


@pytest.mark.slow
def test_mnist_is_complete(tmp_path):
    unpack("mnist_idx.tar.xz", tmp_path)
    splits = MnistFiles.at("mnist", str(tmp_path), str(tmp_path / "data")).builder_config.splits
    images, labels = zip(*(map(read_idx, splits[split]) for split in ("train", "test")), strict=True)
    assert [array.shape for array in images] == [(60000, 28, 28), (10000, 28, 28)]
    # The first test image is a seven; the classes are as the page of the data set counts them.
    assert labels[1][0] == 7
    assert np.bincount(labels[0]).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def write_pictures(directory, colours):
    for split in ("train", "test"):
        for name, colour in colours.items():
            (directory / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), colour).save(directory / split / name / "0001.png")


def test_pictures_by_class_in_colour_and_grey(tmp_path):
    write_pictures(tmp_path, {"cat": (200, 100, 50), "truck": (255, 255, 255), "airplane": (7, 7, 7)})

    def pixels(grey):
        config = DataConfig(dataset="cifar10", files=str(tmp_path), data_dir=str(tmp_path / "data"), grey=grey)
        examples = load_examples(config, ByteTokenizer(), "test")
        assert (examples.num_classes, examples.vocab_size) == (10, 256)
        return {int(example["label"]): example["inputs"] for example in examples}

    colour, grey = pixels(False), pixels(True)
    assert colour[3].reshape(32, 32, 3)[4, 5].tolist() == [200, 100, 50]
    assert colour[3].shape == (3072,)
    # 0.2989 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2; what was grey before keeps its value.
    assert {label: np.unique(image).tolist() for label, image in grey.items()} == {0: [7], 3: [124], 9: [255]}
    assert grey[3].shape == (1024,)


def test_a_directory_without_pictures_is_the_users_error(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match=r"no train/CLASS/\*.jpg in"):
        Cifar10Files.at("cifar10", str(tmp_path), str(tmp_path / "data"))


def test_cifar_10_pictures_decode(tmp_path):
    unpack("cifar10_jpg.tar.xz", tmp_path, "jpg/test/bird", limit=3)
    (tmp_path / "jpg" / "train").symlink_to(tmp_path / "jpg" / "test")
    config = DataConfig(dataset="cifar10", files=str(tmp_path), data_dir=str(tmp_path / "data"))
    examples = load_examples(config, ByteTokenizer(), "test")
    assert [int(example["label"]) for example in examples] == [2, 2, 2]
    pictures = [np.asarray(Image.open(path)).tobytes() for path in (tmp_path / "jpg" / "test" / "bird").iterdir()]
    assert sorted(example["inputs"].tobytes() for example in examples) == sorted(pictures)


def test_an_image_packed_in_xz_is_read(tmp_path):
    write_mnist(tmp_path)
    plain = read_idx(tmp_path / "train-images-idx3-ubyte")
    (tmp_path / "images.xz").write_bytes(lzma.compress((tmp_path / "train-images-idx3-ubyte").read_bytes()))
    np.testing.assert_array_equal(read_idx(tmp_path / "images.xz"), plain)
    assert len(read(MnistFiles.at("mnist", str(tmp_path), str(tmp_path / "data")))["test"]) == 5
