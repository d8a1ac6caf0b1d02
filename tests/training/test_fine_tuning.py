"""Supervised fine-tuning: answers are learnt, questions are not, and the chat of the server opens the learnt turn."""

import json

import numpy as np
import pytest

from tests.training.small_config import small_config
from transnormer_jax.data import RELEASED_TEMPLATE, ChatTemplate
from transnormer_jax.errors import UserError
from transnormer_jax.inference import Generator
from transnormer_jax.training import Config, load_workdir, train


@pytest.fixture
def config(tmp_path):
    draw = np.random.default_rng(0)
    # Questions without any law, and answers that repeat their last letter.
    letters = ["".join(chr(97 + c) for c in draw.integers(0, 26, 12)) for _ in range(2000)]
    lines = [json.dumps({"prompt": text, "response": text[-1] * 3}) for text in letters]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    config = small_config(tmp_path, model_dim=64, glu_dim=128)
    config.task.name = "supervised_lm"
    config.data.files, config.data.documents = str(tmp_path / "talk.jsonl"), "conversation"
    config.num_steps, config.batch_size, config.sequence_length = 300, 8, 128
    config.log_every = config.checkpoint_every = 150
    config.optimizer.warmup_steps = 10
    return config


@pytest.mark.slow
@pytest.mark.usefixtures("optimized", "on_one_device")
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
