"""A study of two tiny models and one that cannot be, on data that need no file: its table, its resume, its failure."""

import json
import runpy

import pytest

from benchmarks import study as study_module
from benchmarks.common import Record
from benchmarks.studies import STUDIES, Study, Variant
from benchmarks.study import Job, Settings, core_shares, make_job, read_row, run_jobs, run_study
from tests.commands import ROOT, assert_fails
from tests.commands import run as run_command
from transnormer_jax.errors import UserError
from transnormer_jax.training.config import Config
from transnormer_jax.training.optimizer import make_schedule

_TINY = {
    "model.num_layers": 1,
    "model.model_dim": 16,
    "model.num_heads": 2,
    "model.feed_forward_dim": 16,
    "num_steps": 4,
    "batch_size": 2,
    "log_every": 2,
    "evaluation.every": 2,
    "evaluation.batch_size": 64,
}


def _study(variants: dict[str, Variant], **fields) -> Study:
    return Study(
        **{
            "name": "tiny",
            "config": "configs/duplication.py",
            "budget": _TINY,
            "variants": variants,
            "metric": "accuracy",
            "higher_is_better": True,
            "published": "nothing",
            "reduced": "everything",
            "references": {"one in ten": 0.1},
        }
        | fields
    )


@pytest.fixture
def one_device(monkeypatch):
    # Runs of their own, not this process with its eight devices.
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "")


@pytest.mark.slow
def test_variants_are_trained_and_reported_and_only_once(tmp_path, one_device, capsys, monkeypatch):
    variants = {
        "linear": Variant({}, 0.5),
        "no such": Variant({"model.attention": "no such"}),
    }
    settings = Settings(runs=str(tmp_path / "runs"))
    study, output = _study(variants), tmp_path / "study_tiny.json"
    summary = run_study(study, settings, Record(output, "the command", settings))
    record = json.loads(output.read_text())
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    linear, failed = record["rows"]
    assert linear["variant"] == "linear"
    assert "--config.model.num_layers=1" in linear["command"]
    assert [line["step"] for line in linear["evaluations"]] == [2, 4]
    assert [line["step"] for line in linear["training"]] == [2, 4]
    assert (
        linear["final"] == linear["evaluations"][-1]["accuracy"] == pytest.approx(summary["final"]["linear"], abs=1e-4)
    )
    assert linear["best"] == max(line["accuracy"] for line in linear["evaluations"])
    assert linear["training_seconds"] > 0
    assert (linear["steps"], linear["seed"], linear["published"]) == (4, 0, 0.5)
    # 11 x 8 embeddings, 4 projections, feed-forward, three norms, head.
    assert linear["parameters"] == 11 * 8 + 4 * (16 * 16 + 16) + 2 * (16 * 16 + 16) + 3 * 32 + (16 * 11 + 11)
    assert {"jax", "commit", "date_utc"} <= linear["made"].keys()
    assert record["references"] == {"one in ten": 0.1}
    assert record["environment"]["platform"] == "cpu"

    assert "'no such'" in failed["failed"]
    assert summary["failed"] == {"no such": failed["failed"]}
    assert "'failed': " in capsys.readouterr().out

    # What has ended is not run again; what has not, is.
    started = list[str]()
    monkeypatch.setattr(
        study_module.subprocess, "Popen", lambda command, **options: started.append(command) or _Exited()
    )
    again = run_study(study, settings, Record(output, "the command", settings))
    assert again["final"] == summary["final"]
    assert len(started) == 1
    assert "--config.model.attention=no such" in started[0]


class _Exited:
    pid = 0  # this process, to sched_setaffinity

    def wait(self) -> int:
        return 1


def test_an_interrupted_run_has_not_ended(tmp_path):
    job = Job("a", tmp_path, {}, tmp_path)
    assert read_row(job)["failed"] == "nothing was written"
    (tmp_path / "config.json").write_text('{"num_steps": 20}')
    lines = [
        {"step": 0, "compile_seconds": 1.0},
        {"step": 5, "loss": 2.0, "seconds_per_step": 0.5},
        {"step": 10, "loss": 1.0, "seconds_per_step": 0.25},
        {"step": 10, "eval/loss": 1.5, "eval/accuracy": 0.5, "eval/seconds": 1.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = read_row(job)
    assert row["failed"] == "it stopped before step 20"
    assert row["training_seconds"] == round(5 * 0.5 + 5 * 0.25, 1)
    with path.open("a") as file:
        file.write(json.dumps({"step": 20, "eval/loss": 1.0, "eval/accuracy": 0.75}) + "\n")
    row = read_row(job)
    assert "failed" not in row
    assert [(line["step"], line["accuracy"]) for line in row["evaluations"]] == [(10, 0.5), (20, 0.75)]


def test_another_budget_is_another_run(tmp_path):
    job = make_job("a b", "configs/duplication.py", {"num_steps": 4}, tmp_path)
    assert job.workdir.name.startswith("a_b-")
    assert job == make_job("a b", "configs/duplication.py", {"num_steps": 4}, tmp_path)
    assert job.workdir != make_job("a b", "configs/duplication.py", {"num_steps": 5}, tmp_path).workdir
    assert job.workdir != make_job("a b", "configs/mnist_images.py", {"num_steps": 4}, tmp_path).workdir


def test_cores_are_dealt_without_overlap():
    (whole,) = core_shares(1)
    for count in range(1, len(whole) + 1):
        shares = core_shares(count)
        assert len(shares) == count
        assert all(shares)
        assert sorted(core for share in shares for core in share) == whole
    with pytest.raises(UserError, match=r"jobs is 0: give 1 to \d+"):
        run_jobs([], 0)
    with pytest.raises(UserError, match=r"jobs is 100000: give 1 to \d+"):
        run_jobs([], 100_000)


def test_missing_data_are_told(tmp_path):
    study = _study({"linear": Variant({})}, files="words")
    for data, words in (
        ("", "study 'tiny' needs data: give the directory"),
        (str(tmp_path), r"'.*words': put it there"),
    ):
        settings = Settings(data=data, runs=str(tmp_path / "runs"))
        with pytest.raises(UserError, match=words):
            run_study(study, settings, Record(tmp_path / "study.json", "", settings))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_unknown_study_is_refused():
    assert_fails(run_command("-m", "benchmarks.study", "--name=mnits"), "unknown study 'mnits'", "'mnist'")


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_variant_is_a_configuration(study):
    for variant in study.variants.values():
        config = runpy.run_path(str(ROOT / (variant.config or study.config)))["get_config"]()
        # An unknown key or a value of another type is an error, as on the command line.
        config.update_from_flattened_dict(study.overrides(variant))
        built = Config.from_dict(config.to_dict())
        make_schedule(built.optimizer, built.num_steps)  # its phases fit into the steps
        assert built.evaluation.every > 0
        assert built.num_steps % built.evaluation.every == 0
