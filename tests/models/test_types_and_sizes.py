"""What can be seen of a model without running it: dtypes, and batches of no rows or no tokens."""

import jax
import jax.numpy as jnp
import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormer, TransNormerConfig, TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.papers.models import SpeechModel

MODELS = {
    "transnormer_llm": TransNormerLLM(TransNormerLLMConfig.preset("tiny", sinusoidal_position=True)),
} | {name: TransNormer(TransNormerConfig.preset("tiny", attention=name)) for name in ("t2", "linear", "softmax")}
each_model = pytest.mark.parametrize("name", MODELS)


def traced(name: str, shape: tuple[int, int], **options):
    """Shapes and dtypes of logits and cache of a prefill."""
    model, tokens = MODELS[name], jnp.zeros(shape, jnp.int32)

    def prefill(variables, tokens):
        return model.apply(variables, tokens, cache=model.init_cache(shape[0]), **options)

    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return jax.eval_shape(prefill, variables, tokens)


@each_model
def test_types_do_not_widen_where_float64_is_the_default(name: str):
    with jax.enable_x64(True):
        logits, cache = traced(name, (2, 12))
    assert logits.dtype == jnp.float32
    assert cache.position.dtype == jnp.int32
    floats = [state for state in jax.tree.leaves(cache.states) if jnp.issubdtype(state.dtype, jnp.floating)]
    assert {state.dtype for state in floats} == {jnp.dtype("float32")}


@each_model
@pytest.mark.parametrize("shape", [(0, 12), (2, 0)])
def test_no_rows_and_no_tokens_are_a_batch(name: str, shape: tuple[int, int]):
    logits, cache = traced(name, shape)
    assert logits.shape == (*shape, 259)
    assert cache.position.shape == shape[:1]


@pytest.mark.parametrize("position", ["learned", "concatenated"])
def test_frames_have_no_positions_of_an_embedding(position: str):
    config = TransNormerConfig.preset("tiny", causal=False, position=position, tie_embeddings=False)
    with pytest.raises(UserError, match=f"position='{position}' is of an embedding, which frames have not: choose"):
        SpeechModel(config, num_labels=3)
