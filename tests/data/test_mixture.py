import json
import lzma
import tarfile

import numpy as np
import pytest

from tests.data.corpus import SPECIAL, random_documents
from tests.shared import shared_file
from transnormer_jax.data import DataConfig, MixedRows, PackedRows, load_split, load_tokenizer, train_batches
from transnormer_jax.errors import UserError

WEIGHTS = {"a": 0.6, "b": 0.3, "c": 0.1}


class Numbers:
    """Row r of source i is the pair (i, r)."""

    def __init__(self, source):
        self._source = source

    def __getitem__(self, row):
        return {"x": np.array([self._source, row])}


class Marked:
    """Rows that say where they come from."""

    def __init__(self, rows, source):
        self._rows, self._source = rows, source

    def __getitem__(self, row):
        return {**self._rows[row], "source": np.array(self._source)}


def make_rows(weights=WEIGHTS):
    return MixedRows({name: Numbers(i) for i, name in enumerate(weights)}, weights)


def places(rows, count):
    return np.stack([rows[row]["x"] for row in range(count)])


def test_shares_hold_from_the_first_rows_on():
    mixed = make_rows()
    found = places(mixed, 25_000)
    counts = np.stack([np.cumsum(found[:, 0] == i) for i in range(3)], axis=1)
    expected = np.arange(1, 25_001)[:, None] * np.array(list(WEIGHTS.values()))[None]
    assert np.abs(counts - expected).max() <= 1
    for rows in (0, 1, 17, 10_000, 24_999):
        assert list(mixed.counts(rows).values()) == [int((found[:rows, 0] == i).sum()) for i in range(3)]


def test_every_source_comes_in_its_own_order_without_a_gap():
    found = places(make_rows({"a": 2.0, "b": 1.0, "c": 0.01}), 25_000)
    for source in range(3):
        rows = found[found[:, 0] == source, 1]
        np.testing.assert_array_equal(rows, np.arange(len(rows)))


def test_the_proportions_count():
    np.testing.assert_array_equal(
        places(make_rows(), 500), places(make_rows({n: 7 * w for n, w in WEIGHTS.items()}), 500)
    )


def test_a_source_that_would_never_come_is_refused():
    with pytest.raises(UserError, match="source 'c' has less than one row in 10,000"):
        make_rows({"a": 1.0, "c": 1e-6})


def test_hosts_together_read_one_sequence_and_resume_anywhere():
    sources = {
        name: PackedRows(random_documents(30 + seed), 16, seed=3, **SPECIAL) for seed, name in enumerate(WEIGHTS)
    }
    mixed = MixedRows(sources, WEIGHTS)
    batch_size, count = 6, 20

    def stream(hosts, first_row=0):
        per_host = batch_size // hosts
        shares = [
            train_batches(
                mixed, batch_size=batch_size, first_row=first_row, offsets=range(h * per_host, (h + 1) * per_host)
            )
            for h in range(hosts)
        ]
        for _ in range(count):
            yield np.concatenate([next(share)["inputs"] for share in shares])

    alone = list(stream(1))
    for hosts in (2, 3):
        np.testing.assert_array_equal(list(stream(hosts)), alone)
    for step in (1, 7, 19):
        np.testing.assert_array_equal(list(stream(2, step * batch_size))[: count - step], alone[step:])


def test_a_mixture_in_the_configuration():
    config = DataConfig(
        tokenizer="bytes",
        data_dir="d",
        mixture={"python_source": 3, "mine": {"dataset": "plain_text", "files": "x.txt", "weight": 1}},
    )
    sources = config.sources()
    assert sources["python_source"] == DataConfig("python_source", data_dir="d")
    assert sources["mine"] == DataConfig("plain_text", files="x.txt", data_dir="d")
    assert config.amounts() == ("weight", {"python_source": 3.0, "mine": 1.0})
    assert DataConfig("lm1b").sources() == {"lm1b": DataConfig("lm1b")}


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"lm1b": 0}, "source 'lm1b' of the mixture needs one positive number"),
        ({"lm1b": "0.7"}, "source 'lm1b' of the mixture needs one positive number"),
        ({"lm1b": {"wieght": 1}}, "did you mean 'weight'"),
        ({"lm1b": {}}, "source 'lm1b' of the mixture needs one positive number"),
        ({"lm1b": {"weight": 1, "epochs": 1}}, "source 'lm1b' of the mixture needs one positive number"),
        ({"lm1b": {"epochs": 1}, "imdb_reviews": 1}, "some `epochs`"),
        ({"lm1b": {"file": "x", "weight": 1}}, r"config\.data\.mixture\.lm1b\.file: did you mean 'files'"),
    ],
)
def test_a_mixture_without_meaning_is_refused(mixture, message):
    with pytest.raises(UserError, match=message):
        DataConfig(mixture=mixture)


@pytest.mark.slow
def test_real_sources_in_their_shares(tmp_path):
    """Wikipedia, IMDb and WikiText, 60 to 30 to 10: slices of them, read for 10 million tokens."""
    with lzma.open(shared_file("data/enwiki2015_first100M.txt.xz"), "rt", encoding="utf-8") as wikipedia:
        (tmp_path / "wikipedia.txt").write_text(wikipedia.read(1_500_000))
    with lzma.open(shared_file("data/imdb_train.tsv.xz"), "rt", encoding="utf-8") as imdb:
        reviews = [line.rstrip("\n").partition("\t")[2] for line in imdb.readlines()[:1000]]
    (tmp_path / "imdb.jsonl").write_text("".join(json.dumps({"review": text}) + "\n" for text in reviews))
    with tarfile.open(shared_file("data/wikitext2_shakespeare.tar.xz")) as archive:
        member = next(name for name in archive.getnames() if "wikitext" in name.lower() and "test" in name)
        (tmp_path / "wikitext.txt").write_bytes(archive.extractfile(member).read())
    config = DataConfig(
        data_dir=str(tmp_path / "prepared"),
        mixture={
            name: {"dataset": "plain_text", "files": str(tmp_path / file), "weight": weight} | rest
            for name, file, weight, rest in (
                ("wikipedia", "wikipedia.txt", 0.6, {"documents": "marked"}),
                ("imdb", "imdb.jsonl", 0.3, {"text_feature": "review"}),
                ("wikitext", "wikitext.txt", 0.1, {"documents": "line"}),
            )
        },
    )
    tokenizer, length = load_tokenizer("bytes"), 1024
    kind, weights = config.amounts()
    assert kind == "weight"
    documents = {name: load_split(source, tokenizer, "train") for name, source in config.sources().items()}
    packed = {name: PackedRows(source, length, seed=0, **SPECIAL) for name, source in documents.items()}
    marked = {name: Marked(source, i) for i, (name, source) in enumerate(packed.items())}
    mixed = MixedRows(marked, weights)
    rows = [mixed[row] for row in range(10_000_000 // length)]
    tokens = np.zeros(3)
    for row in rows:
        tokens[row["source"]] += (row["segment_ids"] > 0).sum()
    assert tokens.sum() > 9_900_000
    np.testing.assert_allclose(tokens / tokens.sum(), [0.6, 0.3, 0.1], rtol=0, atol=0.005)
