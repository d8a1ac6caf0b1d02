"""The server's Prometheus metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """The counts of one server.

    Attributes:
      requests: by endpoint and outcome: "ok", "refused" (4xx), "overloaded" (429 instead), "disconnected" or "failed".
      prompt_tokens: read, those found in the prefix cache included.
      generated_tokens: sent.
      first_token_seconds: from the queue, which a request enters as tokens, to its first piece.
    """

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]):
        """Takes what tells how many requests have a slot and how many wait for one."""
        self._registry = CollectorRegistry()
        self.requests = Counter("requests", "Requests", ["endpoint", "outcome"], registry=self._registry)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens read", registry=self._registry)
        self.generated_tokens = Counter("generated_tokens", "Tokens written", registry=self._registry)
        self.first_token_seconds = Histogram(
            "first_token_seconds",
            "Seconds to the first piece",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=self._registry,
        )
        for name, count in (("running_requests", running), ("waiting_requests", waiting)):
            Gauge(name, "Requests", registry=self._registry).set_function(count)

    def page(self) -> bytes:
        """The text that Prometheus collects."""
        return generate_latest(self._registry)
