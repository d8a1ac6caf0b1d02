"""Log-probabilities in both formats of the OpenAI protocol."""

import itertools
from collections.abc import Sequence
from typing import Any

from transnormer_jax.data import Tokenizer
from transnormer_jax.inference import TokenLogProbs


class TokenNames:
    """Tokens as text: special ones by their names, others as they read after a letter."""

    def __init__(self, tokenizer: Tokenizer):
        """Takes the model's tokenizer."""
        self._tokenizer = tokenizer
        self._special = {index: name for name, index in tokenizer.special_tokens.items()}
        # A tokenizer may drop the space with which a text begins, and it belongs to the token.
        self._letter = tokenizer.encode("a")
        self._width = len(tokenizer.decode(self._letter))

    def __getitem__(self, token: int) -> str:
        return self._special.get(token) or self._tokenizer.decode([*self._letter, token])[self._width :]


def of_completion(scored: Sequence[TokenLogProbs], names: TokenNames, offset: int) -> dict[str, Any]:
    """The `logprobs` of a choice of `/v1/completions`, whose first token stands after `offset` characters of tokens."""
    tokens = [names[each.token] for each in scored]
    offsets = list(itertools.accumulate(map(len, tokens), initial=offset))[:-1]
    # Where two tokens read alike, the likelier one is reported.
    tops = [{names[token]: value for token, value in reversed(each.top)} for each in scored]
    return {
        "tokens": tokens,
        "token_logprobs": [each.log_prob for each in scored],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def of_chat(scored: Sequence[TokenLogProbs], names: TokenNames) -> dict[str, Any]:
    """The `logprobs` of a choice of `/v1/chat/completions`."""

    def entry(token: int, value: float) -> dict[str, Any]:
        name = names[token]
        # A part of a character reads as a replacement character, which is not what it is.
        own_bytes = None if "\N{REPLACEMENT CHARACTER}" in name else list(name.encode())
        return {"token": name, "logprob": value, "bytes": own_bytes}

    return {
        "content": [
            entry(each.token, each.log_prob) | {"top_logprobs": [entry(*pair) for pair in each.top]} for each in scored
        ],
        "refusal": None,
    }
