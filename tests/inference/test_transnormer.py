"""TransNormer generates, is served, scored, rounded and exported by the code that serves TransNormerLLM."""

import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import openai
import pytest
from lm_eval.api.instance import Instance
from safetensors.numpy import load_file

from tests.compiled import apply_of, random_params
from tests.inference.letters import Letters, log_probabilities
from tests.serve.server import served
from tests.tiny_run import write_run
from transnormer_jax.data import ByteTokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.export import export_model
from transnormer_jax.inference import ContinuousBatch, Generator, PromptState, Request, quantize
from transnormer_jax.lm_eval.model import TransNormerHarness
from transnormer_jax.models import LanguageModel, TransNormerConfig
from transnormer_jax.run_flags import load_generator

# One layer of blocks of 8 tokens, and one of linear attention.
CONFIG = TransNormerConfig.preset("tiny", scale_embedding=False)
MODEL = LanguageModel(CONFIG)
PROMPTS = ["The king of France", "x", "the others"]


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL)


@pytest.fixture(scope="module")
def generator(params):
    return Generator(CONFIG, params, ByteTokenizer())


def log_probs(params, prompt: str, text: str) -> np.ndarray:
    """The definition, one pass over prompt and text: [len(text), V], each before the token of the text."""
    tokens = np.array([[1, *ByteTokenizer().encode(prompt + text)]])
    return log_probabilities(params, tokens, MODEL)[0, len(ByteTokenizer().encode(prompt)) : -1]


def assert_likeliest(params, prompt: str, tokens: list[int]) -> None:
    """Each token is the likeliest one after the prompt and those before it, but for rounding."""
    row = np.array([[1, *map(ord, prompt), *tokens]])
    after = log_probabilities(params, row, MODEL)[0, len(prompt) : -1]
    np.testing.assert_allclose(after[np.arange(len(tokens)), tokens], after.max(axis=-1), atol=1e-4)


@pytest.mark.slow
def test_generation_writes_the_likeliest_tokens(params):
    """One prompt ends in the second window."""
    prompts = [*PROMPTS[:2], "a longer text " * 38]
    for prompt, text in zip(
        prompts, Generator(CONFIG, params, Letters()).generate(prompts, max_new_tokens=12), strict=True
    ):
        assert len(text) == 12
        assert_likeliest(params, prompt, list(map(ord, text)))


@pytest.mark.slow
def test_scores_are_those_of_one_pass(params, generator):
    """Those of texts, and of continuations that the harness asks for."""
    harness = TransNormerHarness(generator, batch_size=3)
    requests = [Instance("loglikelihood", {}, (prompt, " of"), i) for i, prompt in enumerate(PROMPTS)]
    for prompt, scores, (score, _) in zip(
        PROMPTS, generator.log_probabilities(PROMPTS), harness.loglikelihood(requests), strict=True
    ):
        ids = ByteTokenizer().encode(prompt + " of")
        expected = log_probs(params, "", prompt + " of")[np.arange(len(ids)), ids]
        np.testing.assert_allclose(scores.log_probs, expected[:-3], atol=2e-4)
        np.testing.assert_allclose(score, expected[-3:].sum(), rtol=1e-4)


@pytest.mark.slow
def test_a_saved_prompt_a_shared_batch_and_the_server_change_no_token(params, generator, tmp_path):
    expected = [generator.generate([prompt], max_new_tokens=12)[0] for prompt in PROMPTS]
    generator.read("The king").save(tmp_path / "prompt")
    prefix = PromptState.load(tmp_path / "prompt")
    assert generator.generate([" of France"], max_new_tokens=12, prefix=prefix) == expected[:1]

    batch = ContinuousBatch(CONFIG, params, vocab_size=259, slots=2)
    prompts = [[1, *ByteTokenizer().encode(prompt)] for prompt in PROMPTS]
    tokens = {batch.submit(Request(prompt=prompt, max_new_tokens=12)): [] for prompt in prompts}
    while not batch.idle:
        for news in batch.step():
            tokens[news.request] += [token.token for token in news.tokens]
    assert [ByteTokenizer().decode(written) for written in tokens.values()] == expected

    with (
        served(params, config=CONFIG, slots=2) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        answer = client.completions.create(model="tiny", prompt=PROMPTS, max_tokens=12, temperature=0)
    assert [choice.text for choice in answer.choices] == expected

    write_run(tmp_path / "run", CONFIG, params)
    assert load_generator(tmp_path / "run").generate(PROMPTS[:1], max_new_tokens=12) == expected[:1]


@pytest.mark.slow
def test_int8(params):
    quantized = quantize(params)
    assert {x.dtype for x in jax.tree.leaves(quantized) if x.ndim > 2 and x.shape[-1] > 16} == {jnp.dtype("int8")}
    [text] = Generator(CONFIG, quantized, Letters()).generate(PROMPTS[:1], max_new_tokens=12)
    assert_likeliest(quantized, PROMPTS[0], list(map(ord, text)))


@pytest.mark.slow
def test_exported_programs_go_on_as_the_model(params, generator, tmp_path):
    export_model(generator, tmp_path / "exported", window=32)
    prefill, decode = (
        jax.export.deserialize(bytearray((tmp_path / "exported" / f"{name}.bin").read_bytes())).call
        for name in ("prefill", "decode")
    )
    manifest = json.loads((tmp_path / "exported" / "manifest.json").read_text())
    arrays = load_file(tmp_path / "exported" / "params.safetensors")
    cache = {
        name: jnp.zeros([1 if size == "batch" else int(size) for size in x["shape"]], x["dtype"])
        for name, x in manifest["cache"].items()
    }
    row = [1, *range(40, 60), 7, 8, 9]
    tokens, ids = np.zeros((2, 1, 32), np.int32)
    tokens[0, :21], ids[0, :21] = row[:21], 1
    cache = prefill(arrays, cache, tokens, ids)
    for token in row[21:]:
        cache = decode(arrays, cache, np.array([token], np.int32))
    tokens[0, :24] = row
    logits = apply_of(MODEL)({"params": params}, tokens)[:, 23]
    np.testing.assert_allclose(cache["logits"], logits, atol=1e-4 * float(jnp.abs(logits).max()))


def test_attention_to_all_tokens_has_no_state_to_generate_from():
    config = TransNormerConfig.preset("tiny", attention="softmax")
    for make in (lambda: Generator(config, {}, Letters()), lambda: ContinuousBatch(config, {}, vocab_size=259)):
        with pytest.raises(UserError, match="attention softmax has no state of constant size"):
            make()
