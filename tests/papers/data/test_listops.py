import csv
import io
import itertools
import random
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy import stats

from tests.shared import shared_file
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.listops import ListOps, ListOpsConfig
from transnormer_jax.papers.data.listops_expression import CLOSE, MIN, SUM, SYMBOLS, evaluate, parse
from transnormer_jax.papers.data.listops_sampler import ListOpsSampler, listops_samples

NO_DOWNLOAD = tfds.download.DownloadConfig(try_download_gcs=False)


def take(sampler, count, seed=0, processes=1):
    return list(itertools.islice(listops_samples(sampler, seed, processes), count))


@pytest.fixture(scope="module")
def samples():
    return take(ListOpsSampler(), 6000)


@pytest.fixture(scope="module")
def released_samples():
    """(tokens, target) of files written by the original generator."""
    rows = []
    with tarfile.open(shared_file("data/listops_val_test.tar.xz")) as archive:
        for name in ("val", "test"):
            file = io.TextIOWrapper(archive.extractfile(f"listops/basic_{name}.tsv"))
            rows += [(parse(row["Source"]), int(row["Target"])) for row in csv.DictReader(file, delimiter="\t")]
    return rows


def sigma(share, count):
    return np.sqrt(share * (1 - share) / count)


def constant_per_root(samples):
    """The accuracy of the best constant answer to each root operator."""
    counts = np.zeros((len(SYMBOLS), 10))
    for tokens, value in samples:
        counts[tokens[0], value] += 1
    return counts.max(axis=1).sum() / len(samples)


@pytest.mark.slow
def test_released_files_parse_to_their_targets(released_samples):
    assert len(released_samples) == 4000
    assert all(evaluate(tokens) == target for tokens, target in released_samples)
    assert all(500 < len(tokens) < 2000 for tokens, _ in released_samples)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("[MIN 3 2 9 ]", 2),
        ("[MAX 3 2 9 ]", 9),
        ("[MED 1 9 4 ]", 4),
        ("[MED 1 2 9 4 ]", 3),
        ("[MED 2 3 ]", 2),
        ("[SM 7 8 9 ]", 4),
        ("( ( ( [MAX 2 ) ( ( ( [SM 8 ) 5 ) ] ) ) ] )", 3),
    ],
)
def test_value(text, value):
    assert evaluate(parse(text)) == value


@pytest.mark.parametrize(("text", "message"), [("[MEAN 1 2 ]", "MEAN"), ("[MIN ]", "bracket"), ("[MIN 1", "closed"),
                                               ("1 ]", "bracket"), ("1 2", "closed"), ("", "closed")])  # fmt: skip
def test_a_broken_expression_is_the_users_error(text, message):
    with pytest.raises(UserError, match=message):
        evaluate(parse(text))


@pytest.mark.slow
def test_samples_are_well_formed_and_their_values_right(samples):
    for tokens, value in samples[:1000]:
        assert tokens.dtype == np.uint8
        assert 500 < len(tokens) < 2000
        assert evaluate(tokens) == value
        depth = np.cumsum(((tokens >= MIN) & (tokens <= SUM)).astype(int) - (tokens == CLOSE))
        assert depth.max() <= 9
    assert len({tokens.tobytes() for tokens, _ in samples}) == len(samples)


def test_shares_of_answers_are_those_of_the_distribution(samples):
    # Measured on 6,000 samples of another implementation; so both sides have a sampling error.
    count = len(samples)
    shares = np.bincount([value for _, value in samples], minlength=10) / count
    for digit, share in ((0, 0.170), (9, 0.174)):
        assert abs(shares[digit] - share) < 3 * np.sqrt(2) * sigma(share, count)
    assert (shares[1:9] > 0.073 - 3 * sigma(0.073, count)).all()
    assert (shares[1:9] < 0.091 + 3 * sigma(0.091, count)).all()
    assert abs(shares.max() - 0.174) < 3 * np.sqrt(2) * sigma(0.174, count)
    assert abs(constant_per_root(samples) - 0.369) < 3 * np.sqrt(2) * sigma(0.369, count)


def test_root_operators_are_equally_likely(samples):
    roots = np.bincount([tokens[0] for tokens, _ in samples])[MIN : SUM + 1]
    assert stats.chisquare(roots).pvalue > 1e-3


def test_lengths_and_answers_are_distributed_as_in_the_released_files(samples, released_samples):
    assert stats.ks_2samp([len(t) for t, _ in samples], [len(t) for t, _ in released_samples]).pvalue > 1e-3
    answers = [np.bincount([value for _, value in rows], minlength=10) for rows in (samples, released_samples)]
    assert stats.chi2_contingency(answers).pvalue > 1e-3


@pytest.mark.slow
def test_forests_have_the_distribution_of_trees_drawn_one_by_one():
    sampler = ListOpsSampler(min_length=20, max_length=100, max_depth=5, max_args=6)
    rng = random.Random(0)

    def draw(depth):
        if depth == sampler.max_depth or rng.random() >= 0.25:
            return [rng.randint(1, 10)]
        arguments = [draw(depth + 1) for _ in range(rng.randint(2, sampler.max_args))]
        return [rng.randint(MIN, SUM), *itertools.chain(*arguments), CLOSE]

    trees = [tree for tree in (draw(1) for _ in range(60_000)) if sampler.min_length < len(tree) < sampler.max_length]
    drawn = take(sampler, 5000)
    assert len(trees) > 1000
    assert stats.ks_2samp([len(tree) for tree in trees], [len(tokens) for tokens, _ in drawn]).pvalue > 1e-3
    values = [evaluate(np.array(tree)) for tree in trees], [value for _, value in drawn]
    assert stats.chi2_contingency([np.bincount(one, minlength=10) for one in values]).pvalue > 1e-3
    # Every symbol, and the most arguments that a list may have.
    symbols = [np.bincount(list(itertools.chain(*texts))) for texts in (trees, [t.tolist() for t, _ in drawn])]
    shares = [count / count.sum() for count in symbols]
    np.testing.assert_allclose(shares[0][1:], shares[1][1:], rtol=0.05)


@pytest.mark.slow
def test_each_tree_comes_once_and_the_end_is_reported():
    # 4 operators over 2 or 3 digits: 400 + 4,000 trees.
    stream = listops_samples(ListOpsSampler(min_length=3, max_length=10, max_depth=2, max_args=3), seed=0, processes=1)
    trees = {tokens.tobytes() for tokens, _ in itertools.islice(stream, 4400)}
    assert len(trees) == 4400
    with pytest.raises(UserError, match="only 4400 different"):
        next(stream)


@pytest.mark.slow
def test_the_stream_is_the_same_on_any_number_of_processes():
    sampler = ListOpsSampler(50, 200)
    streams = take(sampler, 300, seed=3), take(sampler, 300, seed=3, processes=2)
    for (one, value), (other, other_value) in zip(*streams, strict=True):
        np.testing.assert_array_equal(one, other)
        assert value == other_value
    assert any(
        one.tobytes() != other.tobytes() for (one, _), (other, _) in zip(streams[0], take(sampler, 300), strict=True)
    )


def build(tmp_path, **options):
    config = ListOpsConfig(num_validation=20, num_test=30, min_length=50, max_length=200, processes=1, **options)
    builder = ListOps(config=config, data_dir=tmp_path)
    builder.download_and_prepare(file_format="array_record", download_config=NO_DOWNLOAD)
    return {split: list(builder.as_data_source(split)) for split in builder.info.splits}


@pytest.mark.slow
def test_splits_are_apart_and_held_out_ones_stay_as_they_are(tmp_path):
    splits = build(tmp_path, num_train=100)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 100, "validation": 20, "test": 30}
    texts = [row["tokens"].tobytes() for rows in splits.values() for row in rows]
    assert len(set(texts)) == 150
    assert all(evaluate(row["tokens"]) == row["label"] for rows in splits.values() for row in rows)
    more = build(tmp_path, num_train=200)
    for split in ("validation", "test"):
        for one, other in zip(splits[split], more[split], strict=True):
            np.testing.assert_array_equal(one["tokens"], other["tokens"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_test": 0}, "no example"),
        ({"max_depth": 1}, "at least 2"),
        ({"min_length": 2000}, "no ListOps list"),
        ({"min_length": 0}, "no ListOps list"),
        ({"seed": -1}, "negative"),
    ],
)
def test_a_law_without_trees_is_the_users_error(options, message):
    with pytest.raises(UserError, match=message):
        ListOpsConfig(**options)
