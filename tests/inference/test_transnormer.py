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

from tests.compiled import apply_of
from tests.inference.letters import Letters
from tests.serve.test_server import served
from transnormer_jax.data import ByteTokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.export import export_model
from transnormer_jax.inference import ContinuousBatch, Generator, PromptState, Request, quantize
from transnormer_jax.lm_eval.model import TransNormerHarness
from transnormer_jax.models import LanguageModel, TransNormerConfig
from transnormer_jax.run_flags import load_generator
from transnormer_jax.training.workdir import write_model

# Blocks of 8 tokens; logits that differ.
CONFIG = TransNormerConfig.preset("tiny", num_layers=4, scale_embedding=False)
MODEL = LanguageModel(CONFIG)
PROMPTS = ["The king of France", "x", "a much longer text than the others " * 20]


@pytest.fixture(scope="module")
def params():
    return jax.device_put(
        jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"], jax.devices()[0]
    )


@pytest.fixture(scope="module")
def generator(params):
    return Generator(CONFIG, params, Letters())


def log_probabilities(params, row: list[int]) -> np.ndarray:
    """The definition, one pass over the whole row: [N, V], after each token."""
    return np.asarray(jax.nn.log_softmax(apply_of(MODEL)({"params": params}, jnp.asarray([row])), axis=-1))[0]


def assert_likeliest(params, prompt: str, text: str) -> None:
    """Each token of the text is the likeliest one after those before it, but for rounding."""
    row = [1, *map(ord, prompt + text)]
    after = log_probabilities(params, row)[len(prompt) : -1]
    chosen = after[np.arange(len(text)), list(map(ord, text))]
    np.testing.assert_allclose(chosen, after.max(axis=-1), atol=1e-4)


def test_generation_writes_the_likeliest_tokens(params, generator):
    for prompt, text in zip(PROMPTS, generator.generate(PROMPTS, max_new_tokens=30), strict=True):
        assert len(text) == 30
        assert_likeliest(params, prompt, text)


def test_scores_are_those_of_one_pass(params, generator):
    for prompt, scores in zip(PROMPTS, generator.log_probabilities(PROMPTS), strict=True):
        row = [1, *map(ord, prompt)]
        expected = log_probabilities(params, row)[np.arange(len(prompt)), row[1:]]
        np.testing.assert_allclose(scores.log_probs, expected, atol=2e-4)


def test_a_saved_prompt_goes_on(generator, tmp_path):
    generator.read(PROMPTS[0]).save(tmp_path / "prompt")
    prefix = PromptState.load(tmp_path / "prompt")
    assert generator.generate([" and"], prefix=prefix) == generator.generate([PROMPTS[0] + " and"])


def test_requests_that_share_a_batch_are_as_alone(params, generator):
    batch = ContinuousBatch(CONFIG, params, vocab_size=259, slots=2)
    numbers = [batch.submit(Request(prompt=[1, *map(ord, prompt)], max_new_tokens=12)) for prompt in PROMPTS]
    tokens = {number: [] for number in numbers}
    while not batch.idle:
        for news in batch.step():
            tokens[news.request] += [token.token for token in news.tokens]
    texts = ["".join(map(chr, tokens[number])) for number in numbers]
    assert texts == generator.generate(PROMPTS, max_new_tokens=12)


def test_int8(params):
    quantized = quantize(params)
    assert {x.dtype for x in jax.tree.leaves(quantized) if x.ndim > 2 and x.shape[-1] > 16} == {jnp.dtype("int8")}
    [text] = Generator(CONFIG, quantized, Letters()).generate(PROMPTS[:1], max_new_tokens=12)
    assert_likeliest(quantized, PROMPTS[0], text)


@pytest.mark.slow
def test_the_server_gives_the_texts_of_the_generator(params):
    expected = Generator(CONFIG, params, ByteTokenizer()).generate(PROMPTS, max_new_tokens=12)
    with served(params, config=CONFIG) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = client.completions.create(model="tiny", prompt=PROMPTS, max_tokens=12, temperature=0)
    assert [choice.text for choice in answer.choices] == expected


def test_the_harness_scores_continuations(params):
    harness = TransNormerHarness(Generator(CONFIG, params, ByteTokenizer()), batch_size=2)
    arguments = ("The king", " of France")
    [(score, _)] = harness.loglikelihood([Instance("loglikelihood", {}, arguments, 0)])
    row = [1, *ByteTokenizer().encode("".join(arguments))]
    after = log_probabilities(params, row)[np.arange(len(row) - 1), row[1:]]
    np.testing.assert_allclose(score, after[-len(arguments[1]) :].sum(), rtol=1e-4)


def test_exported_programs_go_on_as_the_model(params, tmp_path):
    export_model(Generator(CONFIG, params, Letters()), tmp_path / "exported", window=32)
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
    logits = apply_of(MODEL)({"params": params}, jnp.asarray([row]))[:, -1]
    np.testing.assert_allclose(cache["logits"], logits, atol=1e-4 * float(jnp.abs(logits).max()))


def test_a_run_is_read_from_its_directory(params, tmp_path, generator):
    write_model(tmp_path / "run", CONFIG, params)
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    content["data"]["tokenizer"] = "bytes"
    (tmp_path / "run" / "config.json").write_text(json.dumps(content))
    texts = load_generator(tmp_path / "run").generate(PROMPTS[:1])
    assert texts == Generator(CONFIG, params, ByteTokenizer()).generate(PROMPTS[:1])


def test_attention_to_all_tokens_has_no_state_to_generate_from(params):
    config = TransNormerConfig.preset("tiny", attention="softmax")
    for make in (lambda: Generator(config, {}, Letters()), lambda: ContinuousBatch(config, {}, vocab_size=259)):
        with pytest.raises(UserError, match="attention softmax has no state of constant size"):
            make()
