"""The exported model, called as docs/export.md says, by a process without Flax and without this package."""

import json
import re
import shutil
import subprocess
import sys

import jax.export
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from tests.commands import ROOT, assert_fails, run
from tests.compiled import apply_of
from tests.inference.letters import CONFIG, MODEL, Letters, make_params
from transnormer_jax.errors import UserError
from transnormer_jax.export import PLATFORMS, export_model
from transnormer_jax.inference import Generator, quantize
from transnormer_jax.training.workdir import write_model

PROMPTS = [[1, *range(3, 150)], [1, 70], [1, *range(60, 124)]]
WINDOW = 64

# After the code of the page: what it computes, for the test to compare.
COMPARISON = """
prompts, steps = json.loads(Path("prompts.json").read_text())
cache = read(prompts)
logits = [np.asarray(cache["logits"])]
for step in range(len(steps)):
    cache = decode(params, cache, np.array(steps[step], np.int32))
    logits.append(np.asarray(cache["logits"]))
np.save("logits.npy", logits)
"""


def code_of_the_page():
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    return code


@pytest.fixture(scope="module")
def params():
    """With matrices of int8, which have all that those of float32 have, and scales."""
    return quantize(make_params())


@pytest.fixture(scope="module")
def exported(params, tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "exported"
    export_model(Generator(CONFIG, params, Letters()), directory, WINDOW)
    return directory


@pytest.mark.slow
def test_the_exported_model_gives_the_logits_of_the_live_one(tmp_path, params, exported):
    shutil.copytree(exported, tmp_path / "exported")
    steps = np.random.default_rng(0).integers(3, 259, (20, len(PROMPTS)))
    (tmp_path / "prompts.json").write_text(json.dumps([PROMPTS, steps.tolist()]))
    blocked = "import sys\nsys.modules['flax'] = sys.modules['transnormer_jax'] = None\n"
    (tmp_path / "page.py").write_text(blocked + code_of_the_page() + COMPARISON)
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    logits = np.load(tmp_path / "logits.npy")
    whole = np.zeros((len(PROMPTS), 200), np.int32)
    for row, prompt in enumerate(PROMPTS):
        whole[row, : len(prompt) + 20] = [*prompt, *steps[:, row]]
    expected = np.asarray(apply_of(MODEL)({"params": params}, whole))
    for row, prompt in enumerate(PROMPTS):
        of_row = expected[row, len(prompt) - 1 :][:21]
        np.testing.assert_allclose(logits[:, row], of_row, atol=1e-5 * np.abs(of_row).max())


@pytest.mark.slow
def test_it_is_for_every_platform_and_batch(params, exported):
    for name in ("prefill", "decode"):
        program = jax.export.deserialize(bytearray((exported / f"{name}.bin").read_bytes()))
        assert program.platforms == PLATFORMS
        assert str(program.out_avals[0].shape[0]) == "batch"
    with pytest.raises(UserError, match="exists: choose another --out"):
        export_model(Generator(CONFIG, params, Letters()), exported, WINDOW)


@pytest.mark.slow
def test_the_command(tmp_path):
    write_model(tmp_path / "run", CONFIG, make_params())
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    (tmp_path / "run" / "tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "run" / "tokenizer" / "tokenizer.json"))
    arguments = ("-m", "transnormer_jax.export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    status, out, err = run(*arguments)
    assert status == 0, err
    assert "wrote" in out
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    programs = {"prefill.bin", "decode.bin", "params.safetensors", "manifest.json"}
    assert files == programs | {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
    assert_fails(run(*arguments), "exists: choose another --out")
