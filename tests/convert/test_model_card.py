"""The model card says what the run knows, and marks the rest."""

import dataclasses
import json

from transnormer_jax.convert.model_card import model_card
from transnormer_jax.training.config import Config
from transnormer_jax.training.workdir import write_config


def test_of_a_trained_run_it_has_training_and_evaluation(tmp_path):
    config = dataclasses.replace(Config(), batch_size=7, sequence_length=300)
    write_config(tmp_path, config)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "eval.json").write_text(
        json.dumps(
            {"step": 11, "dataset": "mine", "split": "test", "bits_per_byte": 1.23456, "bytes": 1234567, "loss": None}
        )
    )
    card = model_card(tmp_path, 11, 2_000_001)
    assert "2,000,001 parameters" in card
    assert "11 steps of 7 rows of 300 tokens (23,100 tokens)" in card
    assert "`python_source`" in card
    assert "| bits_per_byte | 1.2346 |" in card
    assert "| bytes | 1,234,567 |" in card
    assert "| loss | not finite |" in card
    assert "TODO" in card


def test_of_a_converted_model_it_has_no_training(tmp_path):
    write_config(tmp_path, Config())
    card = model_card(tmp_path, 0, 10)
    assert "steps of" not in card
    assert "not trained in this workdir" in card
    assert "fills this in" in card
