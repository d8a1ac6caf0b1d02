"""`python -m transnormer_jax.compile`: a slice of TPUs that is not there, and mistakes in one sentence."""

import json

import pytest

from tests.commands import assert_fails, run
from transnormer_jax.distributed.hlo import Array
from transnormer_jax.distributed.program import Kernel
from transnormer_jax.distributed.topology import find_libtpu
from transnormer_jax.training.compilation import kernel_flops
from transnormer_jax.training.sweep import rank

_CONFIG = """
from transnormer_jax.training.config import default_config

def get_config():
    config = default_config(vocab_size=512, num_layers=3, model_dim=256, num_heads=2, glu_dim=512, lrpe_layers=())
    config.batch_size = 8
    config.sequence_length = 1024
    config.evaluation.batch_size = 8
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
"""
# V D + L (5 D^2 + 3 D F) of matrices.
_PARAMETERS = 512 * 256 + 3 * (5 * 256**2 + 3 * 256 * 512)
_TOKENS = 8 * 1024


@pytest.fixture
def compile_(tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(_CONFIG)

    def compile_(*flags):
        return run("-m", "transnormer_jax.compile", f"--config={config}", *flags)

    return compile_


@pytest.mark.slow
def test_the_training_step_of_a_slice(libtpu, compile_):
    status, out, err = compile_("--topology=v5e:2x2", "--config.mesh.tensor=2", "--parameters")
    assert status == 0, err
    assert "layers_0/glu/out/kernel" in out
    report = json.loads(out.splitlines()[-1])
    assert (report["chips"], report["parameters"], report["fits"]) == (4, _PARAMETERS, True)
    assert report["mesh"] == {"data": 1, "fsdp": 2, "context": 1, "tensor": 2}

    memory = report["bytes_per_chip"]
    # Parameters and two moments in float32, divided by four; scalars and the batch on top.
    assert 3 * 4 * _PARAMETERS / 4 <= memory["arguments"] <= 3 * 4 * _PARAMETERS / 4 + 2**18
    assert memory["arguments"] <= memory["peak"] < memory["available"] == int(15.75 * 2**30)

    # Nothing is recomputed, and nothing is computed twice on two devices: 6ND and the state, the head included.
    # Each state [H, K, K] is written and read.
    state = 2 * 3 * 2 * 128**2
    assert report["model_flops_per_chip"] == 6 * (_PARAMETERS + state) * _TOKENS / 4
    assert 1 <= report["recompute_factor"] < 1.01
    assert report["kernels"] == 6  # three layers, forward and backward
    assert report["unknown_loops"] == 0

    # Tensor parallelism sums [B, N, D] bfloat16 twice a layer each way. fsdp 2 leaves 4 rows to a device, and an
    # all-reduce of two sends its array once.
    summed = sum(one["bytes"] for one in report["collectives"] if one["axes"] == ["tensor"])
    assert summed >= 4 * 3 * (4 * 1024 * 256 * 2)
    assert {axis for one in report["collectives"] for axis in one["axes"]} == {"fsdp", "tensor"}
    assert report["estimated_seconds"] > 0
    assert 0 < report["implied_mfu"] < 1


@pytest.mark.slow
def test_a_step_of_decoding(libtpu, compile_):
    status, out, err = compile_("--topology=v5e:2x2", "--step=decode")
    assert status == 0, err
    report = json.loads(out.splitlines()[-1])
    assert report["tokens"] == 8
    memory = report["bytes_per_chip"]
    # The cache is written where it was read: three states [2, H, K, K] float32 of two rows.
    cache = 3 * 2 * 2 * 128**2 * 4
    assert memory["aliases"] >= cache
    assert memory["arguments"] >= 2 * _PARAMETERS / 4 + cache


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topology=v9e:2x2"], ["unknown TPU 'v9e'", "did you mean"]),
        (["--topology=v5e"], ["'v5e' has no sizes", "v5e:4x4"]),
        (["--topology=v5e:3x3"], ["no topology 'v5e:3x3'", "v5e:4x4"]),
        (["--topology=v5e:2x2", "--config.mesh.tensor=3"], ["does not fit 4 devices"]),
        (["--topology=v5e:2x2", "--config.mesh.tensor=4"], ["num_heads = 2 must be a multiple"]),
        (["--topology=v5e:2x2", "--config.batch_size=6"], ["must be a multiple of config.mesh data x fsdp = 4"]),
        (["--topology=v5e:2x2", "--step=decode", "--sweep"], ["leave out --step"]),
        (["--topology=v5e:2x2", "--step=eval"], ["--step"]),
        ([], ["--topology=... is missing"]),
    ],
)
def test_mistakes_are_one_sentence(libtpu, compile_, flags, words):
    assert_fails(compile_(*flags), *words)


def test_a_missing_compiler_is_one_sentence(compile_, monkeypatch, tmp_path):
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(tmp_path / "libtpu.so"))
    assert_fails(compile_("--topology=v5e:2x2"), "there is no TPU compiler at", "pip install")


def test_the_compiler_is_found_by_its_file_or_its_directory(monkeypatch, tmp_path):
    library = tmp_path / "libtpu.so"
    library.touch()
    for named in (library, tmp_path):
        monkeypatch.setenv("TPU_LIBRARY_PATH", str(named))
        assert find_libtpu() == library


def test_what_fits_is_ranked_by_time_then_by_recomputation_then_by_talk():
    def report(fits=True, recompute=1.0, sent=0, **seconds):
        return {"fits": fits, "recompute_factor": recompute, "collectives": [{"bytes": sent}], **seconds}

    timed = [report(recompute=1.3, estimated_seconds=1.0), report(estimated_seconds=2.0)]
    untimed = [report(sent=1), report(sent=2), report(recompute=1.3)]
    assert rank([timed[1], {"fits": False}, timed[0]]) == timed
    assert rank([untimed[2], untimed[1], untimed[0]]) == untimed


@pytest.mark.parametrize(("name", "flops"), [("linear_attention", 4), ("linear_attention_reverse_backward", 8)])
def test_a_kernel_counts_as_its_mathematics(name, flops):
    out, state = Array(16, (2, 64, 96)), Array(32, (2, 16, 96))
    results = (out, state) if flops == 4 else (out, out, out, state)
    assert kernel_flops(Kernel(name, (), results, 1, None)) == flops * 64 * (2 * 16 * 96)
    assert kernel_flops(Kernel(name, (), results, 1, 5)) == 5
