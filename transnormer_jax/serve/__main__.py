"""Serves a trained model over an OpenAI-compatible API.

    python -m transnormer_jax.serve --workdir=runs/quickstart --port=8000

Answers `/v1/completions`, `/v1/chat/completions` (if the model has a chat template), `/v1/models`, `/health` and
`/metrics`. If the environment variable TRANSNORMER_API_KEY is set, clients must send that key with every request for
text. On SIGTERM the server finishes the requests that have begun and takes no new ones.
"""

import asyncio
import os
import signal
import socket

from absl import flags

from transnormer_jax import command, storage
from transnormer_jax.data import RELEASED_TEMPLATE, ChatTemplate
from transnormer_jax.errors import UserError
from transnormer_jax.inference import ContinuousBatch, Request
from transnormer_jax.inference.decoding import SHORTEST_WINDOW, WINDOW
from transnormer_jax.run_flags import define_int8, define_run_flags
from transnormer_jax.training.workdir import chat_template

_RUN = define_run_flags()
_INT8 = define_int8()
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 means all interfaces of this machine.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on.", lower_bound=0, upper_bound=65535)
_MODEL = flags.DEFINE_string("model", "", "Name of the model for clients; by default that of the workdir.")
_SLOTS = flags.DEFINE_integer("slots", 8, "Texts generated at the same time.", lower_bound=1)
_MAX_REQUESTS = flags.DEFINE_integer(
    "max_requests", 256, "Open requests allowed; further ones are answered 429.", lower_bound=1
)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 4096, "Maximum length of an answer, in tokens.", lower_bound=1)
_MAX_PROMPT_TOKENS = flags.DEFINE_integer(
    "max_prompt_tokens", 1 << 20, "Maximum length of a prompt, in tokens.", lower_bound=1
)
_PREFIX_CACHE = flags.DEFINE_integer(
    "prefix_cache", 16, "States kept for prompts with a common beginning.", lower_bound=0
)
_CHAT_TEMPLATE = flags.DEFINE_string(
    "chat_template",
    "",
    "Jinja file, or 'released' for the template of TransNormerLLM's fine-tuning; by default the model's own.",
)
_GRACE_SECONDS = flags.DEFINE_integer(
    "grace_seconds", 60, "Seconds that SIGTERM leaves running requests to finish.", lower_bound=1
)


def main() -> None:
    """Serves until a signal comes."""
    try:
        import uvicorn

        from transnormer_jax.serve.app import Service, create_app
        from transnormer_jax.serve.engine import Engine
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: in a clone, pip install -e '.[serve]'.") from error
    listener = _listen(_HOST.value, _PORT.value)
    source = _chat_template()
    generator = _RUN.load_generator(int8=_INT8.value)
    tokenizer = generator.tokenizer
    batch = ContinuousBatch(
        generator.config,
        generator.params,
        vocab_size=tokenizer.vocab_size,
        slots=_SLOTS.value,
        prefix_cache=_PREFIX_CACHE.value,
    )
    _warm_up(batch, tokenizer.bos_id)
    service = Service(
        Engine(batch, _MAX_REQUESTS.value),
        tokenizer,
        _MODEL.value or storage.absolute(_RUN.workdir).name,
        ChatTemplate(source, tokenizer) if source else None,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        max_prompt_tokens=_MAX_PROMPT_TOKENS.value,
        api_key=os.environ.get("TRANSNORMER_API_KEY", ""),
    )
    patience = _GRACE_SECONDS.value + 5  # for clients that do not read their responses
    config = uvicorn.Config(create_app(service), log_level="warning", timeout_graceful_shutdown=patience, lifespan="on")
    host, port = listener.getsockname()[:2]
    print(f"serving {service.model!r} at http://{host}:{port}/v1 with {_SLOTS.value} slots", flush=True)
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: None)  # Uvicorn raises again what stopped it, when all is done.

    class Server(uvicorn.Server):
        """Ends the engine when the time is up, so that clients get a response; Uvicorn would close the connections."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(_GRACE_SECONDS.value, loop.run_in_executor, None, service.engine.stop)
            await super().shutdown(sockets)
            timer.cancel()

    Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror}): choose another --port.") from error


def _warm_up(batch: ContinuousBatch, bos_id: int) -> None:
    """Compiles everything, so that no client waits for it."""
    width = WINDOW
    while width >= SHORTEST_WINDOW:
        for scored in (False, True):
            batch.submit(Request([bos_id] * width, max_new_tokens=1, prompt_log_probs=scored))
        width //= 2
    while not batch.idle:
        batch.step()


def _chat_template() -> str | None:
    if _CHAT_TEMPLATE.value == "released":
        return RELEASED_TEMPLATE
    if _CHAT_TEMPLATE.value:
        try:
            return storage.local_copy(_CHAT_TEMPLATE.value).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the chat template ({error}): give a text file, or 'released'.") from error
    return chat_template(_RUN.config)


if __name__ == "__main__":
    command.run(main)
