"""One table of token mixers, and the properties that all of them share. A new mixer is a new row."""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.layers import DiagAttention, NormAttention, SoftmaxAttention, TokenPositions, make_norm
from transnormer_jax.ops import token_positions
from transnormer_jax.papers.mixers import CosformerAttention, LinearTransformerAttention, PerformerAttention

# Neither N x N nor N x K x V is smaller than half of N x N, and all that a linear mixer needs is.
LENGTH, NUM_HEADS, HEAD_DIM, BLOCK = 509, 2, 30, 8
MODEL_DIM = NUM_HEADS * HEAD_DIM
SHORT = 5 * BLOCK  # of all texts that are read by themselves, so that one program reads them

# Compiled without LLVM's optimisations, which take half of the time of these tests.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Mixer(NamedTuple):
    """A row of the table.

    Attributes:
      name: of the row.
      build: (num_heads=, causal=, **dtypes) -> the module.
      directions: of time that it has.
      linear: it needs no N x N array.
      ordered: it depends on the order of tokens, without positions in the embedding.
    """

    name: str
    build: Callable[..., nn.Module]
    directions: tuple[str, ...] = ("causal", "bidirectional")
    linear: bool = True
    ordered: bool = True


def _diag(variant: str) -> Callable[..., nn.Module]:
    return lambda **options: DiagAttention(variant=variant, block_size=BLOCK, **options)


# Variants differ in a function of one line, which the golden outputs hold; each direction comes once for each formula.
MIXERS = [
    Mixer("norm_t1", lambda **options: NormAttention(variant="t1", **options), ("causal",)),
    Mixer("norm_t2", lambda **options: NormAttention(variant="t2", **options), ("bidirectional",)),
    Mixer("diag_t1", _diag("t1"), ("causal",)),
    Mixer("diag_t2", _diag("t2")),
    Mixer("linear", LinearTransformerAttention, ordered=False),
    Mixer(
        "linear_narrow_queries",
        lambda **options: LinearTransformerAttention(query_dim=12, **options),
        ("causal",),
        ordered=False,
    ),
    Mixer("performer", lambda **options: PerformerAttention(num_features=24, **options), ordered=False),
    Mixer("cosformer", lambda **options: CosformerAttention(horizon=64, **options)),
    Mixer("softmax", SoftmaxAttention, linear=False, ordered=False),
]


def _rows(wanted: Callable[[Mixer, str], bool] = lambda mixer, direction: True):
    """A test of rows in their directions, the causal ones quickly."""
    marks = {"causal": (), "bidirectional": pytest.mark.slow}
    rows = [
        pytest.param(mixer, direction, id=f"{mixer.name}-{direction}", marks=marks[direction])
        for mixer in MIXERS
        for direction in mixer.directions
        if wanted(mixer, direction)
    ]
    return pytest.mark.parametrize(("mixer", "direction"), rows)


class Case:
    """A module with random parameters, and its compiled programs."""

    def __init__(self, mixer: Mixer, direction: str):
        self.rng = np.random.default_rng([ord(letter) for letter in mixer.name + direction])
        self.module = mixer.build(num_heads=NUM_HEADS, causal=direction == "causal")
        self.variables = self.parameters()
        self.apply = jit(self.module.apply)

    def normal(self, *shape: int):
        return jnp.asarray(self.rng.standard_normal(shape), jnp.float32)

    def parameters(self):
        """Random, as large as at initialisation, biases too; a Householder vector has length 1."""
        x = jax.ShapeDtypeStruct((1, LENGTH, MODEL_DIM), jnp.float32)
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), x, positions(LENGTH))

        def draw(path, shape):
            value = self.normal(*shape.shape)
            return value / jnp.linalg.norm(value) if "householder" in str(path) else value / np.sqrt(shape.shape[0])

        return jax.tree_util.tree_map_with_path(draw, shapes)

    def alone(self, x):
        """Outputs for rows that are a document each."""
        return self.apply(self.variables, x, positions(x.shape[1]))[0]

    @functools.cached_property
    def program(self):
        """(variables, x, segment_ids, weights) -> outputs, and gradients of their weighted sum, for LENGTH tokens."""

        def run(variables, x, segment_ids, weights):
            tokens = positions(LENGTH, segment_ids)
            out, pull_back = jax.vjp(lambda *both: self.module.apply(*both, tokens)[0], variables, x)
            return out, *pull_back(weights)

        x = jax.ShapeDtypeStruct((1, LENGTH, MODEL_DIM), jnp.float32)
        ids = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
        return jit(run).lower(self.variables, x, ids, x).compile()


case_of = functools.cache(Case)


def positions(length: int, segment_ids=None) -> TokenPositions:
    if segment_ids is None:
        return TokenPositions(jnp.arange(length, dtype=jnp.int32)[None])
    return TokenPositions(token_positions(segment_ids, jnp.zeros(segment_ids.shape[0], jnp.int32)), segment_ids)


def assert_close(actual, expected):
    scale = float(np.sqrt(np.mean(np.square(expected))))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * scale)


@pytest.mark.slow
@_rows()
def test_what_a_token_sees(mixer, direction):
    case = case_of(mixer, direction)
    last = BLOCK * int(case.rng.integers(1, LENGTH // BLOCK - 1)) + 2  # tokens follow in the same block
    weights = case.normal(1, LENGTH, MODEL_DIM).at[:, last + 1 :].set(0)
    x, ids = case.normal(1, LENGTH, MODEL_DIM), jnp.ones((1, LENGTH), jnp.int32)
    _, d_variables, d_x = case.program(case.variables, x, ids, weights)
    seen = np.abs(d_x).max(axis=(0, 2))
    assert (seen[: last + 1] > 0).all()
    assert (seen[last + 1 :] > 0).any() == (direction == "bidirectional")
    for path, gradient in jax.tree_util.tree_leaves_with_path(d_variables["params"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        drawn_once = name in ("householder", "directions")
        # A bias of the keys adds the same number to all scores of a query, which the softmax does not see.
        assert gradient.any() != drawn_once or (mixer.name, name) == ("softmax", "k/bias"), name


@pytest.mark.slow
@_rows()
def test_padding_and_other_documents_are_never_seen(mixer, direction):
    case = case_of(mixer, direction)
    left, between = case.rng.integers(1, 2 * BLOCK, 2)
    ids = np.repeat([0, 7, 0, 3, 4, 0], [left, SHORT, between, SHORT, 300, LENGTH - 300 - 2 * SHORT - left - between])
    ids = jnp.asarray(ids[None], jnp.int32)
    real = ids[..., None] != 0
    x = case.normal(1, LENGTH, MODEL_DIM)
    weights = jnp.where(real, case.normal(1, LENGTH, MODEL_DIM), 0)

    clean = case.program(case.variables, x, ids, weights)
    dirty = case.program(case.variables, jnp.where(real, x, 1e9), ids, weights)
    assert np.isfinite(dirty[0]).all()
    jax.tree.map(np.testing.assert_array_equal, dirty[1], clean[1])
    for i in (0, 2):
        np.testing.assert_array_equal(jnp.where(real, dirty[i], 0), jnp.where(real, clean[i], 0))
    documents = [ids[0] == document for document in (7, 3)]
    assert_close(
        jnp.stack([clean[0][0][mine] for mine in documents]), case.alone(jnp.stack([x[0][mine] for mine in documents]))
    )


@_rows()
def test_size_of_arrays_in_the_compiled_gradient(mixer, direction):
    text = case_of(mixer, direction).program.as_text()
    shapes = [[int(size) for size in shape.split(",")] for shape in re.findall(r"\w\d*\[([\d,]+)\]", text)]
    assert [1, LENGTH, MODEL_DIM] in shapes
    largest = max(int(np.prod(shape)) for shape in shapes)
    assert (largest < LENGTH**2 // 2) == mixer.linear


@pytest.mark.slow
@_rows(lambda _, direction: direction == "causal")
def test_recurrent_is_parallel(mixer, direction):
    case = case_of(mixer, direction)
    prefill = 2 * BLOCK - 1
    lengths = [prefill, 1, 1, prefill, *[1] * BLOCK]
    x = case.normal(2, sum(lengths), MODEL_DIM)
    expected = case.alone(x)
    state, start, states = case.module.init_state(2, sum(lengths), MODEL_DIM), 0, {}
    for length in lengths:
        position = jnp.full((2, 1), start) + jnp.arange(length)[None]
        out, state = case.apply(case.variables, x[:, start : start + length], TokenPositions(position), state)
        assert_close(out, expected[:, start : start + length])
        start += length
        states[start] = state

    # Rows that have read different numbers of tokens take a step together.
    read = (prefill, prefill + 2)
    state = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), *(states[n] for n in read))
    token = jnp.stack([x[row, n] for row, n in enumerate(read)])[:, None]
    out, _ = case.apply(case.variables, token, TokenPositions(jnp.asarray(read)[:, None]), state)
    assert_close(out[:, 0], jnp.stack([expected[row, n] for row, n in enumerate(read)]))


@_rows(lambda mixer, direction: direction == mixer.directions[0])
def test_order_of_tokens(mixer, direction):
    case = case_of(mixer, direction)
    x = case.normal(2, SHORT, MODEL_DIM)
    swapped = x.at[:, jnp.array([-5, -2])].set(x[:, jnp.array([-2, -5])])
    last, last_of_swapped = case.alone(x)[:, -1], case.alone(swapped)[:, -1]
    difference = np.abs(last - last_of_swapped).max() / np.std(last)
    assert difference > 1e-3 if mixer.ordered else difference < 1e-4


@_rows(lambda mixer, direction: direction == mixer.directions[0])
def test_bfloat16(mixer, direction):
    case = case_of(mixer, direction)
    module = mixer.build(num_heads=NUM_HEADS, causal=direction == "causal", dtype=jnp.dtype("bfloat16"))
    x = case.normal(2, SHORT, MODEL_DIM)
    out, _ = jit(module.apply)(case.variables, x, positions(SHORT))
    assert out.dtype == jnp.bfloat16
    expected = case.alone(x)
    assert np.sqrt(np.mean(np.square(out.astype(jnp.float32) - expected))) < 0.05 * np.std(expected)


def test_mistakes_are_reported():
    x = jnp.zeros((1, 4, MODEL_DIM))
    for module, message in [
        (NormAttention(num_heads=2, causal=True, variant="t3"), "unknown variant 't3'"),
        (DiagAttention(num_heads=2, causal=True, variant="t11"), "did you mean 't1'"),
        (LinearTransformerAttention(num_heads=2, causal=True, backend="chunk"), "unknown backend 'chunk'"),
    ]:
        with pytest.raises(UserError, match=message):
            module.init(jax.random.key(0), x, positions(4))
    with pytest.raises(UserError, match="unknown norm 'layernorm': did you mean 'layer_norm'"):
        make_norm("layernorm", 1e-6, jnp.float32, jnp.float32, "norm")
