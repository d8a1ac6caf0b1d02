"""Tensor parallelism on TPUs is the paper's: counted in what the TPU compiler makes of a block."""

import re

import pytest

from tests.distributed.tpu import compiled_text

_COMPILE = """
import jax
import jax.numpy as jnp
from jax.experimental import topologies

from transnormer_jax.distributed import MeshConfig, batch_sharding, make_mesh
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.placement import place_params

sizes = dict(vocab_size=512, num_layers=1, model_dim=512, num_heads=4, glu_dim=1024, lrpe_layers=())
task = CausalLM(TransNormerLLM(TransNormerLLMConfig(**sizes)))
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = make_mesh(MeshConfig(data=1, tensor=4), devices)
params = place_params(jax.eval_shape(task.init, jax.random.key(0)), mesh)
tokens = jax.ShapeDtypeStruct((4, 1024), jnp.int32, sharding=batch_sharding(mesh, (4, 1024)))
batch = {name: tokens for name in ("inputs", "targets", "segment_ids")}
with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    gradient = jax.jit(jax.grad(lambda params, batch: task.loss_and_metrics(params, batch).loss))
    print(gradient.lower(params, batch).compile().as_text())
"""
_COLLECTIVE = re.compile(
    r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(.*?op_name=\"([^\"]*)\""
)


@pytest.mark.slow
def test_a_block_has_two_sums_of_tokens_each_way_and_two_of_one_number_per_token(libtpu):
    text = compiled_text(_COMPILE, libtpu)
    found = [match.groups() for match in map(_COLLECTIVE.search, text.splitlines()) if match]
    block = sorted(
        (shape.split("{")[0], kind, "transpose" in name) for shape, kind, name in found if "layers_0" in name
    )
    # Forward and backward: W_o and W_out, or W_qkvu and W_gate,value; and the mean square over all heads.
    assert block == sorted(
        [("bf16[4,1024,512]", "all-reduce", backward) for backward in (False, False, True, True)]
        + [("f32[4,1024]", "all-reduce", backward) for backward in (False, True)]
    )
