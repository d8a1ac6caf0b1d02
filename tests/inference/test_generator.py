import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import apply_of, compiled_programs, random_params
from tests.inference.letters import CONFIG, MODEL, Letters, log_probabilities
from transnormer_jax.errors import UserError
from transnormer_jax.inference import Generator
from transnormer_jax.inference.decoding import WINDOW, empty_state, prefill
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig

# Of the tests' prompts there are one or four, and texts of more than one block: other numbers would compile again.
PROMPTS = ["The king", "", "a much longer prompt than the others " * 20, "x"]


def greedy_by_full_passes(params, prompt, count):
    """The definition: a whole forward pass for each token."""
    row = [1, *map(ord, prompt)]
    for _ in range(count):
        row.append(int(np.argmax(log_probabilities(params, np.array([row]))[0, -1])))
    return "".join(map(chr, row[-count:]))


@pytest.mark.parametrize("length", [0, 31, *(pytest.param(n, marks=pytest.mark.slow) for n in (WINDOW - 1, WINDOW))])
def test_greedy_is_the_argmax_of_full_passes(generator, params, length):
    """With the begin token: the shortest window, a full one, the longest, and one more token."""
    prompt = "".join(chr(3 + (7 * i * i) % 250) for i in range(length))
    assert generator.generate([prompt], max_new_tokens=20) == [greedy_by_full_passes(params, prompt, 20)]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 0.9, "top_k": 20, "top_p": 0.9}])
def test_no_prompt_depends_on_the_others(generator, settings):
    together = generator.generate(PROMPTS, max_new_tokens=24, **settings, seed=[5, 6, 7, 8])
    reversed_ = generator.generate(PROMPTS[::-1], max_new_tokens=24, **settings, seed=[8, 7, 6, 5])
    assert reversed_[::-1] == together
    for prompt, seed, text in zip(PROMPTS[:2], [5, 6], together[:2], strict=True):
        assert generator.generate([prompt], max_new_tokens=24, **settings, seed=seed) == [text]


def test_the_repetition_penalty_sees_prompt_and_output(generator):
    for prompt in ("abcdefgh" * 3, "x"):
        [text] = generator.generate([prompt], max_new_tokens=40, repetition_penalty=1e6)
        assert len(set(text)) == len(text)
        assert not set(prompt) & set(text)


@pytest.mark.slow
def test_the_repetition_penalty_does_not_see_padding(params):
    seen = prefill(MODEL, params, empty_state(MODEL, params, 2, 259), [[1, 5], [1, 6, 7, 6]]).seen
    assert [np.flatnonzero(row).tolist() for row in seen] == [[1, 5], [1, 6, 7]]


@pytest.mark.slow
def test_seeds(generator):
    prompts = ["The king"] * 4
    texts = generator.generate(prompts, temperature=1.0, seed=3)
    assert texts == generator.generate(prompts, temperature=1.0, seed=3)
    assert texts[1:2] == generator.generate(prompts[1:2], temperature=1.0, seed=4)
    assert texts[0] != texts[1]


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [4, 16])
def test_pieces_are_the_text(generator, block_size):
    settings = {"max_new_tokens": 21, "temperature": 1.0, "seed": 2}
    texts = generator.generate(PROMPTS, **settings)
    assert [len(text) for text in texts] == [21] * 4
    pieces = list(generator.stream(PROMPTS, **settings, block_size=block_size))
    assert len(pieces) == -(-21 // block_size)
    assert ["".join(column) for column in zip(*pieces, strict=True)] == texts

    stop = [texts[0][6:9]]
    stopped = generator.generate(PROMPTS, **settings, stop=stop)
    assert stopped[0] == texts[0].partition(stop[0])[0]
    pieces = list(generator.stream(PROMPTS, **settings, stop=stop, block_size=block_size))
    assert ["".join(column) for column in zip(*pieces, strict=True)] == stopped


def test_the_end_token_ends_a_text_and_the_generation(params, generator):
    [text] = generator.generate(["The king"], max_new_tokens=40, temperature=1.0)
    ends = Generator(CONFIG, params, Letters(eos_id=ord(text[5])))
    pieces = list(ends.stream(["The king"], max_new_tokens=1000, temperature=1.0, block_size=16))
    assert pieces == [[text[: text.index(text[5])]]]


@pytest.mark.slow
def test_rounding_the_parameters_beforehand_changes_no_logit():
    # The only norm that has scales and biases, which stay float32.
    config = TransNormerLLMConfig.preset("tiny", dtype="bfloat16", norm="layer_norm", use_bias=True)
    model = TransNormerLLM(config)
    params = random_params(model)
    rounded = Generator(config, params, Letters()).params
    assert rounded["embedding"].dtype == jnp.bfloat16
    logits, expected = (apply_of(model)({"params": tree}, jnp.arange(40)[None]) for tree in (rounded, params))
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.slow
def test_other_prompts_and_settings_compile_nothing(generator):
    def prompts(*lengths):
        return ["x" * length for length in lengths]

    generator.generate(prompts(2, 9, 9, 40), max_new_tokens=4)
    generator.generate(prompts(2, 9, 9, 400), max_new_tokens=4)
    with compiled_programs() as names:
        generator.generate(prompts(9, 1, 2, 60), max_new_tokens=50, temperature=0.5, top_k=3, seed=9)
        generator.generate(prompts(0, 1, 2, 3000), max_new_tokens=5, temperature=1, top_p=0.5, repetition_penalty=2)
    assert names == []


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
