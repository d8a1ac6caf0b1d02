import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.inference.letters import CONFIG, Letters, log_probabilities
from transnormer_jax.errors import UserError
from transnormer_jax.inference import Generator, PromptState
from transnormer_jax.inference.text_stream import CONTEXT


@pytest.mark.slow
@pytest.mark.parametrize("length", [0, 3, 520])
def test_a_prefix_and_a_prompt_are_one_prompt(generator, tmp_path, length):
    prefix = "".join(chr(3 + (7 * i * i) % 250) for i in range(length))
    prompts, settings = ["The king", "", "y" * 600, "z"], {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9}
    generator.read(prefix).save(tmp_path / "state")
    state = PromptState.load(tmp_path / "state")
    assert state.num_tokens == 1 + length
    assert state.last_ids == tuple(map(ord, prefix))[-CONTEXT:]  # for tokenizers whose text depends on them
    expected = generator.generate([prefix + prompt for prompt in prompts], **settings)
    for _ in range(2):  # A prefix can be used again.
        assert generator.generate(prompts, **settings, prefix=state) == expected
    assert generator.read("The king", prefix=state).num_tokens == 9 + length


def test_the_file_does_not_grow_with_the_prompt(generator, tmp_path):
    for length in (1, 1023):
        generator.read("x" * length).save(tmp_path / str(length))
    short, long = ((tmp_path / str(length)).stat().st_size for length in (1, 1023))
    assert abs(long - short) < 200  # the last ids, as text


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(1, 7, 0, 30), (520, 3, 0, 0), (0, 0, 0, 0)])
def test_log_probabilities_are_those_of_one_pass(generator, params, lengths):
    draw = np.random.default_rng(0)
    texts = ["".join(map(chr, draw.integers(3, 259, length))) for length in lengths]
    for text, scores in zip(texts, generator.log_probabilities(texts), strict=True):
        row = np.array([[1, *map(ord, text)]])
        expected = log_probabilities(params, row)[0, :-1]
        np.testing.assert_array_equal(scores.tokens, row[0, 1:])
        np.testing.assert_allclose(scores.log_probs, expected[np.arange(len(text)), row[0, 1:]], atol=2e-5)
        np.testing.assert_array_equal(scores.likeliest, expected.argmax(axis=-1) == row[0, 1:])


@pytest.mark.slow
def test_greedy_text_is_likeliest_everywhere(generator):
    [text] = generator.generate(["The king"], max_new_tokens=20)
    [scores, other] = generator.log_probabilities([text, text[1:]], prefix=generator.read("The king"))
    assert scores.likeliest.all()
    assert not other.likeliest[0]


def test_the_state_of_another_model_is_refused(generator, params):
    other = Generator(CONFIG, jax.tree.map(lambda x: x + 0.01, params), Letters())
    with pytest.raises(UserError, match="read by another model"):
        generator.generate(["x"], prefix=other.read("The king"))


@pytest.mark.slow
def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read a prompt's state"):
        PromptState.load(tmp_path / "missing")
    (tmp_path / "text").write_text("text")
    with pytest.raises(UserError, match="cannot read a prompt's state"):
        PromptState.load(tmp_path / "text")
    save_file({"x": np.zeros(3)}, tmp_path / "tensors")
    with pytest.raises(UserError, match="holds no prompt's state"):
        PromptState.load(tmp_path / "tensors")
