""" "auto" takes a kernel only where it was measured, and only after a check on the machine that it runs on."""

from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest

from transnormer_jax.distributed import multihost
from transnormer_jax.ops import linear_attention, resolve_backend
from transnormer_jax.ops.hardware import Hardware, target_hardware
from transnormer_jax.ops.linear_attention import BACKENDS, Backend, Problem, backends
from transnormer_jax.ops.linear_attention.operands import Gradients
from transnormer_jax.ops.linear_attention.self_test import _passes

LONG = Problem(1, 300, 2, 8, 8, jnp.dtype("float32"))


@pytest.fixture
def kernel(monkeypatch):
    """Registers a backend as the measured kernel of this machine."""
    _passes.cache_clear()
    jax.clear_caches()  # the same name stands for another function in each test

    def register(backend: Backend) -> None:
        monkeypatch.setitem(BACKENDS, "kernel", backend)
        monkeypatch.setitem(backends._AUTO, "cpu", "kernel")

    yield register
    _passes.cache_clear()


@pytest.mark.slow
def test_a_right_kernel_is_taken_even_inside_a_trace(kernel):
    calls = []

    def forward(operands, **options):
        calls.append(operands.q.shape)
        return BACKENDS["chunked"].forward(operands, **options)

    kernel(Backend(forward))
    q = jnp.ones((1, 300, 2, 8))
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        jax.jit(lambda q: linear_attention(q, q, q)[0])(q)
    assert (1, 300, 2, 8) in calls
    assert (1, 2100, 2, 8) in calls  # the test has the heads and features of the call
    assert resolve_backend("auto", LONG) == "kernel"
    assert resolve_backend("auto", LONG._replace(num_tokens=8)) == "quadratic"


def test_a_wrong_gradient_is_found(kernel):
    def backward(operands, saved, d_out, d_state, **options):
        return Gradients(*operands[:3], None, operands.state)

    kernel(Backend(BACKENDS["chunked"].forward, backward))
    sentence = "backend 'kernel' fails its self-test on cpu for 2 heads, K = 8, V = 8, float32"
    with pytest.warns(UserWarning, match=sentence):
        assert resolve_backend("auto", LONG) == "chunked"


def test_what_fails_on_another_host_is_not_taken(kernel, monkeypatch):
    """All processes decide alike, or they would compile different programs."""
    heard = []

    def all_agree(flag: bool, name: str) -> bool:
        heard.append((flag, name))
        return False

    monkeypatch.setattr(multihost, "all_agree", all_agree)
    kernel(Backend(BACKENDS["chunked"].forward, BACKENDS["chunked"].backward))
    with pytest.warns(UserWarning, match=r"backend 'kernel' fails its self-test .*on another host"):
        assert resolve_backend("auto", LONG) == "chunked"
    assert heard == [(True, "self_test/kernel/1/2100/2/8/8/float32/None/False/None/False")]


def test_a_failing_kernel_is_not_taken(kernel):
    def forward(operands, **options):
        raise NotImplementedError("no such instruction")

    kernel(Backend(forward))
    with pytest.warns(UserWarning, match="NotImplementedError: no such instruction"):
        assert resolve_backend("auto", LONG) == "chunked"


def test_what_a_kernel_refuses_it_does_not_get(kernel):
    kernel(Backend(BACKENDS["chunked"].forward, unsupported_reason=lambda problem, hardware: "it is Sunday"))
    assert resolve_backend("auto", LONG) == "chunked"


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_what_is_compiled_for_another_machine_cannot_be_checked(platform: str, monkeypatch):
    monkeypatch.setattr(backends, "target_hardware", lambda: Hardware(platform, platform))
    assert resolve_backend("auto", LONG) == {"tpu": "pallas_tpu", "gpu": "chunked"}[platform]


@pytest.mark.parametrize("device", ["cpu", jax.devices("cpu")[1]])
def test_the_default_device_decides(device, monkeypatch):
    tpu = Mock(spec=jax.Device, platform="tpu", device_kind="TPU v5 lite")
    cpus = jax.local_devices(backend="cpu")
    monkeypatch.setattr(jax, "local_devices", lambda backend="tpu": cpus if backend == "cpu" else [tpu])
    assert target_hardware() == Hardware("tpu", "TPU v5 lite")
    with jax.default_device(device):
        assert target_hardware() == Hardware("cpu", "cpu")
