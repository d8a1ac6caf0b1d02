import itertools

import numpy as np
import pytest

from transnormer_jax.data import MaskedRows, batches_of, train_batches
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data import DuplicationRows, ExampleRows, Examples, HeldOutExamples, ImageRows
from transnormer_jax.papers.data.columns import RaggedColumn

LENGTHS = {"inputs": 6, "inputs_b": 4}


def held_out_batches(examples, lengths, batch_size, count=None):
    rows = HeldOutExamples(examples, lengths, count)
    return batches_of(rows, len(rows), batch_size)


def column(arrays):
    arrays = [np.asarray(array) for array in arrays]
    return RaggedColumn(np.concatenate(arrays), np.cumsum([0, *map(len, arrays)]))


def texts(count=11):
    """Example i has the inputs 1 + i, 1 + i, ..., of i tokens and one; the second of the pair is one token longer."""
    sizes = range(1, count + 1)
    columns = {
        "inputs": column([np.full(size, size, np.uint16) for size in sizes]),
        "inputs_b": column([np.full(size + 1, size, np.uint16) for size in sizes]),
        "label": column([np.array([size % 3], np.int32) for size in sizes]),
    }
    return Examples(columns, num_classes=3, vocab_size=count + 1)


def speech():
    sizes = (3, 5, 2)
    columns = {
        "inputs": column([np.full((size, 13), size, np.float32) for size in sizes]),
        "labels": column([np.arange(1, size, dtype=np.int32) for size in sizes]),
    }
    return Examples(columns, num_classes=9, vocab_size=None)


def images(count=7):
    return Examples(
        {
            "inputs": column([np.arange(16, dtype=np.uint8) + i for i in range(count)]),
            "label": column([np.array([0], np.int32)] * count),
        },
        num_classes=1,
        vocab_size=256,
    )


SOURCES = {
    "examples": lambda: ExampleRows(texts(), LENGTHS, seed=1),
    "images": lambda: ImageRows(images(), seed=1),
    "duplication": lambda: DuplicationRows(seed=1),
    "masked": lambda: MaskedRows(DuplicationRows(seed=1), 1, mask_id=11, vocab_size=11, special_ids=(0,)),
}


@pytest.mark.parametrize("epoch", [0, 4])
def test_an_epoch_holds_every_example_once_in_its_own_order(epoch):
    rows = ExampleRows(texts(), LENGTHS, seed=3)
    order = [int(rows[row]["inputs"][0]) for row in range(11 * epoch, 11 * epoch + 11)]
    assert sorted(order) == list(range(1, 12))
    assert order != [int(rows[row]["inputs"][0]) for row in range(11 * epoch + 11, 11 * epoch + 22)]


def test_order_is_the_one_that_saved_positions_refer_to():
    # A checkpoint stores a row number. If this fails, runs that were saved before the change resume on other data.
    rows = ExampleRows(texts(5), LENGTHS, seed=1)
    assert [int(rows[row]["inputs"][0]) for row in range(10)] == [3, 5, 1, 4, 2, 4, 1, 3, 2, 5]


def test_a_row_is_cut_or_padded_and_says_which_tokens_are_real():
    (batch,) = held_out_batches(texts(), LENGTHS, 11)
    assert batch["inputs"][[2, 8]].tolist() == [[3, 3, 3, 0, 0, 0], [9] * 6]
    assert batch["segment_ids"][[2, 8]].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch["segment_ids_b"][[0, 8]].tolist() == [[1, 1, 0, 0], [1] * 4]
    assert batch["label"].tolist() == [size % 3 for size in range(1, 12)]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


def test_speech_is_padded_by_nothing_real():
    (batch,) = held_out_batches(speech(), {"inputs": 6, "labels": 4}, 3)
    assert batch["inputs"].shape == (3, 6, 13)
    assert batch["inputs"].dtype == np.float32
    assert batch["segment_ids"].sum(1).tolist() == [3, 5, 2]
    assert batch["labels"].tolist() == [[1, 2, 0, 0], [1, 2, 3, 4], [1, 0, 0, 0]]


@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
def test_evaluation_reads_every_example_once_in_order(batch_size):
    batches = list(held_out_batches(texts(), LENGTHS, batch_size))
    assert {batch["inputs"].shape for batch in batches} == {(batch_size, 6)}
    firsts = np.concatenate([batch["inputs"][:, 0] for batch in batches])
    assert firsts[:11].tolist() == list(range(1, 12))
    padding = np.concatenate([batch["segment_ids"] for batch in batches])[11:]
    assert not padding.any()


def test_a_part_of_the_examples_comes_from_all_over_the_split():
    batches = list(held_out_batches(texts(11), LENGTHS, 2, count=5))
    firsts = np.concatenate([batch["inputs"][:, 0] for batch in batches])
    assert len(firsts[firsts > 0]) == 5
    assert firsts[:5].tolist() == sorted(set(firsts[:5].tolist())) != [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", SOURCES)
def test_the_stream_does_not_depend_on_processes_and_goes_on_at_any_row(name):
    rows = SOURCES[name]()
    expected = list(batches_of(rows, 24, 4))

    def shares(process_count, first_row=0):
        sources = [
            train_batches(
                SOURCES[name](),
                batch_size=4,
                first_row=first_row,
                offsets=range(4 * process // process_count, 4 * (process + 1) // process_count),
            )
            for process in range(process_count)
        ]
        for parts in zip(*sources, strict=True):
            yield {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    for count in (1, 2):
        np.testing.assert_equal(list(itertools.islice(shares(count), 6)), expected)
    np.testing.assert_equal(list(itertools.islice(shares(2, first_row=12), 3)), expected[3:])


@pytest.mark.parametrize("name", SOURCES)
def test_a_batch_that_is_not_full_ends_in_padding(name):
    rows = SOURCES[name]()
    first, last = batches_of(rows, 7, 4)
    assert {key: array.shape for key, array in first.items()} == {key: array.shape for key, array in last.items()}
    assert not any(array[3:].any() for array in last.values())
    np.testing.assert_equal({key: array[2] for key, array in last.items()}, rows[6])


def test_an_image_predicts_each_byte_from_those_before():
    rows = ImageRows(images(), seed=0)
    seen = set()
    for row in map(rows.__getitem__, range(7)):
        whole = [*row["inputs"].tolist(), int(row["targets"][-1])]
        assert row["targets"].tolist() == whole[1:]
        assert whole == list(range(whole[0], whole[0] + 16))
        assert row["segment_ids"].tolist() == [1] * 15
        assert {array.dtype for array in row.values()} == {np.dtype(np.int32)}
        seen.add(whole[0])
    assert seen == set(range(7))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ExampleRows(texts(), {"inputs": 6}, 0),
            "no length for 'inputs_b': give one for each of inputs, inputs_b",
        ),
        (lambda: ExampleRows(texts(), LENGTHS, -1), "choose a split with examples and a seed from 0 on"),
        (
            lambda: ExampleRows(speech(), {"inputs": 6, "labels": 3}, 0),
            "'labels' of length 3 would cut an example of 4",
        ),
        (
            lambda: ExampleRows(speech(), {"inputs": 4, "labels": 4}, 0),
            "'inputs' of length 4 would cut an example of 5",
        ),
        (lambda: HeldOutExamples(texts(), {"inputs": 6}), "no length for 'inputs_b'"),
        (lambda: ImageRows(texts(), 0), "the examples are no images of one size"),
        (lambda: DuplicationRows(-1), "the data seed is -1"),
        (lambda: MaskedRows(DuplicationRows(0), -1, mask_id=11, vocab_size=11, special_ids=()), "data seed -1"),
        (lambda: MaskedRows(DuplicationRows(0), 0, mask_id=0, vocab_size=1, special_ids=()), "0 ordinary tokens"),
    ],
)
def test_what_a_user_can_mistake(make, message):
    with pytest.raises(UserError, match=message):
        make()
