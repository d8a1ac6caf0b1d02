import pytest

from tests.commands import assert_fails, run
from tests.inference.letters import CONFIG, make_params
from tests.tiny_run import write_run
from transnormer_jax.data import ByteTokenizer
from transnormer_jax.inference import Generator


def generate(*flags):
    return run("-m", "transnormer_jax.generate", *flags)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "untrained", CONFIG, make_params())


@pytest.mark.slow
def test_prompts_are_continued(workdir, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("from a\nfile\n")
    generator = Generator(CONFIG, make_params(), ByteTokenizer())
    prompts = ["Grün", "from a\nfile"]
    settings = {
        "max_new_tokens": 24,
        "temperature": 0.7,
        "top_k": 100,
        "top_p": 0.95,
        "seed": 4,
    }  # which writes no line break
    texts = generator.generate(prompts, **settings)
    wholes = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    flags = [f"--workdir={workdir}", *(f"--{name}={value}" for name, value in settings.items())]

    _, together, err = generate(*flags, "--prompt=Grün", f"--prompt_file={file}")
    assert together == "\n----------------------------------------\n".join(wholes) + "\n", err
    status, alone, err = generate(*flags, "--prompt=Grün")
    assert alone == wholes[0] + "\n", err
    assert status == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=WORKDIR"], "there is nothing to continue: give --prompt="),
        (["--workdir=nowhere", "--prompt=x"], "'nowhere' holds no run"),
        (["--workdir=WORKDIR", "--prompt_file=nowhere"], "cannot read the prompt file 'nowhere'"),
        (["--workdir=WORKDIR", "--prompt_file=EMPTY"], "is empty"),
        (["--workdir=WORKDIR", "--prompt_file=BINARY"], "is not UTF-8"),
        (["--workdir=WORKDIR", "--prompt=x", "--top_p=2"], "top_p is 2.0"),
        (["--workdir=WORKDIR", "--prompt=x", "--step=7"], "holds no checkpoint of step 7: give one of 0."),
        (["--workdir=WORKDIR", "--prompt=x", "--config=quickstart"], "--config=quickstart is of no use here"),
        (["--workdir=WORKDIR", "--prompt=x", "--config.model.num_layers=3"], "num_layers=2, the config says 3"),
        (["--config.model.dtipe=float32", "--workdir=WORKDIR"], "did you mean '--config.model.dtype'?"),
        (["--config.model.dtype=float32", "--workdir=nowhere"], "'nowhere' holds no run"),
    ],
)
def test_a_mistake_is_one_sentence(workdir, tmp_path, flags, message):
    (tmp_path / "EMPTY").write_text("\n")
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe")
    for name, path in {"WORKDIR": workdir, "EMPTY": tmp_path / "EMPTY", "BINARY": tmp_path / "BINARY"}.items():
        flags = [flag.replace(name, str(path)) for flag in flags]
    status, out, err = generate(*flags)
    assert_fails((status, out, err), message)
    assert err.count("\n") == 1
    assert out == ""


def test_help():
    _, text, _ = generate("--help")
    assert "python -m transnormer_jax.generate --workdir=" in text
    assert "--max_new_tokens" in text
