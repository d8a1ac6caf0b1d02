"""Under fsdp a layer's matrices are gathered for the forward pass and again for the backward pass, and never kept."""

import jax
import jax.numpy as jnp
import pytest

from transnormer_jax.distributed import MeshConfig, batch_sharding, make_mesh
from transnormer_jax.distributed.program import read_program
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.placement import place_params

LAYERS = 3


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_every_matrix_is_gathered_twice(remat):
    sizes = {"num_layers": LAYERS, "model_dim": 128, "num_heads": 4, "glu_dim": 256, "vocab_size": 97}
    config = TransNormerLLMConfig(**sizes, lrpe_layers=(), dtype="float32", remat=remat, backend="chunked")
    task = CausalLM(TransNormerLLM(config))
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    params = place_params(jax.eval_shape(task.init, jax.random.key(0)), mesh)
    tokens = jax.ShapeDtypeStruct((8, 64), jnp.int32, sharding=batch_sharding(mesh, (8, 64)))
    batch = dict.fromkeys(("inputs", "targets", "segment_ids"), tokens)
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(lambda params, batch: task.loss_and_metrics(params, batch).loss))
        program = read_program(gradient.lower(params, batch).compile().as_text(), dict(mesh.shape))
    (gathers,) = [one for one in program.collectives if one.kind == "all-gather"]
    matrices = sum(x.size for x in jax.tree.leaves(params["layers_0"]))
    assert gathers.count == 2 * 8 * LAYERS + 1  # q, k, v, u, out, gate, value, out; and the embedding
    assert gathers.bytes == 4 * (2 * matrices + params["embedding"].size) * 7 // 8
