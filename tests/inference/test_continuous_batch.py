import random

import numpy as np
import pytest

from tests.compiled import compiled_programs
from tests.inference.letters import CONFIG, Letters, log_probabilities
from transnormer_jax.errors import UserError
from transnormer_jax.inference import ContinuousBatch, Request, SamplingSettings, continuous_batch


def make_batch(params, **options):
    return ContinuousBatch(CONFIG, params, vocab_size=259, **options)


def run(batch, *requests):
    """The tokens and the scores of the prompt of each request."""
    numbers = [batch.submit(request) for request in requests]
    written, prompts = ({number: [] for number in numbers} for _ in range(2))
    while not batch.idle:
        for news in batch.step():
            written[news.request] += news.tokens
            prompts[news.request] += news.prompt
    return [written[number] for number in numbers], [prompts[number] for number in numbers]


def tokens(scores):
    return [token for token, *_ in scores]


def random_requests(count):
    draw = random.Random(0)
    system = [draw.randrange(3, 259) for _ in range(1024)]
    for seed in range(count):
        kind = draw.random()
        own = [draw.randrange(3, 259) for _ in range(draw.randrange(1, 40 if kind < 0.8 else 1300))]
        settings = draw.choice(
            [
                SamplingSettings(temperature=0.0),
                SamplingSettings(),
                SamplingSettings(temperature=0.7, top_k=30, top_p=0.9),
                SamplingSettings(repetition_penalty=1.3),
            ]
        )
        yield Request(
            prompt=[1, *(system if 0.7 < kind < 0.8 else []), *own],
            max_new_tokens=draw.randrange(1, 30),
            settings=settings,
            seed=seed,
            top_log_probs=draw.choice([0, 0, 3]),
        )


@pytest.mark.slow
def test_48_requests_get_the_tokens_that_they_get_alone(params):
    """Each of the 8 slots serves several, one after the other, and each kind of request comes more than once."""
    requests = list(random_requests(48))
    draw = random.Random(1)
    batch = make_batch(params, prefix_cache=4)
    left, numbers, written, most = requests[::-1], [], {}, 0
    while left or not batch.idle:
        for _ in range(min(len(left), draw.choice([0, 0, 1, 5]))):
            number = batch.submit(left.pop())
            numbers.append(number)
            written[number] = []
        for news in batch.step():
            written[news.request] += news.tokens
        most = max(most, batch.running)
    assert most == 8

    alone = make_batch(params, prefix_cache=0)
    for number, request in zip(numbers, requests, strict=True):
        [[expected], _] = run(alone, request)
        assert tokens(written[number]) == tokens(expected)
        assert len(expected) == request.max_new_tokens
        assert [len(score.top) for score in written[number]] == [request.top_log_probs] * len(expected)


@pytest.mark.slow
def test_the_text_is_that_of_the_generator(params, generator):
    prompts = ["The king", "x" * 530, "", "y"]
    texts = generator.generate(prompts, max_new_tokens=21, temperature=1.0, seed=5)
    requests = [
        Request([1, *map(ord, prompt)], 21, SamplingSettings(), seed)
        for prompt, seed in zip(prompts, [5, 6, 7, 8], strict=True)
    ]
    written, _ = run(make_batch(params), *requests)
    assert [Letters().decode(tokens(scores)) for scores in written] == texts


@pytest.mark.slow
@pytest.mark.parametrize("length", [5, pytest.param(530, marks=pytest.mark.slow)])
def test_log_probabilities_are_those_of_one_pass(params, length):
    prompt = [1, *np.random.default_rng(0).integers(3, 259, length - 1).tolist()]
    settings = SamplingSettings(temperature=0.5, top_k=4)
    request = Request(prompt, 9, settings, top_log_probs=5, prompt_log_probs=True)
    [[of_text], [of_prompt]] = run(make_batch(params), request)
    row = prompt + tokens(of_text)
    assert tokens(of_prompt) == prompt[1:]
    expected = log_probabilities(params, np.array([row]))[0]
    for i, score in enumerate(of_prompt + of_text):
        np.testing.assert_allclose(score.log_prob, expected[i, row[i + 1]], atol=2e-5)
        top_tokens, top_log_probs = zip(*score.top, strict=True)
        np.testing.assert_allclose(top_log_probs, np.sort(expected[i])[::-1][:5], atol=2e-5)
        np.testing.assert_allclose(expected[i, list(top_tokens)], top_log_probs, atol=2e-5)


@pytest.mark.slow
def test_a_cancelled_request_frees_its_slot_and_changes_nothing_else(params):
    requests = [Request([1, 40 + i], 40, SamplingSettings(), seed=i) for i in range(4)]
    [expected, _] = run(make_batch(params, slots=2), *requests)

    batch = make_batch(params, slots=2)
    numbers = [batch.submit(request) for request in requests]
    written = {number: [] for number in numbers}
    for news in batch.step():
        written[news.request] += news.tokens
    assert (batch.running, batch.waiting) == (2, 2)
    batch.cancel(numbers[0])
    batch.cancel(numbers[3])
    assert (batch.running, batch.waiting) == (1, 1)
    while not batch.idle:
        for news in batch.step():
            written[news.request] += news.tokens
    batch.cancel(numbers[1])
    assert [len(written[number]) for number in numbers] == [4, 40, 40, 0]
    for i in (1, 2):
        assert tokens(written[numbers[i]]) == tokens(expected[i])


@pytest.mark.slow
def test_what_prompts_have_in_common_is_read_once(params, monkeypatch):
    widths = []

    def count(*arguments):
        widths.append(arguments[3].shape[1])
        return read(*arguments)

    read = continuous_batch.read
    monkeypatch.setattr(continuous_batch, "read", count)
    common = [1, *range(3, 3 + 250)] * 5
    requests = [Request([*common, 7, 8, 9 + i], 8) for i in range(3)]
    batch = make_batch(params)
    [written, _] = run(batch, *requests)
    assert widths == [512, 512, 256, 256, 256]
    [[exactly_known], _] = run(batch, Request(common[:1024], 8))
    assert len(widths) == 5
    [again, _] = run(make_batch(params, prefix_cache=0), *requests, Request(common[:1024], 8))
    assert [tokens(scores) for scores in (*written, exactly_known)] == [tokens(scores) for scores in again]


@pytest.mark.slow
def test_other_requests_compile_nothing(params):
    batch = make_batch(params)
    run(batch, *(Request([5] * n, prompt_log_probs=score) for n in (2, 40, 90, 200, 400, 600) for score in (0, 1)))
    with compiled_programs() as names:
        run(batch, *random_requests(20))
    assert names == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "has no token"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"top_log_probs": 21}, "top_log_probs is 21"),
    ],
)
def test_requests_without_meaning_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Request(**{"prompt": [1]} | arguments)


@pytest.mark.parametrize("argument", ["slots", "prefix_cache"])
def test_batches_without_meaning_are_refused(params, argument):
    with pytest.raises(UserError, match=f"{argument} is -1"):
        make_batch(params, **{argument: -1})
