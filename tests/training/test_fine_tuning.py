"""Supervised fine-tuning: answers are learnt, questions are not, and the chat of the server opens the learnt turn."""

import json

import numpy as np
import pytest

from tests.data.chat_templates import FAMILIES, save_tokenizer
from tests.training.small_config import small_config
from transnormer_jax.data import RELEASED_TEMPLATE, ChatTemplate
from transnormer_jax.errors import UserError
from transnormer_jax.inference import ContinuousBatch, Request
from transnormer_jax.training import Config, load_workdir, train

TOOLS = [{"type": "function", "function": {"name": "last"}}]


def question(word):
    return [{"role": "user", "content": word}]


@pytest.fixture(scope="module")
def words():
    """A letter of four and three digits; the last 24 are held out."""
    draw = np.random.default_rng(0)
    return [f"{chr(draw.integers(97, 101))}{draw.integers(100, 1000)}" for _ in range(1024)]


@pytest.fixture
def config(tmp_path, words):
    lines = [
        json.dumps({"messages": [*question(word), {"role": "assistant", "content": word[0] * 3}], "tools": TOOLS})
        for word in words[:-24]
    ]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    config = small_config(tmp_path, model_dim=64, glu_dim=128, vocab_size=288)
    config.task.name = "supervised_lm"
    config.data.files, config.data.documents = str(tmp_path / "talk.jsonl"), "conversation"
    config.num_steps, config.batch_size, config.sequence_length = 200, 8, 128
    config.log_every = config.checkpoint_every = 200
    config.optimizer.warmup_steps = 20
    return config


@pytest.mark.slow
@pytest.mark.usefixtures("optimized", "on_one_device")
@pytest.mark.parametrize("family", [*FAMILIES, "released"])
def test_answers_are_learnt_given_in_a_chat_and_end(family, config, words, tmp_path):
    if family != "released":  # that of a tokenizer which has none
        config.data.tokenizer = save_tokenizer(tmp_path)
        (tmp_path / "chat_template.jinja").write_text(FAMILIES[family])
    result = train(Config.from_dict(config.to_dict()), tmp_path / "run")
    assert "bits_per_byte" not in result
    run = load_workdir(tmp_path / "run")
    template = ChatTemplate(FAMILIES.get(family, RELEASED_TEMPLATE), run.tokenizer)
    batch = ContinuousBatch(run.model_config, run.params, vocab_size=run.tokenizer.vocab_size, slots=24)
    answers = {}
    for word in words[-24:]:
        prompt = [run.tokenizer.bos_id, *template.encode(question(word), reply=True, tools=TOOLS).tokens]
        answers[batch.submit(Request(prompt, max_new_tokens=32))] = (word, [])
    while not batch.idle:
        for news in batch.step():
            answers[news.request][1].extend(scored.token for scored in news.tokens)
    right = 0
    for word, tokens in answers.values():
        end = next((i for i, token in enumerate(tokens) if token in template.end_ids), -1)
        answer = run.tokenizer.decode(tokens[:end]).removeprefix("<think>\n\n</think>").strip()
        right += end >= 0 and answer == word[0] * 3
    assert right >= 22


def test_other_data_are_refused(config, tmp_path):
    config.data.documents = "line"
    with pytest.raises(UserError, match="learns from one dataset of conversations"):
        train(Config.from_dict(config.to_dict()), tmp_path / "run")
