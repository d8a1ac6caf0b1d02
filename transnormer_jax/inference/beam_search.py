"""Beam search: the continuations with the highest log-probability that a beam of W texts finds."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from transnormer_jax.inference.decoding import DecodeState, advance, take_rows
from transnormer_jax.models import LanguageModel


class Hypothesis(NamedTuple):
    """A continuation: its tokens without the end token, and log-probability / length ** length_penalty."""

    tokens: list[int]
    score: float


class _Candidates(NamedTuple):
    """The 2W best ways to go on by one token, best first; 2W, so that W are left if W of them are the end token."""

    score: Float[Array, "B 2*W"]
    beam: Int[Array, "B 2*W"]
    token: Int[Array, "B 2*W"]


def beam_search(
    model: LanguageModel,
    params: Any,
    state: DecodeState,
    *,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float,
    eos_id: int,
) -> list[list[Hypothesis]]:
    """Searches from the state [B] after B prompts, as Hugging Face does without early stopping.

    A search ends when W texts have ended and the best open one, scored at its present length, is no better than they.

    Args:
      state: after the prompts.
      num_beams: W.
      length_penalty: 0 compares sums of log-probabilities, 1 their means; above, longer texts gain.
      eos_id: ends a text; it counts into its length and score.

    Returns:
      For each prompt its W best continuations, best first.
    """
    batch_size = len(state.logits)
    first_rows = np.arange(batch_size, dtype=np.int32) * num_beams
    state = take_rows(state, np.repeat(np.arange(batch_size, dtype=np.int32), num_beams))
    # All beams are still the same text: one of them is enough.
    scores = np.where(np.arange(num_beams)[None] == 0, 0.0, -np.inf).astype(np.float32).repeat(batch_size, axis=0)
    beams: list[list[list[int]]] = [[[] for _ in range(num_beams)] for _ in range(batch_size)]
    ended: list[list[Hypothesis]] = [[] for _ in range(batch_size)]
    open_searches = set(range(batch_size))

    candidates = jax.device_get(_candidates(state, scores))
    for length in range(1, max_new_tokens + 1):
        norm = length**length_penalty
        chosen = np.zeros((batch_size, num_beams), np.int32)  # places among the candidates
        for b in open_searches.copy():
            ends = candidates.token[b] == eos_id
            chosen[b] = np.flatnonzero(~ends)[:num_beams]
            ended[b] += [
                Hypothesis(beams[b][candidates.beam[b, i]], float(candidates.score[b, i]) / norm)
                for i in np.flatnonzero(ends[:num_beams])
            ]
            ended[b] = _best(ended[b], num_beams)
            beams[b] = [[*beams[b][candidates.beam[b, i]], int(candidates.token[b, i])] for i in chosen[b]]
            best = float(candidates.score[b, 0])
            if len(ended[b]) == num_beams and best / norm <= ended[b][-1].score:
                open_searches.discard(b)
        scores, parents, tokens = (np.take_along_axis(x, chosen, axis=1) for x in candidates)
        if not open_searches or length == max_new_tokens:
            break
        rows = (first_rows[:, None] + parents).reshape(-1)
        state, found = _go_on(model, params, state, rows, tokens.reshape(-1), scores)
        candidates = jax.device_get(found)

    for b in open_searches:
        ended[b] += [Hypothesis(text, float(score) / norm) for text, score in zip(beams[b], scores[b], strict=True)]
    return [_best(hypotheses, num_beams) for hypotheses in ended]


def _best(hypotheses: list[Hypothesis], count: int) -> list[Hypothesis]:
    # A beam that has no text yet, because there are fewer texts than beams, has the score -inf.
    real = (hypothesis for hypothesis in hypotheses if hypothesis.score > -np.inf)
    return sorted(real, key=lambda hypothesis: -hypothesis.score)[:count]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _go_on(
    model: LanguageModel,
    params: Any,
    state: DecodeState,
    rows: Int[Array, " B*W"],
    tokens: Int[Array, " B*W"],
    scores: Float[Array, "B W"],
) -> tuple[DecodeState, _Candidates]:
    state = advance(model, params, take_rows(state, rows), tokens)
    return state, _candidates(state, scores)


@jax.jit
def _candidates(state: DecodeState, scores: Float[Array, "B W"]) -> _Candidates:
    batch_size, num_beams = scores.shape
    log_probs = jax.nn.log_softmax(state.logits, axis=-1)
    vocab_size = log_probs.shape[-1]
    total = scores[..., None] + log_probs.reshape(batch_size, num_beams, vocab_size)
    best, place = jax.lax.top_k(total.reshape(batch_size, -1), 2 * num_beams)
    return _Candidates(best, place // vocab_size, place % vocab_size)
