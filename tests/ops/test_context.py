"""Rows that are split over the devices of a mesh axis equal whole rows, by every backend that runs here."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.definition import relative_rms
from transnormer_jax.distributed import MeshConfig, make_mesh
from transnormer_jax.errors import UserError
from transnormer_jax.ops import gated_linear_attention, linear_attention, token_positions
from transnormer_jax.ops.hardware import interpret_kernels

LOG_DECAY = np.array([-0.7, -0.05, -1e-5, 0.0], np.float32)


def make_segment_ids(batch: int, length: int) -> np.ndarray:
    """Documents that end within shards and at their borders, shards of padding alone, and padding on either side."""
    ids = np.sort(np.random.default_rng(0).integers(1, 7, (batch, length)), axis=1).astype(np.int32)
    ids[0, length // 4 :] = 2
    ids[0, : length // 4] = 1
    ids[1, 5 : length - 3] = 0
    return ids


def results(backend: str, *, causal: bool, segments: bool, length: int = 64):
    """Outputs and all gradients."""
    rng = np.random.default_rng(1)
    q, k, v, d_out = rng.normal(size=(4, 2, length, 4, 8)).astype(np.float32)
    state, d_state = rng.normal(size=(2, 2, 4, 8, 8)).astype(np.float32)
    log_decay = jnp.asarray(LOG_DECAY) if causal else None
    ids = jnp.asarray(make_segment_ids(2, length)) if segments else None

    def attend(q, k, v, state, log_decay):
        options = {"initial_state": state, "segment_ids": ids, "causal": causal, "backend": backend}
        return linear_attention(q, k, v, log_decay, **options)

    @jax.jit
    def outputs_and_gradients(*operands):
        outputs, pull_back = jax.vjp(attend, *operands)
        return outputs, pull_back((d_out, d_state))

    return outputs_and_gradients(q, k, v, state, log_decay)


@functools.cache
def on_one_device(causal: bool, segments: bool):
    return results("quadratic", causal=causal, segments=segments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "causal", "segments"),
    [
        *((name, True, True) for name in ("chunked", "chunked_associative_scan", "associative_scan", "pallas_tpu")),
        ("chunked", True, False),
        ("chunked", False, True),  # two causal passes, by whatever backend
        ("chunked", False, False),
    ],
)
def test_shards_equal_whole_rows(backend, causal, segments):
    expected = on_one_device(causal, segments)
    mesh = make_mesh(MeshConfig(data=1, context=4, tensor=2))
    with interpret_kernels(), jax.set_mesh(mesh):
        actual = results(backend, causal=causal, segments=segments)
    assert actual[0][0].sharding.spec[1] == "context"
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_rms(a, np.asarray(b, np.float64)) <= 5e-6


@pytest.mark.slow
def test_a_state_passes_through_shards_without_drift():
    """A decay of exp(-1e-5) over a shard is 1 - 1e-5 n to the last bit that float32 has."""
    length = 4096
    q = k = v = jnp.zeros((1, length, 1, 8))
    state = jnp.ones((1, 1, 8, 8))
    with jax.set_mesh(make_mesh(MeshConfig(data=1, context=8))):
        _, after = jax.jit(linear_attention)(q, k, v, jnp.array([-1e-5]), initial_state=state)
    np.testing.assert_allclose(after, np.exp(-1e-5 * length), rtol=2e-7)


@pytest.mark.slow
def test_rows_that_do_not_divide_are_whole_everywhere():
    with jax.set_mesh(make_mesh(MeshConfig(data=1, context=8))):
        actual = results("chunked", causal=True, segments=True, length=60)
    expected = results("chunked", causal=True, segments=True, length=60)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_rms(a, np.asarray(b, np.float64)) <= 5e-6


@pytest.mark.slow
def test_positions_continue_from_shard_to_shard():
    ids, start = jnp.asarray(make_segment_ids(2, 64)), jnp.array([5, 7], jnp.int32)
    expected = token_positions(ids, start)
    with jax.set_mesh(make_mesh(MeshConfig(data=1, context=8))):
        np.testing.assert_array_equal(jax.jit(token_positions)(ids, start), expected)


@pytest.mark.slow
def test_what_travels_does_not_depend_on_the_length():
    def traffic(length: int) -> dict[str, list[str]]:
        rows = jax.ShapeDtypeStruct((2, length, 4, 8), jnp.float32)
        ids = jax.ShapeDtypeStruct((2, length), jnp.int32)

        def loss(q, k, v, ids):
            return jnp.sum(linear_attention(q, k, v, jnp.asarray(LOG_DECAY), segment_ids=ids)[0] ** 2)

        mesh = make_mesh(MeshConfig(data=1, context=8))
        rows, ids = (
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, jax.P(None, "context")))
            for x in (rows, ids)
        )
        with jax.set_mesh(mesh):
            text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(rows, rows, rows, ids).compile().as_text()
        return sorted(re.findall(r"= (\S+) (all-gather|reduce-scatter|all-reduce|collective-permute|all-to-all)", text))

    short = traffic(1024)
    assert short == traffic(4096)
    states = [shape for shape, kind in short if "4,8,8]" in shape]
    assert len(states) == 2  # one gather forward, one scatter backward


@pytest.mark.slow
def test_gradient_of_gradient():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 32, 2, 4))

    def curvature(q, k, v, log_decay):
        def loss(*operands):
            return jnp.sum(linear_attention(*operands)[0] ** 2)

        gradients = jax.grad(loss, argnums=(0, 1, 2, 3))
        return jax.grad(lambda *operands: sum(jnp.sum(g**2) for g in gradients(*operands)), argnums=(0, 1, 2, 3))(
            q, k, v, log_decay
        )

    operands = (q, k, v, jnp.full(2, -0.1))
    expected = jax.jit(curvature)(*operands)
    with jax.set_mesh(make_mesh(MeshConfig(data=1, context=8))):
        actual = jax.jit(curvature)(*operands)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


EXPLICIT = [(("rows", None, None), True), ((None, "tokens", None), True), (("a", "b", "c"), True), (("a", "b"), False)]


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "causal"), EXPLICIT)
def test_explicit_axes_of_any_name_gather_no_operand(spec, causal: bool):
    names = tuple(name for name in spec if name)
    mesh = jax.make_mesh((8,) if len(names) == 1 else (2, 2, 2)[: len(names)], names)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 8, 96, 8, 4))
    ids = jnp.asarray(make_segment_ids(8, 96)) if causal else None
    log_decay = -jnp.exp(jax.random.normal(jax.random.key(1), q.shape[:3])) if causal else None

    def attend(q, k, v, log_decay, ids):
        def loss(q, k, v):
            out, _ = linear_attention(q, k, v, log_decay, segment_ids=ids, causal=causal)
            return jnp.sum(jnp.sin(out))

        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    expected = jax.jit(attend)(q, k, v, log_decay, ids)
    with jax.set_mesh(mesh):
        q, k, v, log_decay, ids = (
            x if x is None else jax.device_put(x, jax.P(*spec[: x.ndim])) for x in (q, k, v, log_decay, ids)
        )
        program = jax.jit(attend).lower(q, k, v, log_decay, ids).compile()
        actual = program(q, k, v, log_decay, ids)
    for a, b in zip(actual, expected, strict=True):
        assert (*a.sharding.spec, *[None] * 4)[: len(spec)] == spec
        assert relative_rms(a, np.asarray(b, np.float64)) <= 5e-6
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather", program.as_text())
    lengths = {"96", "48", "12"}  # of rows and of their shards
    assert not any(lengths & set(shape.split(",")) for shape in gathered), gathered


def test_an_axis_without_a_rule_is_refused():
    q = jnp.zeros((2, 16, 2, 4))
    mesh = jax.make_mesh((8,), ("other",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(UserError, match="mesh axis 'other' is none of data, fsdp, context, tensor"):
        linear_attention(q, q, q)
    with jax.set_mesh(mesh):  # its devices then do what they like
        attend = jax.shard_map(lambda q: linear_attention(q, q, q)[0], in_specs=jax.P(), out_specs=jax.P())
        assert jax.jit(attend)(q).shape == q.shape


def test_operands_that_are_sharded_differently_are_refused():
    with jax.set_mesh(jax.make_mesh((8,), ("rows",))):
        q, k = (jax.device_put(jnp.zeros((8, 8, 2, 4)), jax.P(*spec)) for spec in (("rows",), (None, "rows")))
        with pytest.raises(UserError, match="are sharded differently"):
            linear_attention(q, k, k)
        with pytest.raises(UserError, match="q, k, v and a decay per token are sharded differently"):
            linear_attention(q, q, q, jnp.full((8, 8, 2), -1.0))
        with pytest.raises(UserError, match="are sharded differently"):
            gated_linear_attention(q, k, k, -k)
        features = jax.device_put(jnp.zeros((8, 8, 2, 8)), jax.P(None, None, None, "rows"))
        with pytest.raises(UserError, match="its features must be whole"):
            linear_attention(features, features, features)


def test_one_sum_without_causality():
    q = jax.ShapeDtypeStruct((2, 64, 4, 8), jnp.float32)
    with jax.set_mesh(make_mesh(MeshConfig(data=1, context=8))):
        program = jax.jit(functools.partial(linear_attention, causal=False)).lower(q, q, q).compile()
    assert len(re.findall(r" all-reduce\(", program.as_text())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("packed", "per_token"), [(True, False), (True, True), (False, True)])
def test_states_of_documents_in_shards_equal_those_in_whole_rows(packed: bool, per_token: bool):
    """Documents that end at a border, reach over several shards, or do not occur; shards of padding alone."""
    rng = np.random.default_rng(3)
    q, k, v, d_out = rng.normal(size=(4, 2, 64, 4, 8)).astype(np.float32)
    state, d_state = rng.normal(size=(2, 2, 8, 4, 8, 8)).astype(np.float32)
    log_decay = -np.exp(rng.normal(size=(2, 64, 4)) - 2).astype(np.float32) if per_token else LOG_DECAY
    ids = jnp.asarray(make_segment_ids(2, 64)) if packed else None

    @jax.jit
    def outputs_and_gradients(q, k, v, state, log_decay, d_out, d_state):
        def attend(q, k, v, state, log_decay):
            options = {"initial_state": state, "segment_ids": ids, "max_segments": 8, "backend": "chunked"}
            return linear_attention(q, k, v, log_decay, **options)

        outputs, pull_back = jax.vjp(attend, q, k, v, state, log_decay)
        return outputs, pull_back((d_out, d_state))

    operands = (q, k, v, state, log_decay, d_out, d_state)
    expected = outputs_and_gradients(*operands)
    with jax.set_mesh(make_mesh(MeshConfig(data=1, context=8))):
        actual = outputs_and_gradients(*operands)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_rms(a, np.asarray(b, np.float64)) <= 5e-6


@pytest.mark.slow
def test_a_document_too_many_is_nan_in_every_shard():
    ids = jnp.arange(1, 5).repeat(16)[None]
    q = jnp.ones((1, 64, 1, 4))
    with jax.set_mesh(make_mesh(MeshConfig(data=1, context=8))):
        out, states = linear_attention(q, q, q, segment_ids=ids, max_segments=3)
    assert np.isnan(out[:, 48:]).all()
    assert not np.isnan(out[:, :48]).any()
    assert not np.isnan(states).any()
