"""LSH attention against the reference implementations, and against its definition as one dense softmax."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.test_golden import load
from tests.shared import shared_file
from transnormer_jax.errors import UserError
from transnormer_jax.papers.ops.lsh_attention import attend_in_buckets, bucket_factors, lsh_attention, lsh_hash

LUCIDRAINS = [
    "reformer_luc_bidir_2rounds_within_bucket",
    "reformer_luc_bidir_4rounds",
    "reformer_luc_causal_1round",
    "reformer_luc_causal_4rounds_lengths",
]
HUGGING_FACE = ["reformer_hf_bidir_1round", "reformer_hf_causal_4rounds"]
DUPLICATES = "reformer_luc_bidir_3rounds_duplicate_correction"


jitted_attend = jax.jit(attend_in_buckets, static_argnames=("chunk_size", "causal"))
jitted_lsh = jax.jit(lsh_attention, static_argnames=("chunk_size", "causal"))


def config_of(name: str) -> dict:
    return json.loads(shared_file(f"golden/{name}.json").read_text())["config"]


def assert_near(actual, expected, tolerance):
    """Within a tolerance of the array's rms."""
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.sqrt(np.mean(np.square(expected))))


def inputs(seed, batch=2, length=40, heads=2, features=8, rounds=3, num_buckets=6):
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, heads, features)] * 2 + [(heads, features, rounds, num_buckets // 2)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def meetings(buckets, chunk_size, across_rounds=True):
    """How often i and j meet, [rows, N, N], from buckets [rows, rounds, N]: the sorting, chunk by chunk, in NumPy."""
    rows, rounds, length = buckets.shape
    count = np.zeros((rows, length, length), np.int64)
    for row in range(rows):
        order = [np.argsort(ids, kind="stable") for ids in buckets[row]]
        chunks = np.concatenate(order).reshape(-1, chunk_size)
        per_round = length // chunk_size
        for g, chunk in enumerate(chunks):
            count[row][np.ix_(chunk, chunk)] += 1
            if across_rounds or rounds == 1 or g % per_round:
                count[row][np.ix_(chunk, chunks[g - 1])] += 1
    return count


def dense(qk, v, weight, scale):
    """The definition: softmax with a weight [rows, N, N] on each pair, and v where a row has none. [rows, N, K]"""
    keys = qk / jnp.linalg.norm(qk, axis=-1, keepdims=True)
    scores = scale * jnp.einsum("bik,bjk->bij", qk, keys)
    terms = weight * jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = terms.sum(axis=-1, keepdims=True)
    return jnp.where(total > 0, terms @ v / jnp.where(total > 0, total, 1), v)


@pytest.mark.slow
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", LUCIDRAINS)
def test_golden_arrays(name, wide):
    golden, config = load(name), config_of(name)
    with jax.enable_x64(wide):
        dtype = jnp.float64 if wide else jnp.float32
        qk, v, rotations, d_out = (jnp.asarray(golden[f"in/{x}"], dtype) for x in ("qk", "v", "rotations", "cotangent"))
        buckets = lsh_hash(qk[:, :, None], rotations)
        rounds, num_buckets = config["rounds"], config["n_buckets"]
        offsets = num_buckets * np.arange(rounds)[None, :, None]
        np.testing.assert_array_equal(np.asarray(buckets[:, 0]) + offsets, golden["out/buckets"])
        real = golden.get("in/mask", np.ones(qk.shape[:2], bool))

        def attend(qk, v):
            return attend_in_buckets(
                qk[:, :, None],
                v[:, :, None],
                buckets,
                chunk_size=config["chunk"],
                causal=config["causal"],
                segment_ids=jnp.asarray(real, jnp.int32) if "in/mask" in golden else None,
                scale=qk.shape[-1] ** -0.5,
                eps=1e-24,
                within_buckets=not config["attend_across_buckets"],
            )[:, :, 0]

        y, pull_back = jax.vjp(jax.jit(attend), qk, v)
        d_qk, d_v = pull_back(d_out)
        tolerance = 1e-9 if wide else 2e-5
        assert_near(y[real], golden["out/y"][real], tolerance)
        assert_near(d_qk[real], golden["grad/qk"][real], tolerance)
        assert_near(d_v[real], golden["grad/v"][real], tolerance)
        alone = golden["aux/self_only_rows"] & real
        np.testing.assert_array_equal(y[alone], v[alone])


@pytest.mark.slow
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_golden_modules(name, wide):
    golden, config = load(name), config_of(name)
    with jax.enable_x64(wide):
        dtype = jnp.float64 if wide else jnp.float32
        names = ("in/x", "param/query_key.weight", "param/value.weight", "in/rotations", "in/cotangent")
        x, w_qk, w_v, rotations, d_out = (jnp.asarray(golden[name], dtype) for name in names)

        def split(x):
            return x.reshape(*x.shape[:2], config["heads"], -1)

        buckets = lsh_hash(split(x @ w_qk.T), rotations)
        offsets = config["num_buckets"] * np.arange(config["rounds"])[None, None, :, None]
        np.testing.assert_array_equal(np.asarray(buckets) + offsets, golden["out/buckets"])

        def attend(x, w_qk):
            out = lsh_attention(
                split(x @ w_qk.T),
                split(x @ w_v.T),
                rotations,
                chunk_size=config["chunk"],
                causal=config["causal"],
            )
            return out.reshape(x.shape)

        y, pull_back = jax.vjp(jax.jit(attend), x, w_qk)
        d_x, d_w = pull_back(d_out)
        tolerance = 1e-9 if wide else 2e-5
        assert_near(y, golden["out/y"], tolerance)
        assert_near(d_x, golden["grad/x"], tolerance)
        assert_near(d_w, golden["grad/query_key.weight"], tolerance)
        alone = golden["aux/self_only_rows"]
        np.testing.assert_array_equal(split(y)[alone], split(x @ w_v.T)[alone])


@pytest.mark.slow
def test_golden_duplicates():
    """The reference divides the weight of a pair by a count of its own: 0 where it meets across two rounds only.

    So the file holds the definition to the reference with that count, and the definition without it holds the operator.
    """
    golden, config = load(DUPLICATES), config_of(DUPLICATES)
    with jax.enable_x64(True):
        qk, v, rotations, d_out = (
            jnp.asarray(golden[f"in/{x}"], jnp.float64) for x in ("qk", "v", "rotations", "cotangent")
        )
        buckets = lsh_hash(qk[:, :, None], rotations)
        offsets = config["n_buckets"] * np.arange(config["rounds"])[None, :, None]
        np.testing.assert_array_equal(np.asarray(buckets[:, 0]) + offsets, golden["out/buckets"])
        others = ~np.eye(qk.shape[1], dtype=bool)
        count = meetings(np.asarray(buckets[:, 0]), config["chunk"]) * others
        counted = meetings(np.asarray(buckets[:, 0]), config["chunk"], across_rounds=False)
        scale = qk.shape[-1] ** -0.5

        log_count = np.log(np.float32(counted) + np.float32(1e-9))  # in float32, as the reference takes it
        weight = count * np.exp(-log_count.astype(np.float64))
        reference, pull_back = jax.vjp(jax.jit(lambda qk, v: dense(qk, v, weight, scale)), qk, v)
        assert_near(reference, golden["out/y"], 1e-9)
        for name, gradient in zip(("qk", "v"), pull_back(d_out), strict=True):
            assert_near(gradient, golden[f"grad/{name}"], 1e-9)

        def attend(qk, v):
            return attend_in_buckets(
                qk[:, :, None],
                v[:, :, None],
                buckets,
                chunk_size=config["chunk"],
                causal=False,
                scale=scale,
                eps=1e-24,
            )[:, :, 0]

        expected, expected_pull_back = jax.vjp(jax.jit(lambda qk, v: dense(qk, v, count, scale)), qk, v)
        out, pull_back = jax.vjp(jax.jit(attend), qk, v)
        assert_near(out, expected, 1e-9)
        for gradient, like in zip(pull_back(d_out), expected_pull_back(d_out), strict=True):
            assert_near(gradient, like, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounds", "chunk_size", "causal"),
    [(3, 8, True), (1, 8, False), (2, 40, True)],
)
def test_is_its_definition(rounds, chunk_size, causal):
    qk, v, rotations = inputs(0, heads=1, rounds=rounds)
    buckets = lsh_hash(qk, rotations)
    count = meetings(np.asarray(buckets[:, 0]), chunk_size) * ~np.eye(qk.shape[1], dtype=bool)
    count = np.tril(count) if causal else count
    out = jitted_attend(qk, v, buckets, chunk_size=chunk_size, causal=causal)
    assert_near(out[:, :, 0], dense(qk[:, :, 0], v[:, :, 0], count, 1.0), 2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_one_chunk_is_full_attention(causal):
    qk, v, rotations = inputs(1, length=21, rounds=1, num_buckets=2)
    out = jitted_lsh(qk, v, rotations, chunk_size=21, causal=causal)
    keys = qk / jnp.sqrt(jnp.sum(qk**2, axis=-1, keepdims=True) + qk.shape[-1] * 1e-6)
    scores = jnp.einsum("bihk,bjhk->bhij", qk, keys)
    i, j = np.indices((21, 21))
    scores = jnp.where(j < i if causal else j != i, scores, -1e9)
    scores = jnp.where((i == j)[None, None], -1e5, scores)
    expected = jnp.einsum("bhij,bjhk->bihk", jax.nn.softmax(scores), v)
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_hash_with_two_factors():
    x, _, rotations = inputs(2, num_buckets=12)
    both = lsh_hash(x, rotations, (8, 4))
    first, second = lsh_hash(x, rotations[..., :4]), lsh_hash(x, rotations[..., 4:])
    np.testing.assert_array_equal(both, first + 8 * second)
    assert len(np.unique(both)) > 12
    for number in (2, 128, 130, 192, 512, 5000):
        factors = bucket_factors(number)
        assert all(factor % 2 == 0 for factor in factors)
        assert number <= np.prod(factors) < 1.3 * number
    for number in (0, 7):
        with pytest.raises(UserError, match="give an even number"):
            bucket_factors(number)


@pytest.mark.slow
def test_causal_by_gradient():
    length = 37
    qk, v, rotations = inputs(3, batch=1, length=length)
    buckets = lsh_hash(qk, rotations)

    def attend(qk, v):
        return attend_in_buckets(qk, v, buckets, chunk_size=8, causal=True)[0].sum((1, 2))

    for jacobian in jax.jit(jax.jacobian(attend, argnums=(0, 1)))(qk, v):
        influence = np.abs(jacobian[:, 0]).sum((2, 3))
        assert (np.triu(influence, 1) == 0).all()
        assert (np.tril(influence, -1) > 0).sum() > length


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_padding_and_documents_never_leak(causal):
    qk, v, rotations = inputs(4, length=41)
    segment_ids = jnp.asarray(np.repeat([[1, 2, 0], [0, 3, 5]], [13, 17, 11], axis=1), jnp.int32)

    @jax.jit
    def attend(qk, v):
        return lsh_attention(qk, v, rotations, chunk_size=8, causal=causal, segment_ids=segment_ids)

    padding = (segment_ids == 0)[..., None, None]
    clean = attend(qk, v)
    dirty = attend(jnp.where(padding, 1e9, qk), jnp.where(padding, -1e9, v))
    np.testing.assert_array_equal(jnp.where(padding, 0, clean), jnp.where(padding, 0, dirty))
    assert np.isfinite(dirty).all()

    def first_row_second_document(v):
        return attend(qk, v)[0, 13:30].sum()

    gradient = np.abs(jax.grad(first_row_second_document)(v)).sum((2, 3))
    assert (gradient[0, 13:30] > 0).any()
    gradient[0, 13:30] = 0
    assert (gradient == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_padding_sorts_behind_all_tokens_as_in_hugging_face(causal):
    """There, padding has one more bucket, the last of each round, and no token sees it."""
    num_buckets, real = 6, 25
    qk, v, rotations = inputs(8, batch=1, num_buckets=num_buckets)
    segment_ids = (jnp.arange(qk.shape[1]) < real).astype(jnp.int32)[None]
    out = jitted_lsh(qk, v, rotations, chunk_size=8, causal=causal, segment_ids=segment_ids)
    buckets = np.array(lsh_hash(qk, rotations)).swapaxes(0, 1)[:, 0]  # [heads, rounds, N]
    buckets[..., real:] = num_buckets
    count = meetings(buckets, 8) * ~np.eye(qk.shape[1], dtype=bool)
    count = np.tril(count) if causal else count
    count[..., real:] = 0
    for head in range(2):
        expected = dense(qk[:, :, head], v[:, :, head], count[[head]], 1.0)
        assert_near(out[:, :real, head], expected[:, :real], 2e-5)


def test_later_tokens_move_the_borders_of_causal_chunks():
    qk, v, rotations = inputs(9, batch=1)
    other = qk.at[:, 30:].set(-qk[:, 30:])
    one, two = (jitted_lsh(x, v, rotations, chunk_size=8, causal=True)[:, :30] for x in (qk, other))
    assert np.abs(one - two).max() > 1e-2


@pytest.mark.slow
def test_a_document_in_one_chunk_is_the_document_alone():
    """Where all of a document fits into a chunk and no border cuts it, packing changes nothing."""
    qk, v, rotations = inputs(5, length=32, rounds=2)
    segment_ids = jnp.asarray(np.repeat([[1, 2]], 16, axis=1).repeat(2, axis=0), jnp.int32)
    packed = jitted_lsh(qk, v, rotations, chunk_size=16, causal=True, segment_ids=segment_ids)
    for part in (slice(0, 16), slice(16, 32)):
        alone = jitted_lsh(qk[:, part], v[:, part], rotations, chunk_size=16, causal=True)
        np.testing.assert_allclose(packed[:, part], alone, atol=2e-6)


@pytest.mark.slow
def test_half_precision_is_near():
    qk, v, rotations = inputs(6)
    buckets = lsh_hash(qk.astype(jnp.bfloat16), rotations)
    out = jitted_attend(*(x.astype(jnp.bfloat16) for x in (qk, v)), buckets, chunk_size=8, causal=True)
    assert out.dtype == jnp.bfloat16
    exact = jitted_attend(qk, v, buckets, chunk_size=8, causal=True)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.06)


@pytest.mark.slow
def test_no_matrix_of_all_pairs():
    length = 1013
    qk, v, rotations = inputs(7, batch=1, length=length, num_buckets=64)

    def loss(qk, v):
        return lsh_attention(qk, v, rotations, chunk_size=32, causal=True).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(qk, v).compile().as_text()
    assert f"{length},{length}" not in text
    assert "1024,1024" not in text  # the length with its filling
    assert "1024,8" in text
