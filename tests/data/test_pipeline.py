import itertools

import numpy as np
import pytest

from tests.data.corpus import SPECIAL, random_documents, recover
from transnormer_jax.data import PackedRows, train_batches

BATCH = 6


def packed_rows():
    return PackedRows(random_documents(), 32, seed=3, **SPECIAL)


def take(count, **options):
    return list(itertools.islice(train_batches(packed_rows(), batch_size=BATCH, **options), count))


def rows_of(batches):
    return [{name: array[i] for name, array in batch.items()} for batch in batches for i in range(len(batch["inputs"]))]


def global_batches(count, process_count):
    """Process p holds rows p, p + process_count, ...: no contiguous part of the batch."""
    shares = [take(count, offsets=range(index, BATCH, process_count)) for index in range(process_count)]
    return [
        {
            name: np.stack([share[name] for share in batch], axis=1).reshape(BATCH, *batch[0][name].shape[1:])
            for name in batch[0]
        }
        for batch in zip(*shares, strict=True)
    ]


@pytest.mark.parametrize("process_count", [1, 2, 3])
def test_the_global_stream_is_the_rows_in_order_on_any_number_of_processes(process_count):
    rows = packed_rows()
    num_batches = 2 * -(-rows.rows_per_epoch // BATCH)
    streamed = rows_of(global_batches(num_batches, process_count))
    for index, row in enumerate(streamed):
        np.testing.assert_equal(row, rows[index])
    found = recover([streamed[row] for row in np.argsort(rows.row_order(0))])
    assert sorted(found) == sorted(tuple(document.tolist()) for document in random_documents().documents)


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("first_batch", [1, 5, 17])
def test_a_resumed_stream_is_the_uninterrupted_one(first_batch, num_threads):
    whole = take(first_batch + 4, num_threads=num_threads)
    resumed = take(4, first_row=first_batch * BATCH, offsets=range(BATCH // 2, BATCH))
    for batch, share in zip(whole[first_batch:], resumed, strict=True):
        np.testing.assert_equal({name: array[BATCH // 2 :] for name, array in batch.items()}, share)


def test_batches_are_int32_of_the_process_share():
    (batch,) = take(1, offsets=[4, 1])
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == dict.fromkeys(
        ("inputs", "targets", "segment_ids"), ((2, 32), np.int32)
    )
