"""The FLOP count against the compiler's own, and the table of devices."""

import jax
import jax.numpy as jnp
import pytest

from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.flops import peak_flops, training_flops_per_token


@pytest.mark.slow
def test_count_agrees_with_the_compiler():
    # Two layers, one with LRPE: each is a scan of its own, so the compiler's count, which sees a scan's body once, is
    # whole. A short row in one chunk keeps what chunks add small.
    config = TransNormerLLMConfig.preset("tiny", model_dim=256, num_heads=2, glu_dim=704)
    task = CausalLM(TransNormerLLM(config))
    shape = jax.ShapeDtypeStruct((4, 64), jnp.int32)
    batch = dict.fromkeys(("inputs", "targets", "segment_ids"), shape)
    params = jax.eval_shape(task.init, jax.random.key(0))
    compiled = (
        jax.jit(jax.grad(lambda params, batch: task.loss_and_metrics(params, batch).loss))
        .lower(params, batch)
        .compile()
    )
    counted = compiled.cost_analysis()["flops"] / (4 * 64)
    assert counted == pytest.approx(training_flops_per_token(config, params), rel=0.15)


def test_peaks():
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5") == 459e12
    assert peak_flops("cpu") is None


def test_six_flops_per_parameter_and_token():
    config = TransNormerLLMConfig.preset("7b")
    params = jax.eval_shape(CausalLM(TransNormerLLM(config)).init, jax.random.key(0))
    assert training_flops_per_token(config, params) == pytest.approx(6 * 6.93e9, rel=0.03)
