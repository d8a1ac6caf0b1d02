import numpy as np

from tests.data.corpus import BOS, EOS, PAD, SPECIAL, random_documents
from transnormer_jax.data import MaskedRows, PackedRows

VOCAB, MASK = 1000, 1000
PACKED = PackedRows(random_documents(), 64, seed=0, **SPECIAL)
ROWS = MaskedRows(PACKED, 7, mask_id=MASK, vocab_size=VOCAB, special_ids=(BOS, EOS, PAD))


def test_targets_are_the_text_and_only_chosen_tokens_change():
    for row in range(50):
        plain, masked = PACKED[row], ROWS[row]
        np.testing.assert_array_equal(masked["targets"], plain["inputs"])
        np.testing.assert_array_equal(masked["segment_ids"], plain["segment_ids"])
        kept = masked["mask"] == 0
        np.testing.assert_array_equal(masked["inputs"][kept], plain["inputs"][kept])
        assert {array.dtype for array in masked.values()} == {np.dtype(np.int32)}


def test_special_tokens_and_padding_are_never_chosen_nor_put_in():
    for row in range(200):
        masked = ROWS[row]
        chosen = masked["mask"] == 1
        assert not np.isin(masked["targets"][chosen], [BOS, EOS, PAD]).any()
        assert not np.isin(masked["inputs"][chosen], [BOS, EOS, PAD]).any()
        assert (masked["segment_ids"][chosen] > 0).all()


def test_padding_is_not_chosen_even_where_its_token_is_an_ordinary_one():
    mostly_padding = PackedRows(random_documents(), 5000, seed=0, **SPECIAL)
    row = MaskedRows(mostly_padding, 7, mask_id=MASK, vocab_size=VOCAB, special_ids=(BOS, EOS))[0]
    assert row["mask"].any()
    assert not row["mask"][row["segment_ids"] == 0].any()


def test_shares_are_those_of_the_paper():
    rows = [ROWS[row] for row in range(1000)]
    inputs, targets, mask = (np.stack([row[name] for row in rows]) for name in ("inputs", "targets", "mask"))
    ordinary = ~np.isin(targets, [BOS, EOS, PAD])
    # Whole numbers, so a row is never off by more than one token.
    assert np.abs(mask.sum(1) - 0.15 * ordinary.sum(1)).max() < 1
    # The rounding's standard deviation is at most a half per row.
    assert abs(mask.sum() - 0.15 * ordinary.sum()) < 4 * 0.5 * np.sqrt(len(rows))
    chosen = mask == 1
    hidden, kept = inputs[chosen] == MASK, inputs[chosen] == targets[chosen]
    count = chosen.sum()
    for share, wanted in ((hidden, 0.8), (kept, 0.1), (~hidden & ~kept, 0.1)):
        # A random token is now and then the one it replaces: one in a thousand.
        assert abs(share.mean() - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / count) + 1e-3
    places = mask.sum(0) / ordinary.sum(0)
    assert np.abs(places - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / ordinary.sum(0).min())


def test_the_same_text_is_masked_anew_each_time_but_a_row_always_alike():
    class OneRow:
        def __len__(self):
            return 100

        def __getitem__(self, row):
            return PACKED[0]

    def masks():
        rows = MaskedRows(OneRow(), 7, mask_id=MASK, vocab_size=VOCAB, special_ids=(BOS, EOS, PAD))
        return [rows[row]["mask"].tobytes() for row in range(20)]

    assert len(set(masks())) == 20
    assert masks() == masks()
