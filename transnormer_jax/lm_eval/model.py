"""A causal language model as a model of the LM Evaluation Harness."""

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from transnormer_jax.errors import UserError
from transnormer_jax.inference import Generator, LogProbabilities

_MAX_NEW_TOKENS = 256  # the harness's own default

_R = TypeVar("_R")


class TransNormerHarness(TemplateLM):
    """A causal language model as a model of the harness.

    Every text follows the begin token, as in training, and is read to its end, however long it is: a rolling
    log-likelihood needs no windows.
    """

    def __init__(self, generator: Generator, batch_size: int = 8):
        """Takes a `Generator`, and how many texts go through it together."""
        super().__init__()
        self._generator = generator
        self._batch_size = batch_size

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return self._generator.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is: the begin token."""
        return self._generator.tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text, never with a begin token, which `score_tokens` adds."""
        del add_special_tokens
        return self._generator.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        rows = [(context if context != [self.prefix_token_id] else [], text) for _, context, text in requests]
        scores = self._score([[*context, *text] for context, text in rows])

        def answer(context: list[int], scored: LogProbabilities) -> tuple[float, bool]:
            own = slice(len(context), None)
            return float(scored.log_probs[own].sum()), bool(scored.likeliest[own].all())

        answers = [answer(context, scored) for (context, _), scored in zip(rows, scores, strict=True)]
        for request, value in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], value)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, [requests] of natural logarithms."""
        del disable_tqdm
        texts = [request.args[0] for request in requests]
        values = [float(scored.log_probs.sum()) for scored in self._score([self.tok_encode(text) for text in texts])]
        for text, value in zip(texts, values, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), value)
        return values

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each prompt up to one of its stop strings."""
        del disable_tqdm
        texts: dict[int, str] = {}
        kinds = [json.dumps(_generation_settings(request.args[1])) for request in requests]
        for kind in set(kinds):
            settings = json.loads(kind)

            def generate(batch: list[tuple[str, int]], settings: dict[str, Any] = settings) -> list[str]:
                prompts, seeds = zip(*batch, strict=True)
                return self._generator.generate(prompts, seed=seeds, **settings)

            # A task may repeat a request to draw from it again: each has a seed of its own.
            alike = [i for i, other in enumerate(kinds) if other == kind]
            pairs = [(requests[i].args[0], i) for i in alike]
            texts |= dict(zip(alike, self._in_batches(generate, pairs, length=lambda pair: len(pair[0])), strict=True))
        for i, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[i])
        return [texts[i] for i in range(len(requests))]

    def _score(self, rows: Sequence[Sequence[int]]) -> list[LogProbabilities]:
        return self._in_batches(self._generator.score_tokens, rows)

    def _in_batches(
        self, function: Callable[[list[Any]], list[_R]], items: Sequence[Any], length: Callable[[Any], int] = len
    ) -> list[_R]:
        """Applies `function` to batches of items of about the same length."""
        order = sorted(range(len(items)), key=lambda i: -length(items[i]))
        results: dict[int, _R] = {}
        for batch in itertools.batched(order, self._batch_size):
            # A batch of another size would be compiled again.
            padded = [items[i] for i in batch] + [items[batch[-1]]] * (self._batch_size - len(batch))
            results |= dict(zip(batch, function(padded)[: len(batch)], strict=True))
        return [results[i] for i in range(len(items))]


def _generation_settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """The harness's generation arguments as those of `Generator.generate`."""
    arguments = dict(arguments)
    stop = arguments.pop("until", [])
    settings: dict[str, Any] = {
        "stop": [stop] if isinstance(stop, str) else [text for text in stop if text],
        "max_new_tokens": int(arguments.pop("max_gen_toks", _MAX_NEW_TOKENS)),
    }
    temperature = float(arguments.pop("temperature", 0.0))
    settings["temperature"] = temperature if arguments.pop("do_sample", temperature > 0) else 0.0
    for name in ("top_k", "top_p", "repetition_penalty"):
        if name in arguments:
            settings[name] = arguments.pop(name)
    if arguments:
        raise UserError(f"a task asks for {', '.join(sorted(arguments))} in generation, which is not supported.")
    return settings
