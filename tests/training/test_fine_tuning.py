"""Supervised fine-tuning: answers are learnt, questions are not, and the chat of the server opens the learnt turn."""

import json

import numpy as np
import pytest

from transnormer_jax.data import RELEASED_TEMPLATE, ChatTemplate
from transnormer_jax.errors import UserError
from transnormer_jax.inference import Generator
from transnormer_jax.training import Config, default_config, load_workdir, train


@pytest.fixture
def config(tmp_path):
    draw = np.random.default_rng(0)
    # Questions without any law, and answers that repeat their last letter.
    letters = ["".join(chr(97 + c) for c in draw.integers(0, 26, 12)) for _ in range(2000)]
    lines = [json.dumps({"prompt": text, "response": text[-1] * 3}) for text in letters]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    config = default_config(
        vocab_size=259, num_layers=2, model_dim=64, num_heads=2, glu_dim=128, dtype="float32", init_std=0.1
    )
    config.task.name = "supervised_lm"
    config.data.dataset, config.data.files = "plain_text", str(tmp_path / "talk.jsonl")
    config.data.documents, config.data.held_out = "conversation", 0.1
    config.data.data_dir = str(tmp_path / "datasets")
    config.num_steps, config.batch_size, config.sequence_length = 300, 16, 128
    config.log_every = config.checkpoint_every = 150
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-2, 10
    config.evaluation.every, config.evaluation.batch_size = 0, 8
    return config


@pytest.mark.slow
def test_answers_are_learnt_and_given_in_a_chat(config, tmp_path):
    result = train(Config.from_dict(config.to_dict()), tmp_path / "run")
    # Over whole texts it could not be below 12 letters of log 26 nats each, out of 33 tokens.
    assert result["loss"] < 0.3
    assert "bits_per_byte" not in result
    run = load_workdir(tmp_path / "run")
    template = ChatTemplate(RELEASED_TEMPLATE, run.tokenizer)
    generator = Generator(run.model_config, run.params, run.tokenizer)
    prompt = run.tokenizer.decode(template.encode([{"role": "user", "content": "qwertyuiopaz"}], reply=True).tokens)
    assert generator.generate([prompt], max_new_tokens=10) == ["zzz"]


def test_other_data_are_refused(config, tmp_path):
    config.data.documents = "line"
    with pytest.raises(UserError, match="learns from one dataset of conversations"):
        train(Config.from_dict(config.to_dict()), tmp_path / "run")
