"""A small model and a tokenizer in which equal texts are equal tokens."""

import jax
import numpy as np

from tests.compiled import apply_of, random_params
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig

CONFIG = TransNormerLLMConfig.preset("tiny")
MODEL = TransNormerLLM(CONFIG)


class Letters:
    """Every id is a letter of its own."""

    pad_id, bos_id = 0, 1

    def __init__(self, eos_id=-1, vocab_size=259):  # no id: a text does not end unless a test wants it to
        self.eos_id = eos_id
        self.vocab_size = vocab_size

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(chr(index) for index in ids)


def make_params():
    return random_params(MODEL)


def log_probabilities(params, tokens, model=MODEL):
    """The definition: one pass over whole rows [B, N]; log-probabilities [B, N, V] of the token after each.

    Compiled for two lengths: no token sees what fills the row up to them.
    """
    length = tokens.shape[1]
    filled = np.zeros((len(tokens), 64 if length <= 64 else 1408), np.int32)
    filled[:, :length] = tokens
    return np.asarray(jax.nn.log_softmax(apply_of(model)({"params": params}, filled), axis=-1))[:, :length]
