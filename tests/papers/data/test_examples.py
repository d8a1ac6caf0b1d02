import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.papers.data.local_files import write_mnist, write_reviews, write_speech
from transnormer_jax.data import ByteTokenizer, DataConfig, load_split
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data import examples, load_examples
from transnormer_jax.papers.data.encoding import image_bytes

BYTES = ByteTokenizer()


class TinyPairs(tfds.core.GeneratorBasedBuilder):
    """Stands for any dataset of TFDS with texts, numbers and labels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "one": tfds.features.Text(),
            "two": tfds.features.Text(),
            "ids": tfds.features.Tensor(shape=(None,), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=["no", "yes"]),
            "stars": tfds.features.Scalar(np.int64),
            "score": tfds.features.Scalar(np.float32),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0), "test": self._generate_examples(-1)}

    def _generate_examples(self, label):
        for i in range(5):
            ids = np.arange(i + 1, dtype=np.uint8)
            yield i, {"one": "a" * i, "two": f"b{i}", "ids": ids, "label": label, "stars": 2 * i, "score": i / 2}


def pairs(tmp_path, **changes):
    return DataConfig(**{"dataset": "tiny_pairs", "text_feature": "one", "data_dir": str(tmp_path), **changes})


def prepared_dir(tmp_path):
    return tmp_path / "tiny_pairs" / "1.0.0"


def inputs(loaded, name="inputs"):
    return [example[name].tolist() for example in loaded]


def test_text_is_tokenised_and_an_empty_one_is_its_end(tmp_path):
    loaded = load_examples(pairs(tmp_path), BYTES, "train")
    assert inputs(loaded) == [[BYTES.eos_id], *(BYTES.encode("a" * i) for i in range(1, 5))]
    assert (len(loaded), loaded.num_classes, loaded.vocab_size) == (5, 2, BYTES.vocab_size)
    assert loaded[0]["label"].shape == ()
    assert loaded[0]["label"].dtype == np.int32
    np.testing.assert_equal(loaded[-1], loaded[4])
    with pytest.raises(IndexError):
        loaded[5]


def test_a_pair_is_one_sequence_or_two(tmp_path):
    config = pairs(tmp_path, text_feature="one, two")
    joined = load_examples(config, BYTES, "train")
    assert inputs(joined)[2] == [*BYTES.encode("aa"), BYTES.eos_id, *BYTES.encode("b2")]
    apart = load_examples(config, BYTES, "train", pair_apart=True)
    assert inputs(apart)[2] == BYTES.encode("aa")
    assert inputs(apart, "inputs_b")[2] == BYTES.encode("b2")


def test_ids_stay_as_they_are_and_sizes_are_counted(tmp_path):
    loaded = load_examples(pairs(tmp_path, text_feature="ids", label_feature="stars"), BYTES, "train")
    assert inputs(loaded) == [list(range(i + 1)) for i in range(5)]
    assert [int(example["label"]) for example in loaded] == [0, 2, 4, 6, 8]
    assert (loaded.num_classes, loaded.vocab_size) == (9, 5)


def test_a_second_call_only_opens_files(tmp_path, monkeypatch):
    first = inputs(load_examples(pairs(tmp_path), BYTES, "train"))
    monkeypatch.setattr(examples, "read_records", lambda _: pytest.fail("read again"))
    assert inputs(load_examples(pairs(tmp_path), BYTES, "train")) == first


def test_a_failed_encoding_leaves_nothing(tmp_path):
    class Broken(ByteTokenizer):
        def encode_batch(self, texts):
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            load_examples(pairs(tmp_path), Broken(), "train")
    assert not list((prepared_dir(tmp_path) / "examples").iterdir())
    assert len(load_examples(pairs(tmp_path), BYTES, "train")) == 5


def test_of_two_encodings_at_once_the_first_to_finish_wins(tmp_path):
    class Overtaken(ByteTokenizer):
        def encode_batch(self, texts):
            load_examples(pairs(tmp_path), BYTES, "train")
            return super().encode_batch(texts)

    assert len(load_examples(pairs(tmp_path), Overtaken(), "train")) == 5
    assert len(list((prepared_dir(tmp_path) / "examples").iterdir())) == 1


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path):
    load_split(pairs(tmp_path), BYTES, "train")
    (prepared_dir(tmp_path) / "examples").touch()
    with pytest.raises(UserError, match="cannot write examples to"):
        load_examples(pairs(tmp_path), BYTES, "train")


@pytest.mark.parametrize(
    ("changes", "split", "apart", "message"),
    [
        ({}, "test", False, "this split of dataset 'tiny_pairs' has no labels: choose another one"),
        ({"text_feature": "ones"}, "train", False, "has no feature 'ones': did you mean 'one'"),
        ({"label_feature": "labels"}, "train", False, "has no feature 'labels': did you mean 'label'"),
        ({"label_feature": "score"}, "train", False, "feature 'score' .* is no class: choose another with `label_feat"),
        ({"text_feature": "stars"}, "train", False, "features stars .* are no input: choose one, or two of text"),
        ({"text_feature": "one,ids"}, "train", False, "features one, ids .* are no input"),
        ({"text_feature": "one"}, "train", True, "text_feature names 1 features .*: a pair has two"),
        ({"text_feature": "one,two,one"}, "train", False, "text_feature names 3 features .*: a pair has two"),
        ({"dataset": "an4"}, "train", False, "'an4' is not in TFDS: set `files` to the directory"),
        ({"dataset": "mnist", "files": "nowhere"}, "train", False, "'mnist' needs its files unpacked"),
        ({"dataset": "mnist", "files": "."}, "train", False, "no 'train-images-idx3-ubyte' in .*: set `files` to"),
        ({"dataset": "wikitext", "files": "tests"}, "train", False, "no file of dataset 'wikitext' in 'tests'"),
        ({"dataset": "listops", "files": "."}, "train", False, "'listops' is generated: leave `files` empty"),
        ({"dataset": "listops/sed=1"}, "train", False, "has no option 'sed': did you mean 'seed'"),
        ({"dataset": "listops/seed=x"}, "train", False, "option 'seed' .* is 'x': give a value like 0, its default"),
    ],
)
def test_what_a_user_can_mistake(tmp_path, changes, split, apart, message):
    with pytest.raises(UserError, match=message) as caught:
        load_examples(pairs(tmp_path, **changes), BYTES, split, pair_apart=apart)
    assert "\n" not in str(caught.value)


def test_the_registry_knows_the_usual_features(tmp_path):
    for name, write in {"mnist": write_mnist, "imdb_reviews": write_reviews, "an4": write_speech}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        config = DataConfig(dataset=name, files=str(tmp_path / name), data_dir=str(tmp_path / "data"))
        assert len(load_examples(config, BYTES, "train")) > 0


@pytest.mark.slow
def test_generated_datasets_take_options(tmp_path):
    tiny = "listops/min_length=10,max_length=30,num_train=20,num_validation=5,num_test=5,processes=1"
    loaded = load_examples(DataConfig(dataset=tiny, data_dir=str(tmp_path)), BYTES, "train")
    assert (len(loaded), loaded.num_classes) == (20, 10)
    assert 10 < min(loaded.columns["inputs"].lengths) <= max(loaded.columns["inputs"].lengths) < 30
    drawn = DataConfig(dataset="pathfinder/num_examples=10,processes=1", data_dir=str(tmp_path))
    loaded = load_examples(drawn, BYTES, "train")
    assert [(len(example["inputs"]), loaded.num_classes) for example in loaded] == [(1024, 2)] * 8


@pytest.mark.slow
def test_grey_keeps_what_is_grey_and_weighs_colours():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(image_bytes(np.stack([levels] * 3, -1)[None], grey=True), levels)
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert image_bytes(colours, grey=True).tolist() == [76, 149, 29]  # 0.2989, 0.587 and 0.114 of 255.5, cut
    assert image_bytes(colours, grey=False).tolist() == [255, 0, 0, 0, 255, 0, 0, 0, 255]
