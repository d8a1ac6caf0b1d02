"""The page about a run: what it says is what the run wrote, and it needs nothing besides itself."""

import html.parser
import json
import re
import shutil

import pytest

pytest.importorskip("matplotlib")

from tests.commands import assert_fails, run
from tests.training.small_config import small_config, write_counting
from transnormer_jax.report import contents
from transnormer_jax.report.page import known, render
from transnormer_jax.report.pictures import curves
from transnormer_jax.training import Config, load_workdir, train


class Page(html.parser.HTMLParser):
    """The texts of the elements, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag):
        return [text for of, text in self.texts if of == tag]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, on_one_device):
    directory = tmp_path_factory.mktemp("report")
    config = small_config(directory, num_layers=2)
    config.data.files = write_counting(directory)
    config.num_steps, config.log_every, config.checkpoint_every, config.evaluation.every = 4, 1, 2, 2
    config.optimizer.warmup_steps = 1
    train(Config.from_dict(config.to_dict()), directory / "run")
    return directory / "run"


@pytest.fixture(scope="module")
def text(workdir):
    return render(workdir, "<b>3 and ", 8, 0.0)


@pytest.mark.slow
def test_the_page_says_what_the_run_wrote(workdir, text):
    page = Page(text)
    assert not page.open
    assert page.of("h1") == ["run: transnormer_llm, causal_lm"]
    loaded = load_workdir(workdir)
    total = sum(row.size for row in contents.parameter_table(loaded.params))
    assert f"{total:,}" in page.of("dd")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines() if "eval/loss" in line]
    assert f"{lines[-1]['eval/loss']:.4f}" in page.of("dd")
    assert page.of("h3") == ["Step 2", "Step 4"]
    samples = [sample.text for sample in contents.samples(workdir, "<b>3 and ", 8, 0.0)]
    assert [text for text in page.of("pre") if text.startswith("<b>3 and ")] == samples
    assert text.count("<svg") == 7 + 2  # no MFU on a CPU
    assert "Where the time went" in page.of("h2")
    assert '"vocab_size": 259' in "".join(page.of("pre"))


@pytest.mark.slow
def test_the_page_needs_nothing_besides_itself(text):
    assert not re.search(r"<(script|link|img|iframe)", text)
    assert not re.search(r"(src|href)=\"(?!#|data:)", text)


@pytest.mark.slow
def test_a_run_that_was_killed_or_diverged_has_a_page(workdir, tmp_path, capsys):
    """One of the first version of this package, whose metrics have no seconds and no goodput."""
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines = [
        {key: x for key, x in line.items() if key not in ("goodput", "time", "host") and not key.startswith("seconds/")}
        for line in lines
    ]
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    (copy / "metrics.jsonl").write_text(whole + '{"step": 5, "loss": null}\n{"step": 6, "lo')
    for file in (copy / "checkpoints" / "2" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    page = Page(render(copy, "", 8, 0.0))
    assert page.of("h3") == ["Step 4"]
    assert "no sample of step 2" in capsys.readouterr().err
    assert "Where the time went" not in page.of("h2")
    assert "goodput" not in page.of("dt")


def test_the_sources_of_a_mixture_have_a_line_each():
    metrics = {"loss": [(1, 2.0)], "eval/a/loss": [(1, 3.0)], "eval/b/loss": [(1, 4.0)], "eval/a/bits_per_byte": []}
    assert known({"training": "loss", "held out": "eval/loss"}, metrics) == {
        "training": [(1, 2.0)],
        "held out, a": [(1, 3.0)],
        "held out, b": [(1, 4.0)],
    }


@pytest.mark.slow
def test_where_the_time_went_is_a_table(workdir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    spent = {"step": 5400, "data": 60, "save": 120, "evaluate": 300, "compile": 90, "start": 30, "down": 1200}
    last = {"step": 4, "loss": 1.0, "time": 1.8e9, "host": "node0", "goodput": 0.75}
    last |= {f"seconds/{name}": float(seconds) for name, seconds in spent.items()}
    with (copy / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(last) + "\n")
    page = Page(render(copy, "", 8, 0.0))
    cells = page.of("td")
    rows = list(zip(cells, cells[1:], cells[2:], strict=False))
    assert ("steps", "1h30m", "75.0%") in rows
    assert ("down, or steps that were lost", "20m00s", "16.7%") in rows
    assert ("waiting for data", "1m00s", "0.8%") in rows
    assert "75.0%" in page.of("dd")


@pytest.mark.parametrize(("low", "high"), [(0.7, 1.9), (0.3, 5.0)])
def test_a_logarithmic_axis_of_a_decade_has_labels(low, high):
    svg = curves({"norm": [(1000, low), (2000, high)]}, "gradient norm", log=True)
    labels = [float(label) for label in re.findall(r">([\d.]+)</text>", svg)]
    assert len([label for label in labels if low <= label <= high]) >= 3


@pytest.mark.slow
def test_the_memory_of_the_heads(workdir):
    loaded = load_workdir(workdir)
    half_lives = contents.half_lives(loaded.model_config)
    assert half_lives.shape == (2, 2)
    assert (half_lives[1] > 1000 * half_lives[0]).all()  # the last layer next to never forgets
    norms = contents.state_norms(loaded)
    assert norms.shape == (2, 2)
    assert (norms > 0).all()


@pytest.mark.slow
def test_the_command(workdir, tmp_path):
    status, out, err = run("-m", "transnormer_jax.report", f"--workdir={workdir}", "--max_new_tokens=2")
    assert status == 0, err
    assert out.startswith(f"wrote {workdir}/report.html")
    assert (workdir / "report.html").read_text().startswith("<!doctype html>")
    assert_fails(run("-m", "transnormer_jax.report", f"--workdir={tmp_path}"), "holds no run", "--workdir")
