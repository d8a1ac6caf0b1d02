"""Every test sees eight CPU devices, strict shapes, and the operators' jaxtyping annotations enforced."""

import functools
import gc
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

# Before the first import of jax. A test that starts a process of its own decides for itself (tests/commands.py).
# TRANSNORMER_TEST_PLATFORM=cuda is for tests/gpu, which keep the CPU for the definition in float64.
os.environ["JAX_PLATFORMS"] = "cuda,cpu" if os.environ.get("TRANSNORMER_TEST_PLATFORM") == "cuda" else "cpu"

# What one process of this run has compiled, the others and the commands that tests start find. Workers inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="compiled.")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Most tests compile for longer than they run, and so do the commands that they start.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

# Programs are lowered quicker without the lines of Python that they come from.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

import jax
import pytest
from absl import flags
from jaxtyping import install_import_hook

from tests import stores

# Tracing makes objects by the million, and few of them are garbage.
gc.set_threshold(200_000, 50, 100)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Grain reads absl flags in its workers; pytest never parses them.
flags.FLAGS(sys.argv[:1])

if importlib.util.find_spec("beartype"):  # a machine that runs tests/gpu alone may lack it
    install_import_hook(("transnormer_jax.ops", "transnormer_jax.papers.ops"), "beartype.beartype")


@pytest.fixture
def optimized():
    """For a test that runs for longer than it compiles."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def libtpu() -> Path:
    """The TPU compiler; where there is none, the test is skipped and says how to get it."""
    from transnormer_jax.distributed.topology import find_libtpu
    from transnormer_jax.errors import UserError

    try:
        return find_libtpu()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def gs():
    """Serves gs://bench to this process and to the commands that it starts."""
    with stores.gs_server() as environment, pytest.MonkeyPatch.context() as patch:
        stores.set_all(patch, environment)
        yield


@pytest.fixture(scope="session")
def s3():
    """Serves s3://bench to this process and to the commands that it starts."""
    with stores.s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        stores.set_all(patch, environment)
        yield


@pytest.fixture(scope="module")
def on_one_device():
    """Runs train and are evaluated on the first of the eight devices, for which they compile in half the time."""
    from transnormer_jax.distributed import make_mesh
    from transnormer_jax.training.available_mesh import available_mesh

    first = {"devices": jax.devices()[:1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transnormer_jax.training.loop.make_mesh", functools.partial(make_mesh, **first))
        patch.setattr("transnormer_jax.training.evaluate.available_mesh", functools.partial(available_mesh, **first))
        yield


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Forgets compiled programs in time: where Linux allows no more memory maps (65,530), XLA crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 30_000:
        jax.clear_caches()
        gc.collect()
