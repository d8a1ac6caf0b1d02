"""The routes of the server: OpenAI's completions, chat and models; health and metrics."""

import asyncio
import dataclasses
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from transnormer_jax.data import ChatTemplate, Tokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.inference import Request as BatchRequest
from transnormer_jax.inference import SamplingSettings
from transnormer_jax.serve import log_probs
from transnormer_jax.serve.answers import Answer, Choice, Piece
from transnormer_jax.serve.body_limit import BodyLimit
from transnormer_jax.serve.engine import Engine, EngineStoppedError, OverloadedError
from transnormer_jax.serve.metrics import Metrics
from transnormer_jax.serve.protocol import ChatRequest, CompletionRequest, GenerationRequest


@dataclasses.dataclass(frozen=True)
class Service:
    """What is served, and how much of it at most.

    Attributes:
      model: its name.
      chat_template: None if the model is not for chat.
      max_new_tokens: of an answer.
      max_prompt_tokens: of a prompt, the begin token included.
      max_body_bytes: of a request.
      api_key: that clients must know; empty if none.
    """

    engine: Engine
    tokenizer: Tokenizer
    model: str
    chat_template: ChatTemplate | None
    max_new_tokens: int = 4096
    max_prompt_tokens: int = 1 << 20
    max_body_bytes: int = 1 << 24
    api_key: str = ""


class _RefusalError(Exception):
    """A request that is answered by an error object."""

    def __init__(self, status: int, message: str, param: str | None = None):
        super().__init__(message)
        self.status, self.param = status, param


def create_app(service: Service) -> FastAPI:
    """The ASGI application; at its end the engine is stopped."""
    metrics = Metrics(lambda: service.engine.running, lambda: service.engine.waiting)
    names = log_probs.TokenNames(service.tokenizer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.engine.stop)

    app = FastAPI(title="transnormer_jax", lifespan=lifespan, openapi_url=None)
    too_large = _error_response(413, f"the request has more than {service.max_body_bytes:,} bytes")
    app.add_middleware(BodyLimit, max_bytes=service.max_body_bytes, refusal=too_large)

    # ---- Errors, all in OpenAI's form. ----

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body" and not _is_type_name(part))
        metrics.requests.labels(request.url.path, "refused").inc()
        message = first["msg"].removeprefix("Value error, ")
        return _error_response(400, f"{place}: {message}" if place else message, place or None)

    @app.exception_handler(_RefusalError)
    async def refused(request: Request, error: _RefusalError) -> Response:
        if error.status != 503:  # What failed on its way was counted there.
            metrics.requests.labels(request.url.path, "overloaded" if error.status == 429 else "refused").inc()
        return _error_response(error.status, str(error), error.param)

    @app.exception_handler(HTTPException)
    async def no_such_route(_: Request, error: HTTPException) -> Response:
        return _error_response(error.status_code, error.detail)

    def check_client(request: Request, asked: GenerationRequest) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if service.api_key and not hmac.compare_digest(given.encode(), service.api_key.encode()):
            raise _RefusalError(401, "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'")
        if asked.model not in ("", service.model):
            raise _RefusalError(404, f"there is no model {asked.model!r}: this server has {service.model!r}", "model")

    def begin(choices: list[Choice], param: str) -> Answer:
        longest = max(len(choice.request.prompt) for choice in choices)
        if longest > service.max_prompt_tokens:
            limit = service.max_prompt_tokens
            raise _RefusalError(400, f"the prompt has {longest:,} tokens, this server reads {limit:,} at most", param)
        try:
            return Answer(service.engine, service.tokenizer, choices)
        except OverloadedError as error:
            raise _RefusalError(429, "too many requests are waiting: try again later") from error

    def check_count(num_prompts: int, n: int) -> None:
        # Before a choice is made: a small body can ask for millions.
        count, limit = num_prompts * n, service.engine.max_requests
        if count > limit:
            param = "n" if n > 1 else "prompt"
            raise _RefusalError(
                400, f"{param}: {count:,} texts are wanted, this server writes {limit:,} at most", param
            )

    def new_tokens(wanted: int, param: str) -> int:
        if wanted > service.max_new_tokens:
            limit = service.max_new_tokens
            raise _RefusalError(400, f"{wanted:,} tokens are wanted, this server writes {limit:,} at most", param)
        return wanted

    async def respond(
        request: Request,
        asked: GenerationRequest,
        choices: list[Choice],
        answer: Answer,
        piece_json: Callable[[Piece], dict[str, Any]],
        whole_json: Callable[[int, list[Piece]], dict[str, Any]],
        kind: tuple[str, str],
        prefix: str,
    ) -> Response:
        """Streams pieces, or collects them; either way the answer is closed and counted."""
        arrival, path = time.perf_counter(), request.url.path
        head = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": service.model}
        # The n choices of a prompt stand side by side.
        prompts = [choice.request.prompt for choice in choices[:: asked.n]]
        usage = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": 0}
        metrics.prompt_tokens.inc(usage["prompt_tokens"])

        async def counted() -> AsyncIterator[Piece]:
            outcome, first = "disconnected", True
            try:
                async for piece in answer.pieces():
                    if first:
                        metrics.first_token_seconds.observe(time.perf_counter() - arrival)
                        first = False
                    usage["completion_tokens"] += len(piece.tokens)
                    metrics.generated_tokens.inc(len(piece.tokens))
                    yield piece
                outcome = "ok"
            except Exception:
                outcome = "failed"
                raise
            finally:
                answer.close()
                metrics.requests.labels(path, outcome).inc()

        def total() -> dict[str, int]:
            return usage | {"total_tokens": usage["prompt_tokens"] + usage["completion_tokens"]}

        if asked.stream:
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage

            async def events() -> AsyncIterator[str]:
                stream_head = head | {"object": kind[1]}
                try:
                    async for piece in counted():
                        yield _event(stream_head | {"choices": [piece_json(piece)]})
                except EngineStoppedError:
                    yield _event(_error_body(503, "the server is stopping"))
                    return
                if with_usage:
                    yield _event(stream_head | {"choices": [], "usage": total()})
                yield "data: [DONE]\n\n"

            return StreamingResponse(events(), media_type="text/event-stream")

        async def collect() -> list[list[Piece]]:
            collected: list[list[Piece]] = [[] for _ in choices]
            async for piece in counted():
                collected[piece.choice].append(piece)
            return collected

        try:
            collected = await _unless_disconnected(request, collect())
        except EngineStoppedError as error:
            raise _RefusalError(503, "the server is stopping") from error
        if collected is None:
            return Response(status_code=499)
        wholes = [whole_json(number, pieces) for number, pieces in enumerate(collected)]
        return JSONResponse(head | {"object": kind[0], "choices": wholes, "usage": total()})

    # ---- Routes. ----

    @app.post("/v1/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        check_client(request, asked)
        seed = _seed(asked)
        max_new_tokens = new_tokens(asked.max_tokens, "max_tokens")
        given = _given_prompts(asked)
        check_count(len(given), asked.n)
        # In a thread, since a long text takes seconds, in which other answers go on.
        prompts = await asyncio.to_thread(_encode_prompts, given, service.tokenizer)
        choices = [
            Choice(
                BatchRequest(
                    prompt=prompt,
                    max_new_tokens=max(1, max_new_tokens),
                    settings=_settings(asked),
                    seed=seed + number,
                    top_log_probs=asked.logprobs or 0,
                    prompt_log_probs=asked.echo and asked.logprobs is not None,
                ),
                asked.stops,
                echo=asked.echo,
                writes=max_new_tokens > 0,
            )
            for prompt in prompts
            for number in range(asked.n)
        ]
        offsets = [0] * len(choices)  # characters of each choice's tokens so far

        def choice_json(number: int, pieces: list[Piece]) -> dict[str, Any]:
            text = "".join(piece.text for piece in pieces)
            tokens = [token for piece in pieces for token in (*piece.echoed, *piece.tokens)]
            scores = None
            if asked.logprobs is not None:
                scores = log_probs.of_completion(tokens, names, offsets[number])
                offsets[number] += sum(map(len, scores["tokens"]))
            return {"index": number, "text": text, "logprobs": scores, "finish_reason": pieces[-1].finish_reason}

        return await respond(
            request,
            asked,
            choices,
            begin(choices, "prompt"),
            lambda piece: choice_json(piece.choice, [piece]),
            choice_json,
            ("text_completion", "text_completion"),
            "cmpl",
        )

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        check_client(request, asked)
        if service.chat_template is None:
            raise _RefusalError(400, "this model has no chat template: use /v1/completions", "messages")
        check_count(1, asked.n)
        talk = [message.as_text() for message in asked.messages]
        try:
            prompt = (await asyncio.to_thread(service.chat_template.encode, talk, reply=True)).tokens
        except UserError as error:
            raise _RefusalError(400, str(error), "messages") from error
        seed = _seed(asked)
        wanted = asked.max_completion_tokens or asked.max_tokens or service.max_new_tokens
        max_new_tokens = new_tokens(wanted, "max_completion_tokens" if asked.max_completion_tokens else "max_tokens")
        choices = [
            Choice(
                BatchRequest(
                    prompt=(service.tokenizer.bos_id, *prompt),
                    max_new_tokens=max_new_tokens,
                    settings=_settings(asked),
                    seed=seed + number,
                    top_log_probs=asked.top_logprobs if asked.logprobs else 0,
                ),
                asked.stops,
                end_ids=service.chat_template.end_ids,
            )
            for number in range(asked.n)
        ]
        begun = set[int]()

        def scores(pieces: list[Piece]) -> dict[str, Any] | None:
            return log_probs.of_chat([t for piece in pieces for t in piece.tokens], names) if asked.logprobs else None

        def delta(piece: Piece) -> dict[str, Any]:
            role = {} if piece.choice in begun else {"role": "assistant"}
            begun.add(piece.choice)
            return {
                "index": piece.choice,
                "delta": role | {"content": piece.text},
                "logprobs": scores([piece]),
                "finish_reason": piece.finish_reason,
            }

        def message(number: int, pieces: list[Piece]) -> dict[str, Any]:
            text = "".join(piece.text for piece in pieces)
            return {
                "index": number,
                "message": {"role": "assistant", "content": text},
                "logprobs": scores(pieces),
                "finish_reason": pieces[-1].finish_reason,
            }

        kind = ("chat.completion", "chat.completion.chunk")
        return await respond(request, asked, choices, begin(choices, "messages"), delta, message, kind, "chatcmpl")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": service.model, "object": "model", "owned_by": "transnormer_jax"}]}

    @app.get("/health")
    async def health() -> Response:
        if service.engine.alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "failed", "reason": repr(service.engine.error)}, status_code=503)

    @app.get("/metrics")
    async def metrics_page() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    return app


def _given_prompts(asked: CompletionRequest) -> list[Any]:
    """The prompts, each as text or as token ids."""
    prompt: Any = asked.prompt
    return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


def _encode_prompts(given: list[Any], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The prompts as tokens, the begin token first."""
    encoded = [tokenizer.encode(each) if isinstance(each, str) else each for each in given]
    for ids in encoded:
        for index in ids:
            if not 0 <= index < tokenizer.vocab_size:
                raise _RefusalError(400, f"there is no token {index}: ids are below {tokenizer.vocab_size:,}", "prompt")
    bos = tokenizer.bos_id
    return [tuple(ids) if ids[:1] == [bos] else (bos, *ids) for ids in encoded]


def _settings(asked: GenerationRequest) -> SamplingSettings:
    return SamplingSettings(asked.temperature, asked.top_k, asked.top_p, asked.repetition_penalty)


def _seed(asked: GenerationRequest) -> int:
    return secrets.randbits(31) if asked.seed is None else asked.seed


async def _unless_disconnected[T](request: Request, work: Awaitable[T]) -> T | None:
    """The result of `work`, or None if the client goes away first, which cancels it."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    if working.done():
        return working.result()
    working.cancel()
    await asyncio.wait({working})
    return None


def _is_type_name(part: Any) -> bool:
    """Pydantic puts the alternative of a union that it tried into the place of an error."""
    return isinstance(part, str) and ("[" in part or part in ("str", "constrained-str"))


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def _error_response(status: int, message: str, param: str | None = None) -> JSONResponse:
    return JSONResponse(_error_body(status, message, param), status_code=status)
