"""The measurements of the data pipeline, on little text."""

import json
import random

import pytest

from benchmarks import data
from tests.cleaning.articles import article
from transnormer_jax.errors import UserError


@pytest.fixture
def articles(tmp_path):
    chance = random.Random(0)
    file = tmp_path / "articles.jsonl"
    file.write_text("".join(json.dumps({"text": article(chance)}) + "\n" for _ in range(120)))
    return str(file)


@pytest.mark.slow
def test_preparing_is_timed_and_killed(articles, tmp_path):
    output = tmp_path / "data.json"
    settings = data.Settings(articles, kills=1, seconds=0.1, mixture=(f"{articles}:file:1",), mixture_tokens=1000)
    summary = data.run(settings, output, "command")
    assert summary["killed"]["same_files"]
    assert summary["prepare"]["bytes"] > 50_000
    assert summary["mixture"]["shares"] == {"articles.jsonl": 1.0}
    assert json.loads(output.read_text())["prepare"] == summary["prepare"]


@pytest.mark.slow
def test_what_is_planted_is_judged(articles, tmp_path):
    cleaning = pytest.importorskip("benchmarks.cleaning", reason="needs the extra `cleaning`", exc_type=ImportError)
    settings = cleaning.Settings(articles, held_out=10, near_duplicates=20, rubbish=10, num_steps=0, workers=1)
    summary = cleaning.run(settings, tmp_path / "cleaning.json", "command")
    assert summary["recall_below_5_percent"] == 1
    assert summary["precision"] == 1
    assert summary["rubbish_removed"] == 1
    assert summary["originals"] == 110


def test_mistakes_are_one_sentence(articles, tmp_path):
    with pytest.raises(UserError, match="give PATH:DOCUMENTS:WEIGHT"):
        data.Settings(articles, mixture=("a.txt:line",))
    with pytest.raises(UserError, match="seconds and mixture_tokens positive"):
        data.Settings(articles, seconds=0.0)
    cleaning = pytest.importorskip("benchmarks.cleaning", reason="needs the extra `cleaning`", exc_type=ImportError)
    with pytest.raises(UserError, match="cut is not between 0 and 1"):
        cleaning.Settings(articles, cut=1.0)
    with pytest.raises(UserError, match="give more text, or plant fewer than 2000 near_duplicates"):
        cleaning.run(cleaning.Settings(articles, held_out=10), tmp_path / "cleaning.json", "command")
