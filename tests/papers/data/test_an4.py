import numpy as np
import pytest

from tests.papers.data.local_files import read, unpack, write_speech
from transnormer_jax.data import ByteTokenizer, DataConfig
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data import load_examples
from transnormer_jax.papers.data.an4 import An4Files, read_mfcc
from transnormer_jax.papers.data.encoding import frame_statistics

# Of the whole dictionary: AE is in the second way to say YES, which no transcript takes.
PHONES = ["AE", "EH", "G", "OW", "S", "Y"]


def test_utterances_and_their_phones(tmp_path):
    cepstra = write_speech(tmp_path / "an4")
    builder = An4Files.at("an4", str(tmp_path), str(tmp_path / "data"))
    assert builder.info.features["phones"].feature.names[1:] == PHONES
    splits = read(builder)
    assert [example["phones"] for example in splits["train"]] == [
        ["G", "OW"],
        ["Y", "EH", "S"],
        ["G", "OW", "Y", "EH", "S"],
    ]
    for example in splits["train"] + splits["test"]:
        np.testing.assert_array_equal(example["mfcc"], cepstra[example["id"]])


def test_a_coefficient_that_never_changes_is_divided_by_1():
    frames = np.array([[0.1, 1.0], [0.1, 3.0], [0.1, 2.0]])
    mean, deviation = frame_statistics([frames[:1], frames[1:]])
    np.testing.assert_allclose(mean, [0.1, 2.0])
    np.testing.assert_allclose(deviation, [1.0, np.sqrt(2 / 3)])


def test_frames_are_normalised_by_the_training_split_alone(tmp_path):
    cepstra = write_speech(tmp_path)
    config = DataConfig(dataset="an4", files=str(tmp_path), data_dir=str(tmp_path / "data"))
    train = load_examples(config, ByteTokenizer(), "train")
    frames = np.concatenate([example["inputs"] for example in train])
    np.testing.assert_allclose(frames.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(frames.std(0), 1, atol=1e-6)
    (example,) = load_examples(config, ByteTokenizer(), "test")
    recorded = np.concatenate([cepstra[f"train{i}"] for i in range(3)])
    np.testing.assert_allclose(
        example["inputs"], (cepstra["test0"] - recorded.mean(0)) / recorded.std(0), rtol=1e-5, atol=1e-5
    )
    assert example["labels"].tolist() == [PHONES.index(phone) + 1 for phone in ("Y", "EH", "S", "G", "OW")]
    assert example["inputs"].dtype == np.float32
    assert (train.num_classes, train.vocab_size) == (7, None)


def test_a_cut_or_missing_file_is_the_users_error(tmp_path):
    write_speech(tmp_path)
    path = tmp_path / "feat" / "test" / "test0.mfc"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="is cut or no file of cepstra"):
        read_mfcc(path)
    path.unlink()
    with pytest.raises(UserError, match=r"no '.*test0.mfc': give the directory with all files of AN4"):
        An4Files.at("an4", str(tmp_path), str(tmp_path / "data"))


@pytest.mark.slow
def test_an4_is_complete(tmp_path):
    unpack("an4_mfcc.tar.xz", tmp_path)
    builder = An4Files.at("an4", str(tmp_path / "an4_mfcc"), str(tmp_path / "data"))
    splits = read(builder)
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 948, "test": 130}
    frames = sum(len(example["mfcc"]) for examples in splits.values() for example in examples)
    assert 47 * 6000 < frames < 49 * 6000  # 48 minutes at 100 frames a second
    assert splits["train"][0]["text"] == "YES"
    assert splits["train"][0]["phones"] == ["Y", "EH", "S"]
    assert builder.info.features["phones"].feature.num_classes == 1 + 33
