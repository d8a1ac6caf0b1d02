"""The training step, compiled for a slice of TPUs without having one: kernels are found and divided."""

import pytest

from tests.distributed.tpu import compiled_text

_COMPILE = """
import jax
import jax.numpy as jnp
from jax.experimental import topologies

from transnormer_jax.distributed import MeshConfig, batch_sharding, make_mesh
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.config import OptimizerConfig
from transnormer_jax.training.optimizer import make_optimizer, make_schedule
from transnormer_jax.training.placement import place_state
from transnormer_jax.training.step import make_train_step

sizes = dict(vocab_size=512, num_layers=3, model_dim=256, num_heads=2, glu_dim=512, lrpe_layers=())
config = TransNormerLLMConfig(**sizes, remat="dots")
task = CausalLM(TransNormerLLM(config))
schedule = make_schedule(OptimizerConfig(), 1000)
optimizer = make_optimizer(OptimizerConfig(), schedule)
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = make_mesh(MeshConfig(data=1, fsdp=-1), devices)
tokens = jax.ShapeDtypeStruct((8, 1024), jnp.int32, sharding=batch_sharding(mesh, (8, 1024)))
batch = {name: tokens for name in ("inputs", "targets", "segment_ids")}
with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    state = place_state(task, optimizer, mesh)
    print(jax.jit(make_train_step(task, optimizer, schedule, 1)).lower(state, batch).compile().as_text())
"""


@pytest.mark.slow
def test_the_training_step_takes_the_kernels_on_each_chips_rows(libtpu):
    text = compiled_text(_COMPILE, libtpu)
    calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    # Forward, and in the backward pass forward again and backward.
    assert sum("linear_attention_backward" in call.split("=")[0] for call in calls) == 1
    assert len(calls) == 3
    assert all("bf16[2,1024,256]" in call for call in calls)  # two of the eight rows, both heads
