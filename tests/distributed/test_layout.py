"""Every array is where the rules say, and nothing is copied in silence."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from transnormer_jax.distributed import (
    RULES,
    MeshConfig,
    ShardingRules,
    make_mesh,
    parameter_shardings,
    placement_table,
    placements,
)
from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormer, TransNormerConfig, TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.models.parameter_axes import parameter_axes
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.config import OptimizerConfig
from transnormer_jax.training.optimizer import make_optimizer
from transnormer_jax.training.placement import place_params, place_state

MODEL = TransNormerLLMConfig(
    vocab_size=256, num_layers=3, model_dim=256, num_heads=4, glu_dim=768, tie_embeddings=False, use_bias=True
)
TASK = CausalLM(TransNormerLLM(MODEL))
EXPECTED = {
    "embedding": P("tensor", ("fsdp", "context")),
    "head": P("tensor", ("fsdp", "context")),
    "attention/q/kernel": P(None, ("fsdp", "context"), "tensor"),
    "attention/k/kernel": P(None, ("fsdp", "context"), "tensor"),
    "attention/v/kernel": P(None, ("fsdp", "context"), "tensor"),
    "attention/u/kernel": P(None, ("fsdp", "context"), "tensor"),
    "attention/out/kernel": P(None, "tensor", ("fsdp", "context")),
    "glu/gate/kernel": P(None, ("fsdp", "context"), "tensor"),
    "glu/value/kernel": P(None, ("fsdp", "context"), "tensor"),
    "glu/out/kernel": P(None, "tensor", ("fsdp", "context")),
    # What no rule gives to fsdp and context lies along the largest dimension that they divide.
    "attention/q/bias": P(None, ("tensor", "fsdp", "context")),
    "attention/k/bias": P(None, ("tensor", "fsdp", "context")),
    "attention/v/bias": P(None, ("tensor", "fsdp", "context")),
    "attention/u/bias": P(None, ("tensor", "fsdp", "context")),
    "attention/out/bias": P(None, ("fsdp", "context")),
    "glu/gate/bias": P(None, ("tensor", "fsdp", "context")),
    "glu/value/bias": P(None, ("tensor", "fsdp", "context")),
    "glu/out/bias": P(None, ("fsdp", "context")),
    "attention/theta": P(None, "tensor", ("fsdp", "context")),
}


def mesh_of_all_axes():
    return make_mesh(MeshConfig(data=1, fsdp=2, context=2, tensor=2))


def test_every_parameter_lies_as_it_should():
    params = place_params(jax.eval_shape(TASK.init, jax.random.key(0)), mesh_of_all_axes())
    seen = set()
    for place in placements(params):
        name = place.name.split("/", 1)[1] if place.name.startswith("layers") else place.name
        assert place.spec == EXPECTED[name], place
        seen.add(name)
    assert seen == set(EXPECTED)


def test_the_table_counts_the_bytes_of_a_device():
    params = place_params(jax.eval_shape(TASK.init, jax.random.key(0)), mesh_of_all_axes())
    whole = sum(x.size * 4 for x in jax.tree.leaves(params))
    # All but the small biases of D numbers are divided by 8.
    assert sum(place.bytes_per_device for place in placements(params)) == pytest.approx(whole / 8, rel=0.01)
    table = placement_table(params).splitlines()
    assert len(table) == len(jax.tree.leaves(params))
    line = next(line for line in table if "layers_1/attention/q/kernel" in line)
    assert line.split() == [
        *("layers_1/attention/q/kernel", "float32[2,", "256,", "256]"),
        *("-", "x", "fsdp+context", "x", "tensor", "65,536", "B"),
    ]


@pytest.mark.parametrize("name", ["adamw", "radam", "muon", "adafactor"])
def test_no_moment_is_copied(name):
    state = place_state(TASK, make_optimizer(OptimizerConfig(name=name), lambda step: 0.1), mesh_of_all_axes())
    of_parameters = {(x.shape, x.sharding.spec) for x in jax.tree.leaves(state.params)}
    large = [x for x in jax.tree.leaves(state.opt_state) if x.size > 3]
    assert large
    for x in large:
        assert x.sharding.shard_shape(x.shape) != x.shape, x
        if name != "adafactor":  # whose moments have one dimension less
            assert (x.shape, x.sharding.spec) in of_parameters


def test_a_dimension_that_does_not_divide_leaves_the_axis_to_another():
    mesh = mesh_of_all_axes()
    shapes = {"embedding": jax.ShapeDtypeStruct((259, 64), np.float32), "odd": jax.ShapeDtypeStruct((3, 5), np.float32)}
    shardings = parameter_shardings(shapes, mesh, parameter_axes)
    assert shardings["embedding"].spec == P(None, ("fsdp", "context"))
    assert shardings["odd"].spec == P(None, None)


def test_names_are_checked():
    with pytest.raises(UserError, match="unknown dimension 'head': did you mean 'heads'"):
        RULES.spec(("batch", "head"), (8, 8), {"data": 2})
    with pytest.raises(UserError, match="'heads' and 'mlp' of one array both divide over mesh axis 'tensor'"):
        RULES.spec(("heads", "mlp"), (8, 8), {"tensor": 2})
    with pytest.raises(UserError, match="unknown mesh axis 'model'"):
        ShardingRules(heads=("model",))
    with pytest.raises(UserError, match=r"2 names .* name every dimension"):
        RULES.spec(("heads", "mlp"), (8,), {"tensor": 2})


class Device:
    """One of eight on two slices or nodes."""

    def __init__(self, number: int, platform: str = "tpu"):
        self.id, self.slice_index, self.process_index = number, number // 4, number // 4
        self.platform, self.device_kind, self.coords, self.core_on_chip = platform, "cpu", (number % 4, 0, 0), 0

    def __repr__(self):
        return f"device {self.id}"


def test_slices_lie_along_data_first():
    devices = [Device(number) for number in range(8)]
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1), devices)
    assert mesh.shape["fsdp"] == 4
    for copy in range(2):
        assert {device.slice_index for device in mesh.devices[copy].flat} == {copy}
    with pytest.raises(UserError, match=r"does not fit 2 slices: make config.mesh.data a multiple of 2"):
        make_mesh(MeshConfig(data=1, tensor=8), devices)


@pytest.mark.parametrize(
    ("mesh", "axis"),
    [
        (MeshConfig(data=2, context=4), "data"),
        (MeshConfig(data=1, fsdp=2, context=4), "fsdp"),
        (MeshConfig(data=1, context=8), "context"),
        (MeshConfig(data=1, context=2, tensor=4), "context"),
        (MeshConfig(data=1, tensor=8), "tensor"),
    ],
)
def test_nodes_lie_along_the_outermost_axis_that_they_divide(mesh, axis):
    found = make_mesh(mesh, [Device(number, "gpu") for number in range(8)])
    along = np.moveaxis(found.devices, found.axis_names.index(axis), 0)
    halves = along.reshape(2, 4)
    assert [{device.slice_index for device in half} for half in halves] == [{0}, {1}]


def test_nodes_that_differ_are_refused():
    with pytest.raises(UserError, match="the nodes have 4, 3 devices: start the run on nodes that are alike"):
        make_mesh(MeshConfig(), [Device(number, "gpu") for number in range(7)])


def test_the_head_of_a_transnormer_is_split_by_the_vocabulary():
    config = TransNormerConfig.preset("tiny", vocab_size=256, tie_embeddings=False, position="learned")
    shapes = jax.eval_shape(TransNormer(config).init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    shardings = parameter_shardings(shapes, mesh_of_all_axes(), parameter_axes)
    assert shardings["head"].spec == P("tensor", ("fsdp", "context"))
    assert shardings["head_bias"].spec[0][0] == "tensor"
    assert shardings["positions"].spec[-1] == ("fsdp", "context")
