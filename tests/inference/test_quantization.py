import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import apply_of, random_params
from tests.inference.letters import CONFIG, Letters, log_probabilities
from transnormer_jax.inference import Generator, quantize
from transnormer_jax.models import TransNormerLLM

TOKENS = np.random.default_rng(1).integers(0, 259, (2, 40), dtype=np.int32)


def dequantized(params):
    """The definition: the same tree in float32."""
    whole = {}
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            whole[name] = dequantized(leaf)
        elif f"{name}_scale" in params:
            scale = params[f"{name}_scale"]
            whole[name] = np.float32(leaf) * (scale[:, None] if name != "kernel" else scale[..., None, :])
        elif not name.endswith("_scale"):
            whole[name] = leaf
    return whole


def test_every_number_is_within_half_a_step(params):
    quantized = quantize(params)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x.shape, y.shape), dequantized(quantized), params)
    kernel, scale = (quantized["layers_1"]["glu"]["gate"][name] for name in ("kernel", "kernel_scale"))
    assert kernel.dtype == quantized["embedding"].dtype == jnp.int8
    error = np.abs(np.float32(kernel) * scale[:, None, :] - params["layers_1"]["glu"]["gate"]["kernel"])
    assert (error <= 0.5001 * scale[:, None, :]).all()
    assert int(jnp.abs(kernel).max()) == 127


@pytest.mark.slow
def test_the_model_computes_with_the_rounded_numbers():
    model = TransNormerLLM(CONFIG.replace(tie_embeddings=False, use_bias=True))
    params = random_params(model)
    quantized = quantize(params)
    logits, expected, exact = (
        apply_of(model)({"params": tree}, TOKENS) for tree in (quantized, dequantized(quantized), params)
    )
    np.testing.assert_allclose(logits, expected, atol=1e-4 * float(jnp.abs(expected).max()))
    # And the rounding is not without an effect.
    assert float(jnp.abs(logits - exact).max()) > 1e-3


@pytest.mark.slow
def test_generation_takes_them_as_any_others(params):
    generator = Generator(CONFIG, quantize(params), Letters())
    assert generator.params["embedding"].dtype == jnp.int8
    [text] = generator.generate(["The king"], max_new_tokens=20)
    tokens = np.array([[1, *map(ord, "The king" + text)]])
    expected = log_probabilities(dequantized(quantize(params)), tokens)
    np.testing.assert_array_equal(np.argmax(expected[0, 8:-1], axis=-1), tokens[0, 9:])


def test_a_quarter_of_the_bytes(params):
    def size(tree):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    assert size(quantize(params)) < 0.27 * size(params)
