"""Checkpoints of the released layout: read as the released code reads them, and written back bit by bit."""

import json
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer

from tests.commands import assert_fails, run
from tests.compiled import apply_of, random_params
from tests.shared import shared_file
from tests.tiny_run import write_run
from transnormer_jax.convert import load_hugging_face, save_hugging_face, tensors
from transnormer_jax.convert.torch_file import open_torch_file
from transnormer_jax.data import ByteTokenizer, copy_tokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.inference import Generator
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.training import load_workdir

DATA = Path(__file__).with_name("data")
SIZES = {"vocab_size": 61, "num_layers": 3, "model_dim": 32, "num_heads": 4, "glu_dim": 48, "dtype": "float32"}


def write(directory: Path, **fields):
    config = TransNormerLLMConfig(**SIZES | fields)
    params = jax.tree.map(np.asarray, random_params(TransNormerLLM(config)))
    save_hugging_face(directory, config, params)
    return config, params


def change_tensors(directory: Path, **changes: np.ndarray | None) -> None:
    file = directory / "model.safetensors"
    content = load_file(file) | changes
    save_file({name: array for name, array in content.items() if array is not None}, file)


def change_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """The golden model in the released layout."""
    directory = tmp_path_factory.mktemp("released")
    fields = json.loads(shared_file("golden/tnl/a_pow2heads.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields))
    with np.load(shared_file("golden/tnl/a_pow2heads.npz")) as arrays:
        weights = {key.removeprefix("param/"): arrays[key] for key in arrays if key.startswith("param/")}
        np.savez(directory / "reference.npz", ids=arrays["ids"], logits=arrays["logits"])
    save_file(weights, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    "fields",
    [
        {"lrpe_layers": (0, 2), "tie_embeddings": False, "use_bias": True, "activation": "1+elu"},
        {"lrpe_layers": (), "norm": "layer_norm", "norm_eps": 1e-5, "use_bias": True, "scale_embedding": False},
        {"dtype": "bfloat16", "param_dtype": "bfloat16", "pad_token_id": 3},
    ],
    ids=["untied", "layer_norm", "bfloat16"],
)
def test_what_is_written_is_read_bit_by_bit(tmp_path, fields):
    config, params = write(tmp_path / "hf", **fields)
    found_config, found = load_hugging_face(tmp_path / "hf")
    assert found_config == config
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert all(x.dtype == config.param_dtype for x in jax.tree.leaves(found))


def test_shards_are_one_model(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "_SHARD_BYTES", 20_000)
    _, params = write(tmp_path / "hf")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shards = [tmp_path / "hf" / name for name in sorted(set(content["weight_map"].values()))]
    assert len(shards) > 2
    assert content["metadata"]["total_size"] == sum(x.nbytes for shard in shards for x in load_file(shard).values())
    jax.tree.map(np.testing.assert_array_equal, load_hugging_face(tmp_path / "hf")[1], params)
    shards[0].unlink()
    with pytest.raises(UserError, match=f"'{shards[0].name}', which is not there"):
        load_hugging_face(tmp_path / "hf")
    for damaged, message in (("{}", "has no 'weight_map'"), ('{"weight', "is no JSON")):
        index.write_text(damaged)
        with pytest.raises(UserError, match=message):
            load_hugging_face(tmp_path / "hf")


@pytest.mark.slow
def test_the_golden_model_comes_and_goes(released, tmp_path):
    config, params = load_hugging_face(released)
    with np.load(released / "reference.npz") as arrays:
        found = apply_of(TransNormerLLM(config))({"params": params}, jnp.asarray(arrays["ids"], jnp.int32))
        np.testing.assert_allclose(found, arrays["logits"], atol=2e-5)
    save_hugging_face(tmp_path / "back", config, params)
    ours, theirs = load_file(tmp_path / "back" / "model.safetensors"), load_file(released / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)
    written, fields = (json.loads((d / "config.json").read_text()) for d in (tmp_path / "back", released))
    assert fields.items() <= written.items()
    [architecture] = written["architectures"]
    code = f"OpenNLPLab/TransNormerLLM-385M--modeling_{written['model_type']}.{architecture}"
    assert written["auto_map"]["AutoModelForCausalLM"] == code


@pytest.mark.slow
def test_the_command_converts_verifies_generates_and_converts_back(released, tmp_path):
    convert, workdir = ("-m", "transnormer_jax.convert", f"--workdir={tmp_path / 'run'}"), tmp_path / "run"
    status, out, err = run(*convert, f"--from_hugging_face={released}", f"--verify={released / 'reference.npz'}")
    assert status == 0, err
    report = json.loads(out.splitlines()[-1])
    assert report["largest_logit_difference"] < 2e-5
    assert not report["tokenizer"]
    generate = ("-m", "transnormer_jax.generate", f"--workdir={workdir}", "--prompt=a", "--max_new_tokens=3")
    assert_fails(run(*generate), "unknown tokenizer", str(workdir / "tokenizer"))
    status, out, err = run(*convert, f"--to_hugging_face={tmp_path / 'back'}")
    assert status == 0, err
    ours, theirs = load_file(tmp_path / "back" / "model.safetensors"), load_file(released / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)
    assert_fails(run(*convert, f"--from_hugging_face={released}"), "holds a run already", "new --workdir")


@pytest.mark.slow
def test_a_run_by_bytes_comes_back_as_one(tmp_path):
    config = TransNormerLLMConfig(**SIZES | {"vocab_size": 259})
    source = write_run(tmp_path / "run", config, random_params(TransNormerLLM(config)))
    convert = ("-m", "transnormer_jax.convert")
    for command in (
        (f"--workdir={source}", f"--to_hugging_face={tmp_path / 'hf'}"),
        (f"--workdir={tmp_path / 'back'}", f"--from_hugging_face={tmp_path / 'hf'}"),
    ):
        status, _, err = run(*convert, *command)
        assert status == 0, err
    before, after = load_workdir(source), load_workdir(tmp_path / "back")
    assert isinstance(after.tokenizer, ByteTokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf")("h\u00e9!", add_special_tokens=False).input_ids == (
        before.tokenizer.encode("h\u00e9!")
    )
    texts = [Generator(one.model_config, one.params, one.tokenizer).generate(["h\u00e9"], 8) for one in (before, after)]
    assert texts[0] == texts[1]


def test_a_tokenizer_goes_with_the_weights(tmp_path):
    config, params = write(tmp_path / "hf")
    file = tmp_path / "own" / "tokenizer.json"
    file.parent.mkdir()
    tokenizer = Tokenizer(WordLevel({"a": 0, "</s>": 1, "b": 2, "<s>": 3}, unk_token="a"))
    tokenizer.save(str(file))
    for name, given in {"of_a_file": str(file), "of_a_directory": str(file.parent)}.items():
        save_hugging_face(tmp_path / name, config, params, given)
        assert (tmp_path / name / "tokenizer.json").read_bytes() == file.read_bytes()
        fields = json.loads((tmp_path / name / "config.json").read_text())
        assert (fields["bos_token_id"], fields["eos_token_id"]) == (3, 1)
    fields = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (fields["bos_token_id"], fields["eos_token_id"]) == (1, 2)
    file.write_text("pieces")
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        save_hugging_face(tmp_path / "broken", config, params, str(file))
    assert not (tmp_path / "broken").exists()


def test_parameters_are_taken_onto_the_cpu_without_a_copy(tmp_path):
    write(tmp_path / "hf")
    for array in jax.tree.leaves(load_hugging_face(tmp_path / "hf")[1]):
        assert jax.device_put(array, jax.devices("cpu")[0]).unsafe_buffer_pointer() == array.ctypes.data


def test_files_of_pytorch_are_read_without_it():
    found = {name: tensor.read() for name, tensor in open_torch_file(DATA / "pytorch_model.bin").items()}
    numbers = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = {
        "whole": numbers,
        "tied": numbers,
        "transposed": numbers.T,
        "part": numbers[1:3, 2:5],
        "parameter": np.array([1.5, -2.0], np.float32),
        "bfloat16": np.array([[0.1, 3.0]], ml_dtypes.bfloat16),
        "float16": np.array([0.1], np.float16),
        "int64": np.array([1, 2**40]),
        "scalar": np.float32(7),
        "empty": np.empty((0, 3), np.float32),
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_file_of_pytorch_that_wants_to_run_something_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    with zipfile.ZipFile(tmp_path / "evil.bin", "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps({"a": Evil()}))
    with pytest.raises(UserError, match=r"it holds a builtins\.print"):
        open_torch_file(tmp_path / "evil.bin")
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"PyTorch 1\.6 or later"):
        open_torch_file(tmp_path / "old.bin")


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        (b"K\x06J\xff\xff\xff\xff\x86", "a negative offset, size or stride"),  # (6, -1)
        (b"K\xffK\x01\x86", "a view that ends outside its storage"),  # (255, 1)
    ],
)
def test_a_view_that_reaches_outside_its_storage_is_refused(tmp_path, strides, message):
    with zipfile.ZipFile(DATA / "pytorch_model.bin") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = [name for name in content if name.endswith("/data.pkl")]
    own = b"K\x06K\x01\x86"  # of the first tensor: (6, 1)
    assert own in content[pickled]
    content[pickled] = content[pickled].replace(own, strides, 1)
    with zipfile.ZipFile(tmp_path / "outside.bin", "w") as archive:
        for name, entry in content.items():
            archive.writestr(name, entry)
    with pytest.raises(UserError, match=message):
        open_torch_file(tmp_path / "outside.bin")


@pytest.mark.parametrize("name", ["spm_32k.model", "tokenizer.model"])
def test_the_file_that_is_named_is_copied_under_the_usual_name(tmp_path, name):
    own = tmp_path / "own"
    own.mkdir()
    (own / name).write_text("pieces")
    (own / "tokenizer.json").write_text("another tokenizer")
    (own / "chat_template.jinja").write_text("template")
    assert copy_tokenizer(own / name, tmp_path / "copy")
    assert {file.name: file.read_text() for file in (tmp_path / "copy").iterdir()} == {
        "tokenizer.model": "pieces",
        "chat_template.jinja": "template",
    }


def test_the_weights_of_pytorch_make_a_model(tmp_path, monkeypatch):
    _, params = write(tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "pytorch_model.bin")
    monkeypatch.setattr(
        tensors,
        "open_torch_file",
        lambda path: {name: SimpleNamespace(read=lambda x=x: x) for name, x in weights.items()},
    )
    jax.tree.map(np.testing.assert_array_equal, load_hugging_face(tmp_path / "hf")[1], params)


def test_wrong_tensors_are_listed(tmp_path):
    write(tmp_path / "hf")
    out, stray = "model.layers.1.token_mixer.out_proj.weight", "model.layers.1.token_mixer.gate.weight"
    change_tensors(tmp_path / "hf", **{out: None, stray: np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=f"missing: {out}; unknown: {stray}"):
        load_hugging_face(tmp_path / "hf")


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("model.layers.0.token_mixer.qkvu_proj.weight", np.zeros((96, 32), np.float32), r"\(96, 32\).*\(128, 32\)"),
        ("model.layers.0.token_mixer.lrpe.theta", np.zeros((4, 8), np.float32), r"\(4, 8\).*\(4, 1, 8\)"),
        ("model.layers.0.channel_mixer.l1.weight", np.zeros((48, 32), np.float16), "float16, the embedding float32"),
        ("lm_head.weight", np.zeros((61, 32), np.float32), "tie_word_embeddings to false"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path, name, array, words):
    write(tmp_path / "hf")
    change_tensors(tmp_path / "hf", **{name: array})
    with pytest.raises(UserError, match=words):
        load_hugging_face(tmp_path / "hf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "'llama' that is no TransNormerLLM"),
        ({"gate_dim": 16}, "no TransNormerLLM of the 385M"),
        ({"hidden_dim": 64}, "hidden_dim=64 is not decoder_embed_dim=32"),
        ({"linear_act_fun": "exp"}, "broken in the released code"),
        ({"vocab_size": 64}, r"\(61, 32\).*\(64, 32\)"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path, changes, words):
    write(tmp_path / "hf")
    change_config(tmp_path / "hf", **changes)
    with pytest.raises(UserError, match=words):
        load_hugging_face(tmp_path / "hf")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"decay": "paper"}, "decay='paper' cannot be written"),
        ({"use_gate": False}, "use_gate=False"),
        ({"norm": "rms_norm"}, "norm='rms_norm'"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-05"),
    ],
)
def test_what_the_released_code_cannot_do_is_not_written(tmp_path, fields, words):
    with pytest.raises(UserError, match=words):
        save_hugging_face(tmp_path / "hf", TransNormerLLMConfig(**SIZES | fields), {})
    assert not list(tmp_path.iterdir())


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="give a directory in Hugging Face's layout"):
        load_hugging_face(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no weights"):
        load_hugging_face(tmp_path)
    (tmp_path / "model.safetensors").write_text("nothing")
    with pytest.raises(UserError, match="download it again"):
        load_hugging_face(tmp_path)
    with pytest.raises(UserError, match="already exists"):
        save_hugging_face(tmp_path, TransNormerLLMConfig(**SIZES), {})
