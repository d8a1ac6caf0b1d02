import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from transnormer_jax.inference import Generator
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.training import Config, load_workdir
from transnormer_jax.training.checkpoints import Checkpoints
from transnormer_jax.training.step import TrainState
from transnormer_jax.training.workdir import write_config


def generate(*flags):
    command = [sys.executable, "-m", "transnormer_jax.generate", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run whose model has learned nothing."""
    workdir = tmp_path_factory.mktemp("runs") / "untrained"
    model = TransNormerLLMConfig.preset("tiny")
    params = jax.jit(TransNormerLLM(model).init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    config = Config(model=model)
    write_config(workdir, config)
    with Checkpoints(workdir, config=config, tokenizer="") as checkpoints:
        checkpoints.save(TrainState(jnp.zeros((), jnp.int32), params, [jnp.zeros(())]), rows=0)
    return workdir


@pytest.mark.slow
def test_prompts_are_continued(workdir, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("from a\nfile\n")
    run = load_workdir(workdir)
    generator = Generator(run.model_config, run.params, run.tokenizer)
    prompts = ["Grün", "from a\nfile"]
    settings = {"max_new_tokens": 24, "temperature": 0.7, "top_k": 100, "top_p": 0.95, "seed": 3}
    texts = generator.generate(prompts, **settings)
    wholes = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    flags = [f"--workdir={workdir}", *(f"--{name}={value}" for name, value in settings.items())]

    together = generate(*flags, "--prompt=Grün", f"--prompt_file={file}")
    assert together.stdout == "\n----------------------------------------\n".join(wholes) + "\n", together.stderr
    alone = generate(*flags, "--prompt=Grün")
    assert alone.stdout == wholes[0] + "\n", alone.stderr
    assert alone.returncode == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=WORKDIR"], "there is nothing to continue: give --prompt="),
        (["--workdir=nowhere", "--prompt=x"], "'nowhere' holds no run"),
        (["--workdir=WORKDIR", "--prompt_file=nowhere"], "cannot read the prompt file 'nowhere'"),
        (["--workdir=WORKDIR", "--prompt_file=EMPTY"], "is empty"),
        (["--workdir=WORKDIR", "--prompt_file=BINARY"], "is not UTF-8"),
        (["--workdir=WORKDIR", "--prompt=x", "--top_p=2"], "top_p is 2.0"),
    ],
)
def test_a_mistake_is_one_sentence(workdir, tmp_path, flags, message):
    (tmp_path / "EMPTY").write_text("\n")
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe")
    places = {"WORKDIR": workdir, "EMPTY": tmp_path / "EMPTY", "BINARY": tmp_path / "BINARY"}
    for name, place in places.items():
        flags = [flag.replace(name, str(place)) for flag in flags]
    result = generate(*flags)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_help():
    text = generate("--help").stdout
    assert "python -m transnormer_jax.generate --workdir=" in text
    assert "--max_new_tokens" in text
