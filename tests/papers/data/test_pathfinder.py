import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy import ndimage

from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.pathfinder import Pathfinder, PathfinderConfig
from transnormer_jax.papers.data.pathfinder_sampler import pathfinder_images

NO_DOWNLOAD = tfds.download.DownloadConfig(try_download_gcs=False)


def draw(count, **options):
    return list(pathfinder_images(PathfinderConfig(**options).sampler, 0, range(count), processes=1))


def joined(contour, gap):
    """Pixels of a contour with its gaps closed, as connected components."""
    return ndimage.label(ndimage.binary_dilation(contour, np.ones((3, 3)), iterations=gap))[0]


@pytest.mark.parametrize(
    ("count", "options"),
    [(60, {"resolution": 32}), (20, {"resolution": 128, "difficulty": "easy"}), (8, {"resolution": 256})],
    ids=["32", "128", "256"],
)
def test_a_path_joins_the_discs_exactly_if_the_label_says_so(count, options):
    margin = max(PathfinderConfig(**options).sampler.margins)
    labels, crossed = set(), 0
    for drawn in draw(count, num_distractors=0, **options):
        # Every contour is one path, and together they are all there is beside the discs.
        inked = drawn.contours > 0.2
        components = [joined(contour, margin + 1) for contour in inked]
        assert [component.max() for component in components] == [1, 1]
        beyond = np.ones(drawn.image.shape, bool)
        for row, column in drawn.discs:
            beyond[max(row - 9, 0) : row + 10, max(column - 9, 0) : column + 10] = False
        np.testing.assert_array_equal((drawn.image > 0)[beyond], (drawn.contours.max(axis=0) > 0.5 / 255)[beyond])
        begin, end = (tuple(disc) for disc in drawn.discs)
        assert min(drawn.image[begin], drawn.image[end]) > 250
        on_begin, on_end = inked[:, *begin], inked[:, *end]
        assert on_begin.any()
        assert on_end.any()
        # A newest dash is not yet in the mask, so at 32 x 32 a contour may now and then cross the other one's tip.
        if on_begin.all() or on_end.all():
            crossed += 1
            assert (on_begin & on_end).any()
        else:
            assert (on_begin & on_end).any() == bool(drawn.label)
        labels.add(drawn.label)
    assert labels == {0, 1}
    assert crossed <= count / 20


@pytest.mark.parametrize(("difficulty", "dashes"), [("easy", 6), ("intermediate", 9)])
def test_a_contour_is_so_many_dashes_with_gaps_between(difficulty, dashes):
    for drawn in draw(8, resolution=256, difficulty=difficulty, num_distractors=0):
        assert [ndimage.label(contour > 0.4, np.ones((3, 3)))[1] for contour in drawn.contours] == [dashes, dashes]


@pytest.mark.parametrize(
    "options",
    [{"resolution": 32}, {"resolution": 64, "difficulty": "easy"}, {"resolution": 128, "difficulty": "easy"},
     {"resolution": 256, "difficulty": "intermediate"}],
    ids=lambda options: str(options["resolution"]),
)  # fmt: skip
def test_images_fill_the_range_of_bytes(options):
    side = options["resolution"]
    for drawn in draw(4, **options):
        assert drawn.image.shape == (side, side)
        assert drawn.image.dtype == np.uint8
        assert (drawn.image.min(), drawn.image.max()) == (0, 255)
        assert (drawn.image > 80).mean() < 0.3


@pytest.mark.slow
def test_labels_are_a_fair_coin():
    labels = [drawn.label for drawn in draw(400, difficulty="easy", num_distractors=0)]
    assert abs(np.mean(labels) - 0.5) < 3 * 0.5 / np.sqrt(400)


def brightness(**options):
    """Mean brightness of distractors and of contours, of those pixels that are bright and far from discs."""
    pairs = []
    for drawn in draw(40, **options):
        far = np.ones(drawn.image.shape, bool)
        for row, column in drawn.discs:
            far[max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5] = False
        ink = drawn.contours.max(axis=0)
        near = ndimage.binary_dilation(ink > 0, np.ones((3, 3)))
        others = drawn.image[far & ~near]
        pairs.append((others[others > 80].mean(), drawn.image[far & (drawn.image > 80) & (ink > 0)].mean()))
    return np.mean(pairs, axis=0)


@pytest.mark.slow
def test_contours_are_as_bright_as_distractors_unless_the_original_contrast_is_asked_for():
    others, contours = brightness()
    assert others == pytest.approx(contours, rel=0.03)
    others, contours = brightness(equal_contrast=False)
    assert others > 1.15 * contours


def test_distractors_are_added_and_contours_stay():
    for with_them, without in zip(draw(5), draw(5, num_distractors=0), strict=True):
        np.testing.assert_array_equal(with_them.contours, without.contours)
        assert (with_them.image > 0).sum() > 1.2 * (without.image > 0).sum()


@pytest.mark.slow
def test_an_image_depends_on_its_index_alone():
    sampler = PathfinderConfig(difficulty="easy").sampler
    alone = list(pathfinder_images(sampler, 5, range(40), processes=1))
    for one, other in zip(alone[7:], pathfinder_images(sampler, 5, range(7, 40), processes=1), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.label == other.label
    assert len({drawn.image.tobytes() for drawn in alone}) == 40


def test_builder_writes_disjoint_splits(tmp_path):
    config = PathfinderConfig(difficulty="easy", num_examples=50, seed=1, processes=1)
    builder = Pathfinder(config=config, data_dir=tmp_path)
    builder.download_and_prepare(file_format="array_record", download_config=NO_DOWNLOAD)
    rows = [row for split in ("train", "validation", "test") for row in builder.as_data_source(split)]
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        "train": 40,
        "validation": 5,
        "test": 5,
    }
    for row, drawn in zip(rows, pathfinder_images(config.sampler, 1, range(50), processes=1), strict=True):
        np.testing.assert_array_equal(row["image"], drawn.image)
        assert row["label"] == drawn.label


def test_each_choice_is_a_dataset_of_its_own():
    choices = [{}, {"resolution": 64}, {"difficulty": "easy"}, {"seed": 1}, {"num_examples": 10},
               {"num_distractors": 5}, {"equal_contrast": False}]  # fmt: skip
    names = [PathfinderConfig(**choice).name for choice in choices]
    assert len(set(names)) == len(names)
    hard, easy = (dataclasses.asdict(PathfinderConfig(difficulty=name).sampler) for name in ("hard", "easy"))
    assert {key: (hard[key], easy[key]) for key in hard if hard[key] != easy[key]} == {
        "contour_length": (14, 6),
        "distractor_length": (4, 2),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 48}, "32, 64, 128 or 256"),
        ({"difficulty": "heard"}, "'hard'"),
        ({"num_examples": 3}, "10"),
        ({"seed": -1}, "negative"),
        ({"num_distractors": -1}, "negative"),
    ],
)
def test_an_unknown_choice_is_the_users_error(options, message):
    with pytest.raises(UserError, match=message):
        PathfinderConfig(**options)
