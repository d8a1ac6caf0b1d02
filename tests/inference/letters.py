"""A small model and a tokenizer in which equal texts are equal tokens."""

import jax
import jax.numpy as jnp

from tests.compiled import apply_of
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig

# A wider initialisation than usual, for logits that differ.
CONFIG = TransNormerLLMConfig.preset("tiny", init_std=0.2)
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
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    # As after training: an embedding of padding that would be noticed, and bound to a device.
    params["embedding"] = params["embedding"].at[Letters.pad_id].set(params["embedding"][5])
    return jax.device_put(params, jax.devices()[0])


@jax.jit
def log_probabilities(params, tokens):
    """The definition: one pass over whole rows [B, N]; log-probabilities [B, N, V] of the token after each."""
    return jax.nn.log_softmax(apply_of(MODEL)({"params": params}, tokens), axis=-1)
