"""A model judges the corpus that it is trained on: what surprises it most is cut."""

import gzip
import json
import random

import pytest

pytest.importorskip("datatrove")

from tests.training.small_config import small_config
from transnormer_jax.cleaning import self_cleaning
from transnormer_jax.cleaning.documents import read_shard, shards_of
from transnormer_jax.cleaning.self_cleaning import bits_per_byte, self_clean
from transnormer_jax.errors import UserError
from transnormer_jax.run_flags import load_generator
from transnormer_jax.training import Config


def write_shard(path, texts):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"text": text, "id": text[:9], "metadata": {}}) + "\n" for text in texts)


@pytest.mark.slow
@pytest.mark.usefixtures("on_one_device")
def test_what_surprises_the_model_is_cut(tmp_path):
    chance = random.Random(0)
    usual = [f"{i} and {i + 1} are {2 * i + 1}, which is more than {2 * i}." for i in range(300)]
    odd = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=50)) for _ in range(20)]
    mixed = usual + odd
    chance.shuffle(mixed)
    (tmp_path / "kept").mkdir()
    for number in range(2):
        write_shard(tmp_path / "kept" / f"{number:05}.jsonl.gz", mixed[number::2])
    config = Config.from_dict(small_config(tmp_path).to_dict())
    [report] = self_clean(tmp_path / "kept", tmp_path, config, rounds=1, cut=0.0625, max_tokens=64)
    assert (report["documents"], report["removed"]) == (320, 20)
    texts = {
        name: [record["text"] for shard in shards_of(tmp_path / "round_1" / name) for record in read_shard(shard)]
        for name in ("kept", "removed")
    }
    assert sorted(texts["removed"]) == sorted(odd)
    assert sorted(texts["kept"]) == sorted(usual)
    (tmp_path / "round_1" / "scores" / "00000.jsonl.gz.npy").unlink()  # a round that is finished is not made again
    assert self_clean(tmp_path / "kept", tmp_path, config, rounds=1, cut=0.0625, max_tokens=64) == [report]
    with pytest.raises(UserError, match="begun with other settings"):
        self_clean(tmp_path / "kept", tmp_path, config, rounds=1, cut=0.1, max_tokens=64)
    generator = load_generator(str(tmp_path / "round_1" / "model"))
    alone = bits_per_byte(generator, [odd[0]], 64)[0]
    together = bits_per_byte(generator, [*usual[:20], odd[0]], 64)
    assert together[-1] == pytest.approx(alone, rel=1e-5)
    assert together[:-1].max() < alone
    assert bits_per_byte(generator, [""], 64) == [0.0]


def test_a_judge_that_a_signal_stopped_judges_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(self_cleaning, "train", lambda config, workdir: None)
    with pytest.raises(UserError, match="a signal stopped the training of round 1"):
        self_clean(tmp_path / "kept", tmp_path, Config(), rounds=1, cut=0.1, max_tokens=64)


def test_a_share_is_between_0_and_1(tmp_path):
    with pytest.raises(UserError, match=r"cut is 1\.0: choose a share"):
        self_clean(tmp_path, tmp_path, Config(), rounds=1, cut=1.0, max_tokens=64)
