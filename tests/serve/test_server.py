"""The running server, asked by OpenAI's own client."""

import asyncio
import contextlib
import functools
import threading
import time

import httpx
import numpy as np
import openai
import pydantic
import pytest
import sentencepiece

from tests.inference.letters import CONFIG, log_probabilities, make_params
from tests.serve.server import TOKENIZER, served
from transnormer_jax.data import ByteTokenizer, ChatTemplate, load_tokenizer
from transnormer_jax.inference import Generator
from transnormer_jax.serve import log_probs
from transnormer_jax.serve.protocol import CompletionRequest

# The first request of a kind compiles, which takes more than httpx's five seconds on a busy machine.
post = functools.partial(httpx.post, timeout=60)

USER = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def params():
    return make_params()


@pytest.fixture(scope="module")
def generator(params):
    return Generator(CONFIG, params, TOKENIZER)


@pytest.fixture(scope="module")
def server(params):
    with served(params) as (url, engine):
        yield url, engine


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


def wait_until(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within ten seconds")


# ---- Completions ----


@pytest.mark.slow
def test_texts_are_those_of_the_generator(client, generator):
    prompts = ["The king", "x", "Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n" * 100]
    arguments = {"temperature": 0.8, "top_p": 0.9}
    ours = {"top_k": 50, "repetition_penalty": 1.1}
    answer = client.completions.create(
        model="tiny", prompt=prompts, max_tokens=24, seed=7, extra_body=ours, **arguments
    )
    expected = [generator.generate([each], max_new_tokens=24, seed=7, **ours, **arguments)[0] for each in prompts]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 3
    tokens = sum(1 + len(prompt.encode()) for prompt in prompts)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (tokens, 72)


def test_streamed_pieces_are_the_text(client, generator):
    stream = client.completions.create(
        model="tiny",
        prompt="The king",
        max_tokens=50,
        temperature=0,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, reasons, usage = ["", ""], [None, None], None
    for event in stream:
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == generator.generate(["The king"], max_new_tokens=50) * 2
    assert reasons == ["length"] * 2
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (9, 100, 109)


def test_choices_have_seeds_of_their_own(client, generator):
    answer = client.completions.create(model="tiny", prompt="The king", max_tokens=20, n=3, seed=4)
    expected = [
        generator.generate(["The king"], max_new_tokens=20, temperature=1.0, seed=seed)[0] for seed in (4, 5, 6)
    ]
    assert [choice.text for choice in answer.choices] == expected
    unseeded = [client.completions.create(model="tiny", prompt="x", max_tokens=20).choices[0].text for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_stop_strings(client, generator):
    [text] = generator.generate(["The king"], max_new_tokens=40)
    stop = text[10:13]
    for stream in (False, True):
        answer = client.completions.create(
            model="tiny", prompt="The king", max_tokens=40, temperature=0, stop=[stop, "never"], stream=stream
        )
        choices = [event.choices[0] for event in answer] if stream else answer.choices
        assert "".join(choice.text for choice in choices) == text.partition(stop)[0]
        assert choices[-1].finish_reason == "stop"


def test_tokens_as_prompt_and_echo(client, generator):
    ids = TOKENIZER.encode("The king")
    [text] = generator.generate(["The king"], max_new_tokens=10)
    for prompt in (ids, [1, *ids], [ids]):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=10, temperature=0, echo=True)
        assert answer.choices[0].text == "The king" + text
    answer = client.completions.create(model="tiny", prompt="The king", max_tokens=0, echo=True)
    assert (answer.choices[0].text, answer.usage.completion_tokens) == ("The king", 0)


@pytest.mark.parametrize("max_tokens", [0, 6])
def test_log_probabilities(client, params, max_tokens):
    answer = client.completions.create(
        model="tiny", prompt="The king", max_tokens=max_tokens, temperature=0, echo=True, logprobs=3
    )
    [choice] = answer.choices
    scores = choice.logprobs
    assert "".join(scores.tokens[:8]) == "The king"
    assert len(scores.tokens) == 8 + max_tokens
    assert scores.text_offset[:8] == list(range(8))
    ids = [1, *TOKENIZER.encode("The king")]
    expected = log_probabilities(params, np.array([ids]))[0]
    np.testing.assert_allclose(scores.token_logprobs[:8], expected[np.arange(8), ids[1:]], atol=2e-5)
    if max_tokens:
        top = scores.top_logprobs[8]
        np.testing.assert_allclose(max(top.values()), expected[8].max(), atol=2e-5)
        assert scores.token_logprobs[8] == max(top.values())


@pytest.mark.parametrize("stream", [False, True])
def test_every_token_has_its_offset(client, stream):
    answer = client.completions.create(
        model="tiny", prompt="x", max_tokens=60, seed=3, logprobs=0, echo=True, stop=["\0never"], stream=stream
    )
    scores = [choice.logprobs for event in (answer if stream else [answer]) for choice in event.choices]
    tokens = [token for each in scores for token in each.tokens]
    offsets = [offset for each in scores for offset in each.text_offset]
    assert offsets == [sum(map(len, tokens[:i])) for i in range(len(tokens))]


def test_tokens_keep_their_space(tmp_path):
    # With a space before every text, which decoding takes away again.
    text = "a man and a hill"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 9), model_prefix=str(tmp_path / "m"), vocab_size=14, minloglevel=2
    )
    tokenizer = load_tokenizer(str(tmp_path / "m.model"))
    names = log_probs.TokenNames(tokenizer)
    assert "".join(names[token] for token in tokenizer.encode(text)) == " " + text


def test_each_prompt_is_counted_and_its_choices_share_it(client):
    for prompt, n in ((["x", "x", "ab"], 1), (["x", "x", "ab"], 2)):
        usage = client.completions.create(model="tiny", prompt=prompt, n=n, max_tokens=1, temperature=0).usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (7, 3 * n)


# ---- Chat ----


def test_chat(client, generator):
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "One?"}]}]
    [expected] = generator.generate(["Be brief.\nHuman:\nOne?\nAssistant:\n"], max_new_tokens=20)
    answer = client.chat.completions.create(
        model="tiny", messages=talk, max_completion_tokens=20, temperature=0, logprobs=True, top_logprobs=2
    )
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected)
    assert len(choice.logprobs.content) == 20
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    stream = client.chat.completions.create(model="tiny", messages=talk, max_tokens=20, temperature=0, stream=True)
    deltas = [event.choices[0].delta for event in stream]
    assert "".join(delta.content for delta in deltas) == expected
    assert [delta.role for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]


def test_a_turn_ends_where_the_template_ends_it(params, generator):
    [text] = generator.generate(["x:"], max_new_tokens=20)
    end = next(i for i in range(1, len(text)) if text[i] not in text[:i] and text[i].isascii())
    tokenizer = ByteTokenizer()
    tokenizer.special_tokens = {"<end>": 3 + ord(text[end])}  # a letter that the model writes
    template = "{% for m in messages %}{{ m.content }}{{ ':' if m.role == 'user' else '<end>' }}{% endfor %}"
    with served(params, template=ChatTemplate(template, tokenizer)) as (url, _):
        body = {"messages": USER, "max_tokens": 20, "temperature": 0}
        [choice] = post(f"{url}/v1/chat/completions", json=body).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text[:end], "stop")


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


# ---- Many clients ----


def test_32_streaming_clients(server, generator):
    """Eight for each slot, of different lengths."""
    url, engine = server
    prompts = [f"client {i} " * (1 + i % 3) for i in range(32)]
    lengths = [5 + i % 4 for i in range(32)]

    async def one(client, i):
        stream = await client.completions.create(
            model="tiny", prompt=prompts[i], max_tokens=lengths[i], temperature=1, seed=i, stream=True
        )
        return "".join([event.choices[0].text async for event in stream])

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, i) for i in range(32)))

    expected = [
        generator.generate([prompts[i]], max_new_tokens=lengths[i], temperature=1.0, seed=i)[0] for i in range(32)
    ]
    assert asyncio.run(all_of_them()) == expected
    wait_until(lambda: engine.running == engine.waiting == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slots(server, stream, monkeypatch):
    url, engine = server
    step = engine._batch.step
    monkeypatch.setattr(engine._batch, "step", lambda: [time.sleep(0.01), step()][1])
    body = {"prompt": "x", "max_tokens": 3000, "n": 6, "stream": stream}
    # Either after the first piece, or before there is an answer.
    request = ("POST", f"{url}/v1/completions")
    with contextlib.suppress(httpx.ReadTimeout), httpx.stream(*request, json=body, timeout=0.3) as response:
        next(response.iter_lines())
    wait_until(lambda: engine.running == engine.waiting == 0)
    page = httpx.get(f"{url}/metrics").text
    assert 'requests_total{endpoint="/v1/completions",outcome="disconnected"}' in page
    assert "running_requests 0.0" in page


def test_more_requests_than_may_be_open_are_refused(params, monkeypatch):
    with served(params, max_requests=3) as (url, engine):
        go_on, step = threading.Event(), engine._batch.step
        monkeypatch.setattr(engine._batch, "step", lambda: [go_on.wait(), step()][1])
        body = {"prompt": "x", "max_tokens": 3000, "n": 3, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body):
            refused = post(f"{url}/v1/completions", json={"prompt": "x"})
            assert refused.status_code == 429
            assert "too many requests" in refused.json()["error"]["message"]
        go_on.set()
        wait_until(lambda: engine.running == engine.waiting == 0)
        assert post(f"{url}/v1/completions", json={"prompt": "x"}).status_code == 200
        # What could never be begun is no matter of waiting.
        for body in ({"prompt": "x", "n": 4}, {"prompt": ["x"] * 4}):
            refused = post(f"{url}/v1/completions", json=body)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] in body


# ---- What is refused ----


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        ("completions", {}, 400, "prompt", "Field required"),
        ("completions", {"prompt": []}, 400, None, "prompt holds nothing"),
        ("completions", {"prompt": 7}, 400, "prompt", "valid"),
        ("completions", {"prompt": [999]}, 400, "prompt", "there is no token 999"),
        ("completions", {"prompt": "x", "temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ("completions", {"prompt": "x", "top_p": 0}, 400, "top_p", "greater than 0"),
        ("completions", {"prompt": "x", "max_tokens": 0}, 400, None, "max_tokens is 0"),
        ("completions", {"prompt": "x", "max_tokens": 4000}, 400, "max_tokens", "3,000 at most"),
        ("completions", {"prompt": "x" * 2000}, 400, "prompt", "2,001 tokens, this server reads 2,000 at most"),
        ("completions", {"prompt": "x", "stop": ["a"] * 5}, 400, "stop", "at most 4"),
        ("completions", {"prompt": "x", "logit_bias": {"5": 1}}, 400, None, "logit_bias is not supported"),
        ("completions", {"prompt": [1.5, 2.5]}, 400, "prompt", "valid"),
        ("completions", {"prompt": "x", "model": "gpt-4"}, 404, "model", "there is no model 'gpt-4'"),
        ("chat/completions", {"messages": []}, 400, "messages", "at least 1"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role", "user"),
        ("chat/completions", {"messages": USER, "tools": [{}]}, 400, None, "tools is not"),
        (
            *("chat/completions", {"messages": USER, "max_completion_tokens": 4000}),
            *(400, "max_completion_tokens", "3,000 at most"),
        ),
        ("embeddings", {}, 404, None, "Not Found"),
    ],
)
def test_a_request_without_meaning_gets_a_reason(server, path, body, status, param, message):
    answer = post(f"{server[0]}/v1/{path}", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_a_wrong_element_of_a_long_list_ends_its_reading():
    with pytest.raises(pydantic.ValidationError) as caught:
        CompletionRequest.model_validate({"prompt": [0.5] * 100})
    assert caught.value.error_count() == 4  # one for each form of a prompt


def test_neutral_and_unknown_fields_are_ignored(server):
    body = {"prompt": "x", "frequency_penalty": 0, "logit_bias": None, "user": "me", "seed": None, "metadata": {"a": 1}}
    assert post(f"{server[0]}/v1/completions", json=body).status_code == 200


def test_broken_bodies_are_refused(server):
    answer = post(f"{server[0]}/v1/completions", content=b'{"prompt": ')
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_key_no_template_and_small_bodies(params):
    with served(params, template=None, max_body_bytes=1000, api_key="secret") as (url, _):
        assert post(f"{url}/v1/completions", json={"prompt": "x"}).status_code == 401
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret") as client:
            assert client.completions.create(model="tiny", prompt="x").choices
            with pytest.raises(openai.BadRequestError, match="no chat template: use /v1/completions"):
                client.chat.completions.create(model="tiny", messages=USER)
        for content in (b"x" * 2000, iter([b"x" * 600] * 2)):
            answer = post(f"{url}/v1/completions", content=content)
            assert answer.status_code == 413
            assert "more than 1,000 bytes" in answer.json()["error"]["message"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_engine_fails_clients_and_health_say_so(params, monkeypatch):
    with contextlib.suppress(AssertionError), served(params) as (url, engine):

        def fail():
            raise RuntimeError("the device is gone")

        monkeypatch.setattr(engine._batch, "step", fail)
        answer = post(f"{url}/v1/completions", json={"prompt": "x"}, timeout=20)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        health = httpx.get(f"{url}/health")
        assert health.status_code == 503
        assert "the device is gone" in health.json()["reason"]
        page = httpx.get(f"{url}/metrics").text
        assert 'requests_total{endpoint="/v1/completions",outcome="failed"} 1.0' in page
        reached = True
    assert reached
