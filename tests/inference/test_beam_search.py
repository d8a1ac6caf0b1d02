import itertools

import numpy as np
import pytest

from tests.inference.letters import CONFIG, Letters, log_probabilities
from transnormer_jax.errors import UserError
from transnormer_jax.inference import Generator

EOS = 2


@pytest.fixture(scope="module")
def small(params):
    """Of four tokens, one of them the end."""
    return Generator(CONFIG, params, Letters(EOS, vocab_size=4))


def all_texts(params, prompt, length, length_penalty):
    """Every continuation by the four tokens that ends or has `length` tokens, best first: (text, score)."""
    rows = np.array(list(itertools.product(range(4), repeat=length)))
    begun = [1, *map(ord, prompt)]
    whole = np.concatenate([np.tile(begun, (len(rows), 1)), rows], axis=1)
    logits = log_probabilities(params, whole)[:, len(begun) - 1 : -1, :4]
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    found = {}
    for row, log_prob in zip(rows.tolist(), log_probs, strict=True):
        count = row.index(EOS) + 1 if EOS in row else length
        score = sum(log_prob[i, row[i]] for i in range(count)) / count**length_penalty
        found[tuple(row[:count])] = ("".join(chr(i) for i in row[:count] if i != EOS), score)
    return sorted(found.values(), key=lambda text: -text[1])


@pytest.mark.slow
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_finds_the_best_of_all_texts(params, small, length_penalty):
    [beams] = small.beam_search(["\x03\x01"], num_beams=200, max_new_tokens=4, length_penalty=length_penalty)
    expected = all_texts(params, "\x03\x01", 4, length_penalty)
    assert [beam.text for beam in beams] == [text for text, _ in expected[:200]]
    np.testing.assert_allclose([beam.score for beam in beams], [score for _, score in expected[:200]], rtol=1e-5)


@pytest.mark.slow
def test_a_beam_of_one_is_greedy(generator):
    prompts = ["The king", "", "x" * 700, "y"]
    [beams] = zip(*generator.beam_search(prompts, num_beams=1, max_new_tokens=20), strict=True)
    assert [beam.text for beam in beams] == generator.generate(prompts, max_new_tokens=20)


@pytest.mark.slow
def test_prompts_do_not_depend_on_each_other(params):
    generator = Generator(CONFIG, params, Letters(eos_id=70))
    prompts = ["The king", "x", "abc" * 9, ""]
    together = generator.beam_search(prompts, num_beams=3, max_new_tokens=12)
    for prompt, beams in zip(prompts, together, strict=True):
        [alone] = generator.beam_search([prompt], num_beams=3, max_new_tokens=12)
        assert [beam.text for beam in alone] == [beam.text for beam in beams]
        np.testing.assert_allclose([beam.score for beam in alone], [beam.score for beam in beams], rtol=1e-5)
        assert [beam.score for beam in beams] == sorted([beam.score for beam in beams], reverse=True)
        assert len({beam.text for beam in beams}) == 3


@pytest.mark.slow
def test_scores_are_the_log_probabilities_of_the_texts(generator):
    [beams] = generator.beam_search(["The king"], num_beams=3, max_new_tokens=15, length_penalty=0.0)
    scores = generator.log_probabilities([beam.text for beam in beams] + [""], prefix=generator.read("The king"))
    for beam, score in zip(beams, scores, strict=False):
        np.testing.assert_allclose(score.log_probs.sum(), beam.score, rtol=1e-5)


def test_without_prompts_or_beams(small):
    assert small.beam_search([]) == []
    with pytest.raises(UserError, match="num_beams is 0"):
        small.beam_search(["x"], num_beams=0)
