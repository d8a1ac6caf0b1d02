"""The flags of the compilers: known to them, for the platform that is present, and never in place of the user's."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.distributed.tpu import compiled_text
from transnormer_jax.distributed.compiler_flags import GPU_FLAGS, TPU_FLAGS, use_compiler_flags, with_flags

_LOAD = """
import os
os.environ["LIBTPU_INIT_ARGS"] = "{flags}"
from jax.experimental import topologies
print(len(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices))
"""


def test_a_flag_of_the_user_keeps_its_value():
    given = f"--xla_dump_to=here --{next(iter(GPU_FLAGS))}=false"
    words = with_flags(given, GPU_FLAGS).split()
    assert words[:2] == given.split()
    assert sorted(word.split("=")[0] for word in words[1:]) == sorted(f"--{name}" for name in GPU_FLAGS)
    assert with_flags(" ".join(words), GPU_FLAGS) == " ".join(words)


@pytest.mark.parametrize("platforms", ["", "cpu", "tpu,cpu"])
def test_only_the_platform_that_is_present_gets_flags(monkeypatch, platforms):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    environment = {"JAX_PLATFORMS": platforms}
    use_compiler_flags(environment)
    assert environment.get("LIBTPU_INIT_ARGS", "") == ("" if platforms == "cpu" else with_flags("", TPU_FLAGS))
    if platforms == "cpu":
        assert "XLA_FLAGS" not in environment


@pytest.mark.slow
def test_jaxlib_knows_every_flag_for_gpus():
    """It reads them on a machine without GPUs too, and ends the process at an unknown one."""

    def start(flags: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", "import jax; jax.devices()"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert start(with_flags("", GPU_FLAGS)).returncode == 0
    unknown = start("--xla_gpu_no_such_flag=true")
    assert unknown.returncode != 0
    assert "Unknown flag" in unknown.stderr


@pytest.mark.slow
def test_libtpu_knows_every_flag_for_tpus(libtpu):
    assert compiled_text(_LOAD.format(flags=with_flags("", TPU_FLAGS)), libtpu).split()[-1] == "4"
    with pytest.raises(AssertionError, match="xla_tpu_no_such_flag"):
        compiled_text(_LOAD.format(flags="--xla_tpu_no_such_flag=true"), libtpu)
