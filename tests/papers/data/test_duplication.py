from collections import Counter

import numpy as np

from transnormer_jax.papers.data import DuplicationRows

ROWS = [DuplicationRows(seed=0)[row] for row in range(2000)]


def test_a_row_says_its_word_twice_and_scores_the_second():
    for row in ROWS[:200]:
        inputs, targets, mask = row["inputs"], row["targets"], row["mask"]
        size = inputs.tolist().index(0)
        assert (inputs[:size] > 0).all()
        np.testing.assert_array_equal(inputs[:size], inputs[size + 1 : 2 * size + 1])
        assert not inputs[2 * size + 1 :].any()
        np.testing.assert_array_equal(targets[:-1], inputs[1:])
        # The separator and the word after it are what is predicted.
        np.testing.assert_array_equal(targets[mask == 1], [0, *inputs[:size]])
        assert row["segment_ids"].tolist() == [1] * (2 * size + 1) + [0] * (127 - 2 * size)
        assert {name: (array.shape, array.dtype) for name, array in row.items()} == dict.fromkeys(
            ("inputs", "targets", "segment_ids", "mask"), ((128,), np.int32)
        )


def test_lengths_and_symbols_are_uniform():
    lengths = Counter(int(row["mask"].sum()) - 1 for row in ROWS)
    assert set(lengths) == set(range(32, 63))
    # Four standard deviations of a count of mean 2000 / 31.
    assert max(abs(count - 2000 / 31) for count in lengths.values()) < 4 * np.sqrt(2000 / 31)
    symbols = np.bincount(np.concatenate([row["targets"][row["mask"] == 1][1:] for row in ROWS]), minlength=11)
    assert symbols[0] == 0
    assert np.abs(symbols[1:] - symbols.sum() / 10).max() < 4 * np.sqrt(symbols.sum() / 10)


def test_rows_and_seeds_differ():
    rows = [DuplicationRows(seed)[row]["inputs"].tobytes() for seed in (0, 1) for row in range(50)]
    assert len(set(rows)) == 100
