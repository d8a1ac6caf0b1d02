"""The measurements of the data pipeline, on little text."""

import json
import random

import pytest

from benchmarks import data
from benchmarks.common import Record
from tests.benchmarks.runs import run_benchmark
from tests.cleaning.articles import article
from transnormer_jax.errors import UserError


@pytest.mark.slow
def test_preparing_and_reading_are_timed(tmp_path):
    chance = random.Random(0)
    file = tmp_path / "articles.jsonl"
    file.write_text("".join(json.dumps({"text": article(chance)}) + "\n" for _ in range(120)))
    settings = data.Settings(str(file), seconds=0.1)
    summary, record = run_benchmark(data, settings, tmp_path / "data.json", plot=False)
    assert summary["prepare"]["bytes"] > 50_000
    assert summary["prepare"]["megabytes_per_second"] > 0
    assert record["tokens_per_second"].keys() == {"1 threads", "2 threads"}


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="seconds is 0"):
        data.Settings("a.txt", seconds=0.0)
    with pytest.raises(UserError, match="nothing to tokenise: give --files"):
        data.run(data.Settings(), Record(tmp_path / "data.json", "", None))
