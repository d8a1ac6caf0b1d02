"""The files in examples/ parse, give flags and keys that exist, and act on the exit statuses of train.py."""

import functools
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.commands import ROOT
from tests.test_documents import flags_of
from transnormer_jax.training import default_config

EXAMPLES = ROOT / "examples"
SCRIPTS = [EXAMPLES / "slurm.sbatch", EXAMPLES / "tpu_vm.sh"]
LOST, STOPPED = 3, 75


@pytest.mark.parametrize("file", [*SCRIPTS, EXAMPLES / "gke_jobset.yaml"], ids=lambda path: path.name)
def test_flags_keys_and_configurations_exist(file):
    text = file.read_text()
    given = set(re.findall(r"(?<!\S)--(config[\w.]*|workdir)=", text))
    assert {"config", "workdir", "config.data.files"} <= given
    for name in given:
        if name.startswith("config."):
            functools.reduce(lambda config, key: config[key], name.split(".")[1:], default_config())
        else:
            assert name in flags_of("transnormer_jax.train")
    for path in re.findall(r"--config=(\S+)", text):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("jobset", [*yaml.safe_load_all((EXAMPLES / "gke_jobset.yaml").read_text())])
def test_jobsets_start_all_pods_again_except_after_errors(jobset):
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert job["completions"] == job["parallelism"]
    assert job["completionMode"] == "Indexed"
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")  # one lost pod fails the job, with all its pods
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [1, 2]}
    assert not {STOPPED, LOST} & set(rule["onExitCodes"]["values"])
    [failure] = jobset["spec"]["failurePolicy"]["rules"]
    assert failure == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert pod["terminationGracePeriodSeconds"] >= 60
    variables = {one["name"]: one.get("value") for one in container.get("env", ())}
    if variables:
        name, network = jobset["metadata"]["name"], jobset["spec"]["network"]
        address = f"{name}-{replicated['name']}-0-0.{network['subdomain']}:{container['ports'][0]['containerPort']}"
        assert variables["JAX_COORDINATOR_ADDRESS"] == address
        assert int(variables["JAX_NUM_PROCESSES"]) == job["completions"]
        assert "JAX_PROCESS_ID" in variables


def commands_in(directory: Path, **scripts: str) -> dict[str, str]:
    """Puts programs of these names, in bash, before those of the machine."""
    for name, text in scripts.items():
        (directory / name).write_text(f"#!/bin/bash\n{text}\n")
        (directory / name).chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (STOPPED, 99, True),
        (LOST, 0, True),
        (137, 0, True),
        (LOST, 99, False),
    ],
)
def test_slurm_requeues_what_another_start_can_finish(tmp_path, status, restarts, requeued):
    environment = commands_in(
        tmp_path,
        srun=f'echo "$@" > {tmp_path}/srun.txt; exit {status}',
        scontrol=f'echo "$@" > {tmp_path}/scontrol.txt',
    )
    environment |= {"SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["bash", SCRIPTS[0], "--workdir=/shared/a run"], env=environment, check=False)
    assert done.returncode == status
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1" in (tmp_path / "srun.txt").read_text()
    assert (tmp_path / "srun.txt").read_text().endswith("train.py --workdir=/shared/a run\n")
    assert (tmp_path / "scontrol.txt").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 7\n"


def test_slurm_passes_the_signal_on_and_waits_for_the_end(tmp_path):
    stop = f'touch {tmp_path}/stop; echo "$@" > {tmp_path}/scancel.txt'
    step = f"kill -TERM $PPID; until [[ -e {tmp_path}/stop ]]; do sleep 0.05; done; sleep 0.2; exit {STOPPED}"
    environment = commands_in(tmp_path, srun=step, scancel=stop, scontrol=":")
    environment |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", SCRIPTS[0]], env=environment, check=False, timeout=60)
    assert done.returncode == STOPPED
    assert (tmp_path / "scancel.txt").read_text() == "--signal=TERM 7\n"


def test_tpu_hosts_start_again_until_the_run_is_done(tmp_path):
    """`gcloud ... --command=TEXT` is run here, and a Python that ends with 75, 3 and 0 in turn stands for the run."""
    python = tmp_path / "transnormer_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/bash\nprintf "%s|" "$@" >> ~/starts.txt; echo >> ~/starts.txt\n'
        "case $(wc -l < ~/starts.txt) in 1) exit 75 ;; 2) exit 3 ;; *) touch ~/done; exit 0 ;; esac\n"
    )
    python.chmod(0o755)
    gcloud = f'for one; do case $one in --command=*) cd {tmp_path} && bash -c "${{one#--command=}}" ;; esac; done'
    environment = commands_in(tmp_path, gcloud=gcloud, sleep="/bin/sleep 0.01") | {"HOME": str(tmp_path)}
    environment |= {"TPU": "t", "ZONE": "z"}
    files = "--config.data.files=gs://bucket/with space/*.txt"
    subprocess.run([SCRIPTS[1], "start", "--workdir=w", files], env=environment, check=True, timeout=60)
    subprocess.run(
        ["bash", "-c", "until [[ -e ~/done ]]; do /bin/sleep 0.05; done"], env=environment, timeout=60, check=True
    )
    assert (tmp_path / "starts.txt").read_text() == f"train.py|--workdir=w|{files}|\n" * 3
