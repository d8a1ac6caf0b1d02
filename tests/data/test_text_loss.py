"""Tokenizers that lose text: the share of it is known, said, and stands beside the scores."""

import json

import numpy as np
import pytest
import sentencepiece
import tokenizers

from tests.data.test_tokenizers import byte_level_bpe
from tests.training.small_config import small_config
from transnormer_jax.data import DataConfig, TokenizedDocuments, load_split, load_tokenizer
from transnormer_jax.data.text_loss import share_of_text_lost
from transnormer_jax.training import Config, train
from transnormer_jax.training.evaluate import evaluate_run

ENGLISH = "some plain words to train on, and a few more of them"
CHINESE = "道可道非常道名可名非常名"


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vocabularies")
    (directory / "t.txt").write_text(f"{ENGLISH}\n" * 9)
    common = {"input": str(directory / "t.txt"), "vocab_size": 60, "minloglevel": 2, "hard_vocab_limit": False}
    for name, options in {"none": {}, "fallback": {"byte_fallback": True, "vocab_size": 320}}.items():
        sentencepiece.SentencePieceTrainer.train(model_prefix=str(directory / name), **common | options)
    byte_level_bpe().save(str(directory / "bpe.json"))
    words = {word: i for i, word in enumerate(["[UNK]", "</s>", *ENGLISH.replace(",", "").split()])}
    word_level = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    word_level.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    word_level.save(str(directory / "words.json"))
    return directory


def documents(tmp_path, text, tokenizer):
    (tmp_path / "text.txt").write_text("\n".join([text] * 20), encoding="utf-8")
    config = DataConfig(
        "plain_text", files=str(tmp_path / "text.txt"), documents="line", data_dir=str(tmp_path / "d"), held_out=0.0
    )
    return load_split(config, tokenizer, "train")


@pytest.mark.parametrize(
    ("name", "text", "least", "most"),
    [
        ("bytes", CHINESE, 0, 0),
        ("bpe.json", CHINESE, 0, 0),
        ("fallback.model", CHINESE + ENGLISH, 0, 0),
        ("none.model", ENGLISH, 0, 0),
        ("none.model", CHINESE, 1, 1),
        ("none.model", CHINESE + " " + ENGLISH, 0.35, 0.45),  # 36 of 89 bytes
        ("none.model", "a  few   more", 0.2, 0.25),  # 3 spaces of 13 bytes
        ("words.json", CHINESE, 1, 1),
    ],
)
def test_the_share_is_that_of_the_bytes_that_do_not_come_back(vocabularies, tmp_path, name, text, least, most):
    tokenizer = load_tokenizer(name if name == "bytes" else str(vocabularies / name))
    assert least <= share_of_text_lost(documents(tmp_path, text, tokenizer), tokenizer) <= most


@pytest.mark.slow
def test_scores_say_how_much_they_do_not_tell_of(vocabularies, tmp_path, capsys):
    (tmp_path / "chinese.txt").write_text("".join(f"{CHINESE} {i}\n" for i in range(200)), encoding="utf-8")
    config = small_config(tmp_path, vocab_size=64)
    config.data.files, config.data.tokenizer = str(tmp_path / "chinese.txt"), str(vocabularies / "none.model")
    config.num_steps = config.checkpoint_every = 4
    result = train(Config.from_dict(config.to_dict()), tmp_path / "run")
    assert "warning: the tokenizer loses" in capsys.readouterr().out
    assert result["text_lost"] > 0.8
    assert evaluate_run(tmp_path / "run")["text_lost"] == result["text_lost"]
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["text_lost"] == result["text_lost"]


def test_a_document_that_grows_does_not_hide_one_that_is_lost():
    class Doubling:
        unknown_id = 0

        def decode(self, ids):
            return "ab" * len(ids)

    tokens = np.array([1] * 10 + [0] * 10, np.uint16)
    sizes = np.array([10, 10])
    documents = TokenizedDocuments([tokens], sizes, sizes, np.arange(2, dtype=np.uint64))
    assert share_of_text_lost(documents, Doubling()) == 0.5
