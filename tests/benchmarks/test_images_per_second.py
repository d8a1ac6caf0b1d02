"""The benchmark of image sampling, with tiny models: what it writes, what it leaves out, what it refuses."""

import pytest

from benchmarks import images_per_second
from benchmarks.images_per_second import CONTENDERS, IMAGES, Settings, make_model
from tests.benchmarks.runs import run_benchmark
from transnormer_jax.errors import UserError

_SMALL = {"preset": "tiny", "images": ("mnist",), "batch_sizes": (2, 1), "seconds": 1e-3, "bytes_per_call": 2}


def _run(tmp_path, **settings):
    return run_benchmark(images_per_second, Settings(**(_SMALL | settings)), tmp_path / "images.json")


@pytest.mark.slow
def test_attentions_are_measured_and_compared(tmp_path):
    contenders = ("linear", "softmax_recomputing_half", "lsh_1")
    summary, record = _run(tmp_path, contenders=contenders)
    assert [(row["contender"], row["batch"]) for row in record["rows"]] == [(c, b) for c in contenders for b in (1, 2)]
    for row in record["rows"]:
        assert row["seconds_per_batch"] == pytest.approx(row["milliseconds_per_byte"] / 1e3 * 32)
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds_per_batch"])
    table = record["summary"]["mnist"]["table"]
    for contender in contenders:
        found = [row["images_per_second"] for row in record["rows"] if row["contender"] == contender]
        assert table[contender]["images_per_second"] == max(found)
        assert table[contender]["seconds_per_image_alone"] == pytest.approx(1 / found[0])
    assert summary["mnist"].keys() == {"linear_over_softmax_recomputing_half", "linear_over_lsh_1"}


@pytest.mark.slow
def test_what_takes_too_long_or_too_much_is_left_out(tmp_path):
    _, record = _run(tmp_path, contenders=("linear",), max_call_seconds=1e-9)
    assert "images_per_second" in record["rows"][0]
    assert record["rows"][1]["skipped"].startswith("a call would take up to")
    _, record = _run(tmp_path, contenders=("linear",), max_gigabytes=1e-6)
    assert all("the limit is 1e-06 GB" in row["skipped"] for row in record["rows"])
    assert "skipped" in record["summary"]["mnist"]["table"]["linear"]
    assert record["summary"]["mnist"]["ratios"] == {}


def test_models_have_the_size_of_the_papers():
    for name, (layers, chunks) in {"mnist": (8, 27), "cifar10": (16, 83)}.items():
        for contender in CONTENDERS:
            config = make_model(name, contender, Settings()).config
            assert (config.num_layers, config.model_dim, config.num_heads) == (layers, 256, 8)
            assert config.feed_forward_dim == 1024
            assert config.lsh_chunk * chunks == IMAGES[name].num_bytes - 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": ("cifar",)}, "unknown name 'cifar' in images: did you mean 'cifar10'"),
        ({"contenders": ("softmax",)}, "unknown name 'softmax' in contenders"),
        ({"batch_sizes": ()}, "batch_sizes is empty"),
        ({"batch_sizes": (0,)}, "give positive numbers"),
        ({"dtype": "float16"}, "unknown name 'float16' in dtype"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Settings(**settings)
