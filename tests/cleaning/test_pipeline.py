"""What goes in comes out once, kept or removed with a reason; what is planted is found; a killed run goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("datatrove")


from tests.cleaning.articles import VOCABULARY, article
from tests.cleaning.planted import RUBBISH, near_duplicate, rubbish
from tests.commands import ROOT, assert_fails, run
from transnormer_jax.cleaning.documents import read_shard, shards_of
from transnormer_jax.cleaning.pipeline import Settings, clean
from transnormer_jax.errors import UserError


def corpus():
    """60 articles, copies of ten of them, and ten pieces of rubbish."""
    chance = random.Random(0)
    originals = [article(chance) for _ in range(60)]
    copies = [originals[0], *(near_duplicate(text, 0.02, VOCABULARY, chance) for text in originals[1:10])]
    waste = [rubbish(kind, 800, chance) for kind in RUBBISH for _ in range(2)]
    return originals, copies, waste


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def texts_of(directory):
    return [record["text"] for shard in shards_of(directory) for record in read_shard(shard)]


def everything(out):
    return {str(path.relative_to(out)): texts_of(path) for path in [out / "kept", *sorted((out / "removed").iterdir())]}


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cleaning")
    originals, copies, waste = corpus()
    write(directory / "a.jsonl", originals + waste[:5])
    write(directory / "b.jsonl", waste[5:] + copies)
    settings = Settings(f"{directory}/*.jsonl")
    report = clean(settings, directory / "out", workers=1)
    return directory, settings, report


@pytest.mark.slow
def test_what_is_planted_is_found_and_every_document_is_accounted_for(cleaned):
    directory, _, report = cleaned
    originals, copies, waste = corpus()
    out = everything(directory / "out")
    assert sorted(text for texts in out.values() for text in texts) == sorted(originals + copies + waste)
    assert report["read"] == len(originals + copies + waste)
    assert report["kept"]["documents"] == len(out["kept"]) == len(originals)
    assert report["removed"]["duplicates"] == {"duplicate": len(copies)}
    for original, copy in zip(originals, copies, strict=False):
        assert (original in out["kept"]) != (copy in out["kept"]) or original == copy
    rules = {name: reasons for name, reasons in report["removed"].items() if name != "duplicates"}
    assert sum(count for reasons in rules.values() for count in reasons.values()) == len(waste)
    assert all(reason for reasons in rules.values() for reason in reasons)
    assert json.loads((directory / "out" / "report.json").read_text()) == report


@pytest.mark.slow
def test_a_document_says_where_it_comes_from_and_what_it_resembles(cleaned):
    directory, _, _ = cleaned
    kept = [record for shard in shards_of(directory / "out" / "kept") for record in read_shard(shard)]
    removed = [
        record for shard in shards_of(directory / "out" / "removed" / "duplicates") for record in read_shard(shard)
    ]
    assert {record["metadata"]["language"] for record in kept} == {"en"}
    clusters = {record["metadata"]["minhash_cluster_id"] for record in kept}
    assert all(record["metadata"]["minhash_cluster_id"] in clusters - {-1} for record in removed)
    names = {record["id"].partition("#")[0] for record in kept + removed}
    assert names == {"a.jsonl", "b.jsonl"}


@pytest.mark.slow
def test_it_is_a_function_of_the_files(cleaned, tmp_path):
    directory, settings, report = cleaned
    assert clean(settings, tmp_path / "again", workers=1) == report
    assert everything(tmp_path / "again") == everything(directory / "out")


@pytest.mark.slow
def test_other_settings_or_files_need_another_place(cleaned):
    directory, settings, report = cleaned
    assert clean(settings, directory / "out", workers=1) == report
    with pytest.raises(UserError, match="begun with other settings or files"):
        clean(Settings(f"{directory}/a.jsonl"), directory / "out", workers=1)
    with pytest.raises(UserError, match="begun with other settings or files"):
        clean(Settings(settings.files, languages=("de",)), directory / "out", workers=1)


@pytest.mark.slow
def test_killed_it_goes_on(cleaned, tmp_path):
    directory, settings, report = cleaned
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "transnormer_jax.cleaning",
        f"--files={settings.files}",
        f"--out={out}",
        "--workers=1",
    ]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    finished = out / "logs" / "rules" / "completions"
    while process.poll() is None and not (finished.exists() and list(finished.iterdir())):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "report.json").exists()
    status, out_text, err = run(*command[1:])
    assert status == 0, err
    assert json.loads(out_text.splitlines()[-1]) == report
    assert everything(out) == everything(directory / "out")


@pytest.mark.slow
def test_what_cannot_be_is_said_in_a_sentence(tmp_path):
    module = ("-m", "transnormer_jax.cleaning", f"--out={tmp_path / 'out'}", "--workers=1")
    assert_fails(run(*module, f"--files={tmp_path}/none.txt"), "no text file matches")
    (tmp_path / "cut.jsonl").write_text('{"text": "whole"}\n{"te')
    assert_fails(run(*module, f"--files={tmp_path}/cut.jsonl"), "cut.jsonl', line 2: it is not JSON", "Correct")


@pytest.mark.slow
def test_bytes_that_are_no_text_are_replaced_and_nothing_is_lost(tmp_path):
    (tmp_path / "a.txt").write_bytes(article(random.Random(1)).encode() + b"\n\xff\xfe ends.")
    report = clean(Settings(str(tmp_path / "a.txt")), tmp_path / "out", workers=1)
    assert report["read"] == report["kept"]["documents"] == 1
    assert texts_of(tmp_path / "out" / "kept")[0].endswith("\ufffd\ufffd ends.")
