import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.data.corpus import SPECIAL, ListDocuments, random_documents, recover
from transnormer_jax.data import PackedRows
from transnormer_jax.errors import UserError


def epoch_rows(rows, epoch):
    """The rows of an epoch in the order of the line they were cut from."""
    first = epoch * rows.rows_per_epoch
    return [rows[first + row] for row in np.argsort(rows.row_order(epoch))]


def test_neighbouring_rows_are_not_parts_of_one_document():
    documents = ListDocuments(np.full(100, 3 + i) for i in range(20))
    rows = PackedRows(documents, 10, seed=0, **SPECIAL)
    assert sorted(rows.row_order(0)) == list(range(rows.rows_per_epoch))
    first = [int(np.median(rows[row]["inputs"])) for row in range(rows.rows_per_epoch)]
    same = np.mean(np.array(first[1:]) == first[:-1])
    assert same < 0.2  # 0.9 if the rows came as they were cut


@pytest.mark.parametrize("sequence_length", [1, 7, 64, 5000])
@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_holds_every_document_once(sequence_length, epoch):
    documents = random_documents()
    rows = PackedRows(documents, sequence_length, seed=5, **SPECIAL)
    found = recover(epoch_rows(rows, epoch))
    assert sorted(found) == sorted(tuple(document.tolist()) for document in documents.documents)


def test_rows_are_full_and_typed_and_only_the_last_is_padded():
    rows = PackedRows(random_documents(), 32, seed=0, **SPECIAL)
    *full, last = epoch_rows(rows, 0)
    for row in [*full, last]:
        assert {name: (array.shape, array.dtype) for name, array in row.items()} == dict.fromkeys(
            ("inputs", "targets", "segment_ids"), ((32,), np.int32)
        )
    assert all((row["segment_ids"] > 0).all() for row in full)
    assert 0 < (last["segment_ids"] == 0).sum() < 32


def test_segments_count_up_from_one_in_each_row():
    rows = PackedRows(random_documents(), 64, seed=0, **SPECIAL)
    for row in epoch_rows(rows, 0):
        segments = [segment for segment, _ in itertools.groupby(row["segment_ids"].tolist()) if segment]
        assert segments == list(range(1, len(segments) + 1))


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    def order(seed, epoch):
        return recover(epoch_rows(PackedRows(random_documents(), 64, seed=seed, **SPECIAL), epoch))

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert order(0, 1) != order(1, 0)


def test_order_is_the_one_that_saved_positions_refer_to():
    # A checkpoint stores a row number. If this fails, runs that were saved before the change resume on other data.
    documents = ListDocuments([[3], [4], [5], [6], [7]])
    rows = PackedRows(documents, 2, seed=1, **SPECIAL)
    assert [int(rows[row]["targets"][0]) for row in range(10)] == [6, 7, 4, 5, 3, 7, 3, 5, 6, 4]


def test_rows_read_by_many_threads_in_any_order_are_the_same():
    rows = PackedRows(random_documents(), 16, seed=2, **SPECIAL)
    indices = np.random.default_rng(0).permutation(4 * rows.rows_per_epoch).tolist()
    with ThreadPoolExecutor(8) as pool:
        threaded = dict(zip(indices, pool.map(rows.__getitem__, indices), strict=True))
    fresh = PackedRows(random_documents(), 16, seed=2, **SPECIAL)
    for index, row in threaded.items():
        np.testing.assert_equal(row, fresh[index])


@pytest.mark.parametrize(("sequence_length", "seed"), [(0, 0), (8, -1)])
def test_a_bad_length_or_seed_is_the_users_error(sequence_length, seed):
    with pytest.raises(UserError, match="choose a positive length"):
        PackedRows(random_documents(), sequence_length, seed=seed, **SPECIAL)
