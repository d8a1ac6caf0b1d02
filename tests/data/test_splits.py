import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from transnormer_jax.data import ByteTokenizer, DataConfig, load_split, splits
from transnormer_jax.data.tokenize import Tokenization
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


def test_splits_share_no_document_and_have_all(tmp_path):
    config = plain_text(tmp_path, "\n".join(f"line {i}" for i in range(500)), held_out=0.1)
    parts = {split: texts(config, split) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 400, "validation": 50, "test": 50}
    assert sorted(itertools.chain(*parts.values())) == sorted(f"line {i}" for i in range(500))
    for split, part in parts.items():
        assert [*splits.read_split(config, split)] == part
    both = texts(config, "validation[:10]+test[-5:]")
    assert both == parts["validation"][:10] + parts["test"][-5:]
    assert [*splits.read_split(config, "test[50%:]+validation+test[:50%]")] == (
        parts["test"][25:] + parts["validation"] + parts["test"][:25]
    )


def test_another_fraction_tokenises_nothing_again(tmp_path, monkeypatch):
    config = plain_text(tmp_path, "\n".join(f"line {i}" for i in range(500)), held_out=0.1)
    load_split(config, BYTES, "train")
    monkeypatch.setattr(Tokenization, "run", pytest.fail)
    monkeypatch.setattr(Tokenization, "write_part", pytest.fail)
    less = dataclasses.replace(config, held_out=0.02)
    assert set(texts(less, "validation")) < set(texts(config, "validation"))
    assert len(load_split(less, BYTES, "validation")) == 10
    assert len(load_split(dataclasses.replace(config, held_out=0.0), BYTES, "train")) == 500


def test_what_is_read_and_skipped_is_logged_once(tmp_path, capsys):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text('{"text": "one"}\n\n{"text":\n{"text": "tw\xf6"}\n', encoding="latin-1")
    (corpus / "b.md").touch()
    config = DataConfig("plain_text", str(corpus), bad_records="skip", data_dir=str(corpus / "data"))
    texts(config, "train")
    lines = [line.partition(" | ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "plain_text: files: took 1 .jsonl, skipped 1 .md",
        "plain_text: documents: 1 train, 1 validation, 0 test",
        f"plain_text: left out 1 bad record: '{corpus}/a.jsonl', line 3: it is not JSON (Expecting value, column 9)",
        f"plain_text: replaced bytes that are not UTF-8 by U+FFFD in 1 document of '{corpus}/a.jsonl'",
    ]
    texts(config, "validation")
    assert capsys.readouterr().out == ""
    assert len([*splits.read_split(config, "train")]) == 1
    with pytest.raises(UserError, match=r"a\.jsonl', line 3: it is not JSON .*Correct or delete this line\."):
        list(splits.read_split(dataclasses.replace(config, bad_records="stop"), "train"))


@pytest.mark.slow
def test_python_source_is_the_default(tmp_path):
    documents = load_split(DataConfig(data_dir=str(tmp_path)), BYTES, "validation")
    assert len(documents) > 20
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
    with pytest.raises(UserError, match="too few different documents to hold any out for 'validation': raise held_out"):
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
