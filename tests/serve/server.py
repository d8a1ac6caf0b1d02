"""A running server for tests."""

import contextlib
import socket
import threading

import uvicorn

from tests.inference.letters import CONFIG
from transnormer_jax.data import RELEASED_TEMPLATE, ByteTokenizer, ChatTemplate
from transnormer_jax.inference import ContinuousBatch
from transnormer_jax.serve.app import Service, create_app
from transnormer_jax.serve.engine import Engine

TOKENIZER = ByteTokenizer()


@contextlib.contextmanager
def served(params, max_requests=256, template=RELEASED_TEMPLATE, config=CONFIG, slots=4, **options):
    """A server on a free port, in a thread of its own: yields its URL and its engine."""
    engine = Engine(ContinuousBatch(config, params, vocab_size=259, slots=slots), max_requests)
    chat = ChatTemplate(template, TOKENIZER) if isinstance(template, str) else template
    service = Service(engine, TOKENIZER, "tiny", chat, **{"max_new_tokens": 3000, "max_prompt_tokens": 2000} | options)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", engine
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        assert engine.error is None
        assert not engine.alive
