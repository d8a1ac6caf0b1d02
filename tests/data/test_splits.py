import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from transnormer_jax.data import ByteTokenizer, DataConfig, load_split, splits
from transnormer_jax.errors import UserError

BYTES = ByteTokenizer()


class TinyReviews(tfds.core.GeneratorBasedBuilder):
    """Stands for any dataset of TFDS."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = {"review": text, "title": text, "stars": tfds.features.Scalar(np.int64)}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for number in range(count):
            yield number, {"review": f"review {number}", "title": f"title {number}", "stars": number}


class TinyBroken(TinyReviews):
    """A dataset whose preparation needs what is not here."""

    def _split_generators(self, dl_manager):
        raise ConnectionError("no route\nto host")


class TinyNumbers(TinyReviews):
    """A dataset without text."""

    def _info(self):
        features = {"stars": tfds.features.Scalar(np.int64)}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, count):
        for number in range(count):
            yield number, {"stars": number}


def texts(config, split, tokenizer=BYTES):
    return [tokenizer.decode(document.tolist()) for document in load_split(config, tokenizer, split)]


def reviews(tmp_path, **changes):
    return DataConfig(**{"dataset": "tiny_reviews", "text_feature": "review", "data_dir": str(tmp_path), **changes})


def plain_text(tmp_path, text="one\ntwo\nthree", **changes):
    (tmp_path / "text.txt").write_text(text)
    options = {"documents": "line", "held_out": 0.0, "data_dir": str(tmp_path / "data"), **changes}
    return DataConfig(dataset="plain_text", files=str(tmp_path / "text.txt"), **options)


def test_plain_text(tmp_path):
    assert texts(plain_text(tmp_path), "train") == ["one", "two", "three"]


def test_changed_text_is_tokenised_again(tmp_path):
    texts(plain_text(tmp_path), "train")
    assert texts(plain_text(tmp_path, "four\nfive"), "train") == ["four", "five"]


@pytest.mark.slow
def test_python_source_is_the_default(tmp_path):
    documents = load_split(DataConfig(data_dir=str(tmp_path)), BYTES, "validation")
    assert len(documents) > 5
    assert documents.num_tokens == documents.num_bytes.sum() > 1e5


@pytest.mark.parametrize("split", ["train[:50%]", "train[1:]", "train[:1]+train[2:]"])
def test_slices_of_text_files(tmp_path, split):
    config, every = plain_text(tmp_path), ["one", "two", "three"]
    expected = {"train[:50%]": every[:2], "train[1:]": every[1:], "train[:1]+train[2:]": [every[0], every[2]]}[split]
    assert texts(config, split) == expected == [*splits.read_split(config, split)]
    for wrong in ("train[:x]", "trian"):
        with pytest.raises(UserError, match="has no split"):
            load_split(config, BYTES, wrong)


def test_any_tfds_dataset_with_text_and_any_of_its_splits(tmp_path):
    everything = [f"review {number}" for number in range(10)]
    assert sorted(texts(reviews(tmp_path), "train")) == everything
    parts = [texts(reviews(tmp_path), split) for split in ("train[:50%]", "train[50%:]")]
    assert sorted(parts[0] + parts[1]) == everything
    titles = reviews(tmp_path, text_feature="title")
    assert sorted(texts(titles, "test")) == ["title 0", "title 1"]


def test_a_second_call_only_opens_files(tmp_path, monkeypatch):
    first = texts(reviews(tmp_path), "train")
    monkeypatch.setattr(splits, "read_records", pytest.fail)
    assert texts(reviews(tmp_path), "train") == first


def test_another_tokenizer_has_its_own_tokens(tmp_path):
    class Shouting(ByteTokenizer):
        fingerprint = "shouting"

        def encode_batch(self, texts):
            return super().encode_batch([text.upper() for text in texts])

    assert texts(plain_text(tmp_path), "train") == ["one", "two", "three"]
    assert texts(plain_text(tmp_path), "train", Shouting()) == ["ONE", "TWO", "THREE"]


def test_of_two_preparations_at_once_the_first_to_finish_is_used(tmp_path, monkeypatch):
    generate = TinyReviews._generate_examples
    config = reviews(tmp_path)

    def overtaken(self, count):
        with monkeypatch.context() as other_process:
            other_process.setattr(TinyReviews, "_generate_examples", generate)
            texts(config, "train")
        yield from generate(self, count)

    monkeypatch.setattr(TinyReviews, "_generate_examples", overtaken)
    assert len(texts(config, "train")) == 10


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({"dataset": "python_sauce"}, "train", "TFDS has no dataset 'python_sauce': did you mean 'python_source'"),
        ({"dataset": "zzzzzz"}, "train", "TFDS has no dataset 'zzzzzz': choose one of: plain_text, python_source"),
        ({"dataset": "imdb_revews"}, "train", "did you mean 'imdb_reviews'"),
        ({"dataset": "imdb_reviews/nothing"}, "train", "cannot open dataset 'imdb_reviews/nothing' .*: correct its"),
        ({"dataset": "tiny_broken"}, "train", r"'tiny_broken' in .*no route to host\): try `tfds build tiny_broken"),
        ({"dataset": "tiny_numbers"}, "train", "'tiny_numbers' has no text feature 'review': choose a dataset of text"),
        ({"text_feature": "stars"}, "train", "no text feature 'stars': choose one of: review, title"),
        ({"text_feature": "reviews"}, "train", "no text feature 'reviews': did you mean 'review'"),
        ({}, "trian", "dataset 'tiny_reviews' has no split 'trian': did you mean 'train'"),
        ({}, "train[:x]", "has no split"),
        ({}, "validation", "has no split 'validation': choose one of: test, train"),
        ({"files": "a.txt"}, "train", "dataset 'tiny_reviews' reads no `files`: leave them out or"),
    ],
)
def test_what_a_user_can_mistake(tmp_path, changes, split, message):
    with pytest.raises(UserError, match=message) as caught:
        load_split(reviews(tmp_path, **changes), BYTES, split)
    assert "\n" not in str(caught.value)


def test_too_few_documents_to_hold_out_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="too few documents to hold any out for 'validation': raise held_out"):
        load_split(plain_text(tmp_path), BYTES, "validation")


def test_a_dataset_stored_for_tensorflow_is_the_users_error(tmp_path):
    load_split(reviews(tmp_path), BYTES, "train")
    (info,) = tmp_path.rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="is not stored as array_record: prepare it again with `tfds build"):
        load_split(reviews(tmp_path), BYTES, "train")


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(UserError, match=r"cannot write tokens to .*: choose another data_dir"):
        load_split(plain_text(tmp_path), BYTES, "train")


def test_a_store_that_nobody_knows_is_the_users_error(tmp_path):
    config = dataclasses.replace(plain_text(tmp_path), data_dir="az://bucket/data")
    with pytest.raises(UserError, match=r"'az://bucket/data' cannot be used: give a local path or"):
        load_split(config, BYTES, "train")


@pytest.mark.slow
def test_importing_the_package_imports_no_heavy_library():
    code = "import sys, transnormer_jax.data; print({'jax', 'grain', 'tensorflow_datasets'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
