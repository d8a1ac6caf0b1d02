import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.inference.letters import CONFIG, MODEL, Letters, log_probabilities
from transnormer_jax.data import ByteTokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.inference import Generator
from transnormer_jax.inference.decoding import WINDOW, empty_state, prefill
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig


def greedy_by_full_passes(params, prompt, count):
    """The definition: a whole forward pass for each token. What stands after a token cannot influence it."""
    start = 1 + len(prompt)
    tokens = np.zeros((1, 64 if start + count <= 64 else 1408), np.int32)
    tokens[0, :start] = [1, *map(ord, prompt)]
    for place in range(start, start + count):
        tokens[0, place] = np.argmax(log_probabilities(params, tokens)[0, place - 1])
    return "".join(map(chr, tokens[0, start : start + count]))


@pytest.mark.parametrize("prompt", ["", "The king", "x" * 31, "y" * 32])
def test_greedy_is_the_argmax_of_full_passes(generator, params, prompt):
    assert generator.generate([prompt], max_new_tokens=20) == [greedy_by_full_passes(params, prompt, 20)]


@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, 2 * WINDOW + 300])
def test_windows_are_one_long_pass(generator, params, length):
    prompt = "".join(chr(3 + (7 * i * i) % 250) for i in range(length))
    assert generator.generate([prompt], max_new_tokens=5) == [greedy_by_full_passes(params, prompt, 5)]


PROMPTS = ["The king", "", "a much longer prompt than the others " * 20, "x"]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 0.9, "top_k": 20, "top_p": 0.9}])
def test_no_prompt_depends_on_the_others(generator, settings):
    together = generator.generate(PROMPTS, max_new_tokens=24, **settings, seed=[5, 6, 7, 8])
    reversed_ = generator.generate(PROMPTS[::-1], max_new_tokens=24, **settings, seed=[8, 7, 6, 5])
    assert reversed_[::-1] == together
    for prompt, seed, text in zip(PROMPTS[:2], [5, 6], together[:2], strict=True):
        assert generator.generate([prompt], max_new_tokens=24, **settings, seed=seed) == [text]


def test_the_repetition_penalty_sees_prompt_and_output(generator):
    texts = generator.generate(["abcdefgh" * 3, "x"], max_new_tokens=40, repetition_penalty=1e6)
    for prompt, text in zip(["abcdefgh", "x"], texts, strict=True):
        assert len(set(text)) == len(text)
        assert not set(prompt) & set(text)


def test_the_repetition_penalty_does_not_see_padding(params):
    seen = prefill(MODEL, params, empty_state(MODEL, params, 2, 259), [[1, 5], [1, 6, 7, 6]]).seen
    assert [np.flatnonzero(row).tolist() for row in seen] == [[1, 5], [1, 6, 7]]


def test_seeds(generator):
    prompts = ["The king"] * 2
    texts = generator.generate(prompts, temperature=1.0, seed=3)
    assert texts == generator.generate(prompts, temperature=1.0, seed=3)
    assert texts[1:] == generator.generate(prompts[1:], temperature=1.0, seed=4)
    assert texts[0] != texts[1]


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_pieces_are_the_text(generator, block_size):
    settings = {"max_new_tokens": 21, "temperature": 1.0, "seed": 2}
    texts = generator.generate(["The king", "x"], **settings)
    assert [len(text) for text in texts] == [21, 21]
    pieces = list(generator.stream(["The king", "x"], **settings, block_size=block_size))
    assert len(pieces) == -(-21 // block_size)
    assert ["".join(column) for column in zip(*pieces, strict=True)] == texts

    stop = [texts[0][6:9]]
    stopped = generator.generate(["The king", "x"], **settings, stop=stop)
    assert stopped[0] == texts[0].partition(stop[0])[0]
    pieces = list(generator.stream(["The king", "x"], **settings, stop=stop, block_size=block_size))
    assert ["".join(column) for column in zip(*pieces, strict=True)] == stopped


def test_the_end_token_ends_a_text_and_the_generation(params, generator):
    [text] = generator.generate(["The king"], max_new_tokens=40, temperature=1.0)
    ends = Generator(CONFIG, params, Letters(eos_id=ord(text[5])))
    pieces = list(ends.stream(["The king"], max_new_tokens=1000, temperature=1.0, block_size=16))
    assert pieces == [[text[: text.index(text[5])]]]


def test_tokens_that_the_tokenizer_does_not_know_are_never_drawn(params):
    [text] = Generator(CONFIG, params, Letters(vocab_size=100)).generate(["ab"], max_new_tokens=50, temperature=2.0)
    assert max(map(ord, text)) < 100


@pytest.mark.parametrize("norm", ["simple_rms_norm", "rms_norm", "layer_norm"])
def test_rounding_the_parameters_beforehand_changes_no_logit(norm):
    config = TransNormerLLMConfig.preset("tiny", dtype="bfloat16", norm=norm)
    params = jax.jit(TransNormerLLM(config).init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    # As after training, where no bias is zero and no scale one.
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    rounded = Generator(config, params, Letters()).params
    assert rounded["embedding"].dtype == jnp.bfloat16
    forward = jax.jit(TransNormerLLM(config).apply)
    logits, expected = (forward({"params": tree}, jnp.arange(40)[None]) for tree in (rounded, params))
    np.testing.assert_array_equal(logits, expected)


def test_other_prompts_and_settings_compile_nothing(generator):
    compiled = []

    def listen(event, duration, **details):
        if event.endswith("backend_compile_duration"):
            compiled.append(details.get("fun_name"))

    def lengths(*lengths):
        return ["x" * length for length in lengths]

    generator.generate(lengths(2, 40), max_new_tokens=4)
    generator.generate(lengths(2, 400), max_new_tokens=4)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        generator.generate(lengths(9, 60), max_new_tokens=50, temperature=0.5, top_k=3, seed=9)
        generator.generate(lengths(0, 3000), max_new_tokens=5, temperature=1, top_p=0.5, repetition_penalty=2)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_a_very_long_prompt(generator):
    [text] = generator.generate(["The king and the queen " * 1000], max_new_tokens=10)
    assert len(text) == 10


def test_bytes(params):
    [text] = Generator(CONFIG, params, ByteTokenizer()).generate(["Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n"])
    assert isinstance(text, str)


def test_no_prompts_no_texts(generator):
    assert generator.generate([]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": "text"}, r"prompts is one string: give a list, \['text'\]"),
        ({"stop": "end"}, "stop is one string"),
        ({"stop": [""]}, "stop holds an empty string"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": [2**32]}, "seed is"),
    ],
)
def test_arguments_without_meaning_are_refused(generator, arguments, message):
    with pytest.raises(UserError, match=message):
        generator.generate(**{"prompts": ["text"]} | arguments)


def test_stream_refuses_before_the_first_piece(generator):
    with pytest.raises(UserError, match="block_size is 0"):
        generator.stream(["text"], block_size=0)


def test_a_tokenizer_larger_than_the_model_is_refused(params):
    with pytest.raises(UserError, match="the tokenizer has 300 tokens, the model 259"):
        Generator(CONFIG, params, Letters(vocab_size=300))
