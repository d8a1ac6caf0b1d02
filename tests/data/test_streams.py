import numpy as np
import pytest

from tests.data.corpus import BOS, SPECIAL, ListDocuments, random_documents, recover
from transnormer_jax.data import evaluation_windows


def windows_of(documents, batch_size, window):
    return list(evaluation_windows(documents, batch_size=batch_size, window=window, **SPECIAL))


def row_stream(windows, row):
    """One row of all windows end to end."""
    names = ("inputs", "targets", "segment_ids")
    return {name: np.concatenate([batch[name][row] for batch in windows]) for name in names}


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("window", [1, 16, 4000])
def test_every_document_comes_back_whole_and_once(batch_size, window):
    documents = random_documents()
    windows = windows_of(documents, batch_size, window)
    # One segment id per document and row, also across windows, or `recover` would not find whole documents.
    found = [document for row in range(batch_size) for document in recover([row_stream(windows, row)])]
    assert sorted(found) == sorted(tuple(document.tolist()) for document in documents.documents)


def test_restart_is_true_exactly_where_a_window_begins_a_document():
    windows = windows_of(random_documents(), 3, 4)
    restarts = np.stack([batch["restart"] for batch in windows])
    begins = np.stack([(batch["inputs"][:, 0] == BOS) & (batch["segment_ids"][:, 0] > 0) for batch in windows])
    np.testing.assert_equal(restarts, begins)
    assert restarts[0].all()
    assert 0 < restarts[1:].sum() < restarts[1:].size


def test_a_state_carried_and_zeroed_as_told_sees_all_of_its_document_and_nothing_else():
    # The "model" counts the tokens it has seen: at every position that must be the place in the document.
    seen = np.zeros(3, int)
    previous = np.zeros(3, int)
    for batch in windows_of(random_documents(), 3, 5):
        seen = np.where(batch["restart"], 0, seen)
        previous = np.where(batch["restart"], batch["segment_ids"][:, 0], previous)
        for inputs, segments in zip(batch["inputs"].T, batch["segment_ids"].T, strict=True):
            seen = np.where(segments == previous, seen, 0)
            previous = segments
            live = segments > 0
            np.testing.assert_equal((seen == 0)[live], (inputs == BOS)[live])
            seen = seen + 1


def test_rows_are_even_and_no_window_is_only_padding():
    documents = ListDocuments([range(3, 3 + length) for length in (9, 9, 9, 4, 4, 4, 1, 1, 1)])
    windows = windows_of(documents, 3, 4)
    assert len(windows) == (10 + 5 + 2 + 3) // 4 == 5
    assert [int((row_stream(windows, row)["segment_ids"] > 0).sum()) for row in range(3)] == [17, 17, 17]


def test_more_rows_than_documents_leaves_rows_of_padding_that_never_restart():
    (batch,) = windows_of(ListDocuments([[5, 6]]), 3, 8)
    np.testing.assert_equal(batch["restart"], [True, False, False])
    assert not batch["segment_ids"][1:].any()
    assert {name: array.dtype for name, array in batch.items()} == {
        "inputs": np.int32, "targets": np.int32, "segment_ids": np.int32, "restart": np.bool_,
    }  # fmt: skip
