"""The benchmark of image sampling, with tiny models: what it writes, what it leaves out, what it refuses."""

import json

import pytest

from benchmarks.images_per_second import CONTENDERS, IMAGES, Settings, make_model, ratios, run
from transnormer_jax.errors import UserError

_SMALL = {"preset": "tiny", "images": ("mnist",), "batch_sizes": (2, 1), "seconds": 1e-3, "bytes_per_call": 2}


def _run(tmp_path, **settings):
    output = tmp_path / "results" / "images.json"
    summary = run(Settings(**(_SMALL | settings)), output, "the command")
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return summary, json.loads(output.read_text())


def test_attentions_are_measured_and_compared(tmp_path):
    contenders = ("linear", "softmax_recomputing_half", "lsh_1")
    summary, record = _run(tmp_path, contenders=contenders, whole_seconds=1e-9)
    assert record["command"] == "the command"
    assert {"platform", "cpu_cores", "jax", "date_utc"} <= record["environment"].keys()
    assert [(row["contender"], row["batch"]) for row in record["rows"]] == [(c, b) for c in contenders for b in (1, 2)]
    for row in record["rows"]:
        assert row["extrapolated"]
        assert row["seconds_per_batch"] == pytest.approx(row["milliseconds_per_byte"] / 1e3 * 32)
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds_per_batch"])
    table = record["summary"]["mnist"]["table"]
    for contender in contenders:
        found = [row["images_per_second"] for row in record["rows"] if row["contender"] == contender]
        assert table[contender]["images_per_second"] == max(found)
        assert table[contender]["seconds_per_image_alone"] == pytest.approx(1 / found[0])
    assert table["linear"]["published_images_per_second"] == 142.8
    assert summary["mnist"].keys() == {"linear_over_softmax_recomputing_half", "linear_over_lsh_1"}


def test_whole_images_are_drawn_where_time_allows(tmp_path):
    _, record = _run(tmp_path, contenders=("linear",), batch_sizes=(2,), whole_seconds=100.0)
    row = record["summary"]["mnist"]["table"]["linear"]
    assert row["extrapolated"] is False
    assert row["calls"] == 1
    assert row["images_per_second"] > 0
    assert row["extrapolated_images_per_second"] == record["rows"][0]["images_per_second"]


def test_what_takes_too_long_or_too_much_is_left_out(tmp_path):
    slow = {"contenders": ("linear",), "whole_seconds": 1e-9}
    _, record = _run(tmp_path, **slow, max_call_seconds=1e-9)
    assert "images_per_second" in record["rows"][0]
    assert record["rows"][1]["skipped"].startswith("a call would take up to")
    _, record = _run(tmp_path, **slow, max_gigabytes=1e-6)
    assert all("the limit is 1e-06 GB" in row["skipped"] for row in record["rows"])
    assert "skipped" in record["summary"]["mnist"]["table"]["linear"]
    assert record["summary"]["mnist"]["ratios"] == {}


def test_ratios_of_the_published_tables_are_the_published_ratios():
    rounded = {}
    for name, images in IMAGES.items():
        table = {contender: {"images_per_second": value} for contender, value in images.published.items()}
        found = ratios(name, table)
        rounded[name] = {contender: round(ratio["measured"], 1) for contender, ratio in found.items()}
    assert rounded["mnist"]["linear_over_softmax_recomputing"] == 317.3
    assert rounded["mnist"]["linear_over_softmax_cached"] == 18.9
    assert rounded["cifar10"]["linear_over_softmax_recomputing"] == 4462.5
    assert rounded["cifar10"]["linear_over_softmax_cached"] == 55.8


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
