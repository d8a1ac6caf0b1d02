"""The commands that make, verify and show tokens, and that train tokenizers, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import assert_fails, run, write_tiny_config
from transnormer_jax.data import DataConfig, load_conversations, load_tokenizer
from transnormer_jax.start import STOPPED

# Text that a tokenizer must give back as it is.
AWKWARD = "  two  spaces\ttab\n\nnew lines \n été 数学 🙂 <s> </s>\r\n"


def report(result):
    status, out, err = result
    assert status == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_tiny_config(tmp_path_factory.mktemp("prepare"))


@pytest.fixture(scope="module")
def prepared(config):
    return report(run("-m", "transnormer_jax.data.prepare", f"--config={config}"))["plain_text"]


@pytest.mark.slow
def test_a_damaged_shard_is_found_and_mended(config, prepared):
    splits = {split: counts["directory"] for split, counts in prepared.items()}
    assert len(set(splits.values())) == 1  # one pass made them, and the third
    shard = f"{splits['train']}/00000.tokens"
    with open(shard, "rb") as file:
        content = file.read()
    with open(shard, "wb") as file:
        file.write(content[:100])
    assert_fails(
        run("-m", "transnormer_jax.data.inspect", f"--config={config}"), "00000.tokens", "100 bytes", "--verify"
    )
    again = report(run("-m", "transnormer_jax.data.prepare", f"--config={config}", "--verify"))["plain_text"]
    assert (again["train"]["damaged_shards"], again["validation"]["damaged_shards"]) == ([0], [])
    with open(shard, "rb") as file:
        assert file.read() == content


SBATCH = """#!/bin/bash
tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "${@: -1}")
for task in ${tasks:+$(seq 0 $tasks)}; do
  SLURM_ARRAY_TASK_ID=$task RUN_OFFSET=0 SLURM_NODELIST=localhost bash "${@: -1}" >> "$0.log" 2>&1 || exit 1
done
echo Submitted batch job 1
"""
SRUN = """#!/bin/bash
exec "${@:4}"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A stand-in for Slurm runs the tasks of the array one after the other."""
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", "#!/bin/bash\necho localhost\n")):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_bad_records_are_listed_after_a_slurm_job_and_may_be_skipped(config, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"te\n{"text": "two"}\n')
    flags = (f"--config.data.files={tmp_path}/rows.jsonl", f"--config.data.data_dir={tmp_path}/data")
    command = ("-m", "transnormer_jax.data.prepare", f"--config={config}", *flags)
    run(*command, "--slurm_partition=cpu")
    status, _, err = run(*command, "--slurm_partition=cpu")
    assert (status, "rows.jsonl', line 2: it is not JSON" in err, "Traceback" in err) == (2, True, False)
    made = report(run(*command, "--config.data.bad_records=skip", "--slurm_partition=cpu"))["plain_text"]
    assert made["train"]["bad_records"]["count"] == made["train"]["documents"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_slurm_job_makes_the_same(config, prepared, tmp_path):
    command = ("-m", "transnormer_jax.data.prepare", f"--config={config}", f"--config.data.data_dir={tmp_path}/data")
    status, out, err = run(*command, "--slurm_partition=cpu")
    assert (status, "0 of 1 parts are done by the Slurm job" in out) == (STOPPED, True), err
    assert_same_files(report(run(*command, "--slurm_partition=cpu"))["plain_text"], prepared)


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same(config, prepared, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    command = ["-m", "transnormer_jax.data.prepare", f"--config={config}", f"--config.data.data_dir={tmp_path}"]
    made = subprocess.run([sys.executable, *command, "--ray_address=local"], capture_output=True, text=True, check=True)
    assert_same_files(json.loads(made.stdout.splitlines()[-1])["plain_text"], prepared)


def assert_same_files(made, prepared):
    for split, counts in prepared.items():
        for path in Path(counts["directory"]).iterdir():
            assert (Path(made[split]["directory"]) / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_inspect_shows_what_prepare_counted(config, prepared, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "data.png"
    result = run("-m", "transnormer_jax.data.inspect", f"--config={config}", "--documents=1", f"--plot={plot}")
    shown = report(result)
    for split, counts in prepared.items():
        assert shown[f"plain_text {split}"]["tokens"] == counts["tokens"]
        assert shown[f"plain_text {split}"]["documents"] == counts["documents"]
    assert "l|i|n|e| " in result[1]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_conversations_are_prepared_and_shown_as_they_are_learnt(tmp_path):
    talks = [{"prompt": f"{i}?", "response": f"is {i}"} for i in range(20)]
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, talks)))
    (tmp_path / "config.py").write_text(
        "from pathlib import Path\n"
        "from tests.training.small_config import small_config\n"
        "def get_config():\n"
        f"    config = small_config(Path({str(tmp_path)!r}))\n"
        f"    config.data.files, config.data.documents = {str(tmp_path / 'talk.jsonl')!r}, 'conversation'\n"
        "    return config\n"
    )
    prepared = report(run("-m", "transnormer_jax.data.prepare", f"--config={tmp_path / 'config.py'}"))["plain_text"]
    result = run("-m", "transnormer_jax.data.inspect", f"--config={tmp_path / 'config.py'}", "--documents=1")
    assert "H|u|m|a|n|:" in result[1]
    assert "learnt: i|s| |0|</s>" in result[1]
    files, place = str(tmp_path / "talk.jsonl"), str(tmp_path / "datasets")
    data = DataConfig("plain_text", files, "conversation", held_out=0.1, data_dir=place)
    assert len(load_conversations(data, load_tokenizer("bytes"), "train", 64)) == prepared["train"]["documents"] == 16
    assert len([*(tmp_path / "datasets" / "tokenized").iterdir()]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_trained_tokenizer_gives_text_back(config, tmp_path, kind):
    out = tmp_path / "tokenizer"
    flags = (f"--config={config}", f"--kind={kind}", "--vocab_size=320", f"--out={out}")
    trained = report(run("-m", "transnormer_jax.data.train_tokenizer", *flags))
    tokenizer = load_tokenizer(str(out))
    assert trained["vocab_size"] == tokenizer.vocab_size == 320
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.decode(tokenizer.encode(AWKWARD)) == AWKWARD
    assert trained["bytes_per_token"] > 1.2


@pytest.mark.slow
def test_what_cannot_be_is_said_in_a_sentence(config, tmp_path):
    (tmp_path / "taken").touch()
    module = "transnormer_jax.data.train_tokenizer"
    assert_fails(run("-m", module, f"--config={config}", f"--out={tmp_path}/taken"), "already exists", "another --out")
    flags = (f"--config={config}", "--kind=unigram", "--vocab_size=30000", f"--out={tmp_path}/many")
    assert_fails(run("-m", module, *flags), "SentencePiece refuses", "--vocab_size")
