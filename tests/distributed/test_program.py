"""What is read from a compiled program's text is what can be counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transnormer_jax.distributed.program import read_program, replica_groups

SIZES = {"data": 2, "tensor": 4}


@pytest.fixture
def mesh():
    devices = np.array(jax.devices()).reshape(tuple(SIZES.values()))
    mesh = Mesh(devices, tuple(SIZES), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def read(function, *arrays):
    return read_program(jax.jit(function).lower(*arrays).compile().as_text(), SIZES)


def array(*shape, mesh=None, spec=()):
    sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def talk(program):
    return {(one.kind, one.axes): (one.count, one.bytes) for one in program.collectives}


def test_a_matrix_product_is_a_multiplication_and_an_addition_for_each_pair():
    assert read(jnp.matmul, array(3, 8, 16), array(3, 16, 32)).flops == 2 * 3 * 8 * 16 * 32


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scanned_product_counts_at_every_turn(reverse):
    def scanned(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w, reverse=reverse)[0]

    assert read(scanned, array(8, 16), array(7, 16, 16)).flops == 7 * 2 * 8 * 16 * 16


def test_loops_in_loops_multiply():
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[0], None

    program = read(lambda x, w: jax.lax.scan(inner, x, w)[0], array(8, 16), array(5, 16, 16))
    assert program.flops == 5 * 3 * 2 * 8 * 16 * 16
    assert program.unknown_loops == 0


def test_what_is_recomputed_counts_again():
    def loss(w, x, policy):
        layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None), policy=policy, prevent_cse=False)
        return jnp.sum(jax.lax.scan(layer, x, w)[0])

    everything, nothing = jax.checkpoint_policies.everything_saveable, jax.checkpoint_policies.nothing_saveable
    saved, recomputed = (
        read(lambda w, x, policy=policy: jax.grad(loss, argnums=(0, 1))(w, x, policy), array(6, 16, 16), array(8, 16))
        for policy in (everything, nothing)
    )
    product = 6 * 2 * 8 * 16 * 16
    assert (saved.flops, recomputed.flops) == (3 * product, 4 * product)


def test_a_loop_that_ends_by_its_data_is_told():
    def halve(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) > 1, lambda x: x @ x, x)

    program = read(halve, array(8, 8))
    assert (program.flops, program.unknown_loops) == (2 * 8**3, 1)


def test_the_sum_of_a_split_product_is_an_all_reduce_of_its_axis(mesh):
    """x [16, 32] with rows over 2, times w [32, 64] with columns over 4, and back: 5 x 3 sums of [8, 32] over 4."""

    def inner(x, w):
        def step(x, _):
            return jax.lax.with_sharding_constraint(x @ w @ w.T, PartitionSpec("data", None)), None

        return jax.lax.scan(step, x, None, length=3)[0], None

    x = array(16, 32, mesh=mesh, spec=("data", None))
    w = array(5, 32, 64, mesh=mesh, spec=(None, None, "tensor"))
    program = read(lambda x, w: jax.lax.scan(inner, x, w)[0], x, w)
    assert program.flops == 15 * 2 * (2 * 8 * 32 * 16)
    assert talk(program) == {("all-reduce", ("tensor",)): (15, 15 * 2 * (8 * 32 * 4) * 3 // 4)}


def test_every_kind_of_collective_and_the_bytes_that_a_device_sends(mesh):
    """Each device holds [8, 8] float32 of x [16, 32]: 256 bytes."""

    def local(x):
        gathered = jax.lax.all_gather(x, "data", tiled=True)
        return (
            jax.lax.psum_scatter(gathered, "tensor", tiled=True),
            jax.lax.ppermute(x, "tensor", [(i, (i + 1) % 4) for i in range(4)]),
            jax.lax.all_to_all(x, "tensor", 1, 0, tiled=True),
            jax.lax.psum(x, ("data", "tensor")),
        )

    spec = PartitionSpec("data", "tensor")
    program = read(
        jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=(*[spec] * 3, PartitionSpec()), check_vma=False),
        array(16, 32),
    )
    assert talk(program) == {
        ("all-gather", ("data",)): (1, 256),
        ("reduce-scatter", ("tensor",)): (1, 512 * 3 // 4),
        ("collective-permute", ("tensor",)): (1, 256),
        ("all-to-all", ("tensor",)): (1, 256 * 3 // 4),
        ("all-reduce", ("data", "tensor")): (1, 2 * 256 * 7 // 8),
    }


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("replica_groups={}", [(0, 1, 2, 3, 4, 5, 6, 7)]),
        ("replica_groups=[2,4]<=[8]", [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("replica_groups=mesh['data'=2,'tensor'=4] {'data'}", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("replica_groups=mesh['data'=2,'tensor'=4] {'data','tensor'}", [(0, 1, 2, 3, 4, 5, 6, 7)]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [(0, 2), (1, 3), (4, 6), (5, 7)]),
        ("replica_groups=mesh['a'=8] {'a':(1)2,'a':(4)2}", [(0, 1, 4, 5), (2, 3, 6, 7)]),
        (
            "replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]<=[4,2]T(1,0)) {'a'}",
            [(0, 1), (2, 3), (4, 5), (6, 7)],
        ),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=(7,6,5,4,3,2,1,0) {'b'}", [(7, 6, 5, 4), (3, 2, 1, 0)]),
    ],
)
def test_groups_of_devices_in_every_form(attributes, groups):
    assert replica_groups(attributes, SIZES) == groups


# As libtpu writes it: products as convolutions, a loop whose turns only its condition tells, a collective that is
# spread over two fusions, a reduce-scatter as an all-reduce and a slice, a kernel, and estimated cycles.
_TPU = """HloModule jit_step, is_scheduled=true, num_partitions=8

%first (p.0: bf16[16,32]) -> (bf16[16,32], bf16[16,128]) {
  %p.0 = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[16,128]{1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=7, replica_groups=mesh['axis_0'=2,\
'axis_1'=4] {'axis_1'}, dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.1 = (bf16[16,32]{1,0}, bf16[16,128]{1,0}) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%second (p.1: bf16[16,32]) -> bf16[16,128] {
  %p.1 = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.2 = bf16[16,128]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, replica_groups=mesh['axis_0'=2,\
'axis_1'=4] {'axis_1'}, dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.2 = bf16[16,128]{1,0} custom-call(%all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter (input.1: f32[64,128]) -> f32[64,32] {
  %input.1 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,128]{1,0:T(8,128)} all-reduce(%input.1), channel_id=8, replica_groups={{0,1,2,3},{4,5,6,7}}, \
to_apply=%add
  %constant.1 = u32[] constant(0)
  ROOT %dynamic-slice.1 = f32[64,32]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %constant.1, %constant.1), \
dynamic_slice_sizes={64,32}
}

%body (b: (s32[], bf16[16,2048,1024], bf16[1024,128,1])) -> (s32[], bf16[16,2048,1024], bf16[1024,128,1]) {
  %b = (s32[]{:T(128)}, bf16[16,2048,1024]{2,1,0}, bf16[1024,128,1]{1,0,2}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%b), index=0
  %x = bf16[16,2048,1024]{2,1,0:T(8,128)(2,1)} get-tuple-element(%b), index=1
  %w = bf16[1024,128,1]{1,0,2:T(8,128)(2,1)} get-tuple-element(%b), index=2
  %convolution.1 = bf16[16,2048,128]{2,1,0:T(8,128)(2,1)S(1)} convolution(%x, %w), window={size=1}, \
dim_labels=0bf_io0->0bf, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %convolution.2 = bf16[1024,128,1]{1,0,2} convolution(%x, %convolution.1), window={size=16}, dim_labels=0fb_0io->bf0
  %rates = f32[1]{0} constant({1})
  %linear_attention.3 = (bf16[16,2048,128]{2,1,0}, f32[16,128,128]{2,1,0}) custom-call(%rates, %x), \
custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUzv"}}
  %turn = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %turn)
  ROOT %tuple.1 = (s32[], bf16[16,2048,1024], bf16[1024,128,1]) tuple(%next, %x, %w)
}

%condition (c: (s32[], bf16[16,2048,1024], bf16[1024,128,1])) -> pred[] {
  %constant.2 = s32[]{:T(128)} constant(23)
  %c = (s32[]{:T(128)}, bf16[16,2048,1024]{2,1,0}, bf16[1024,128,1]{1,0,2}) parameter(0)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.2), direction=LT
}

ENTRY %main (a: bf16[16,2048,1024], w.1: bf16[1024,128,1], s: bf16[16,32], g: f32[64,128]) -> f32[64,32] {
  %a = bf16[16,2048,1024]{2,1,0} parameter(0)
  %w.1 = bf16[1024,128,1]{1,0,2} parameter(1)
  %s = bf16[16,32]{1,0} parameter(2)
  %g = f32[64,128]{1,0} parameter(3)
  %constant.3 = s32[] constant(0)
  %copy.1 = s32[]{:T(128)} copy(%constant.3)
  %tuple.2 = (s32[], bf16[16,2048,1024], bf16[1024,128,1]) tuple(%copy.1, %a, %w.1)
  %while.1 = (s32[]{:T(128)}, bf16[16,2048,1024]{2,1,0}, bf16[1024,128,1]{1,0,2}) while(%tuple.2), \
condition=%condition, body=%body
  %fusion.1 = (bf16[16,32]{1,0}, bf16[16,128]{1,0}) fusion(%s), kind=kCustom, calls=%first
  %fusion.2 = bf16[16,128]{1,0} fusion(%s), kind=kCustom, calls=%second, backend_config={"estimated_cycles":"500"}
  ROOT %fusion.3 = f32[64,32]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_a_program_for_tpus():
    program = read_program(_TPU, SIZES)
    assert program.flops == 23 * 2 * (2 * 16 * 2048 * 1024 * 128)
    assert program.cycles == 23 * 1000 + 500
    assert program.unknown_loops == 0
    assert talk(program) == {
        ("all-gather", ("tensor",)): (1, 3 * 16 * 32 * 2),
        ("reduce-scatter", ("tensor",)): (1, 64 * 128 * 4 * 3 // 4),
    }
    [kernel] = program.kernels
    assert (kernel.name, kernel.count, kernel.flops) == ("linear_attention", 23, None)
    assert [one.shape for one in kernel.results] == [(16, 2048, 128), (16, 128, 128)]
    assert kernel.num_bytes == 4 + 2 * 16 * 2048 * 1024 + 2 * 16 * 2048 * 128 + 4 * 16 * 128 * 128


@pytest.mark.parametrize(("step", "turns"), [(2, 12), (5, 5)])
def test_a_loop_that_the_compiler_has_unrolled_turns_less_often(step, turns):
    program = read_program(_TPU.replace("constant(1)", f"constant({step})"), SIZES)
    assert program.flops == turns * 2 * (2 * 16 * 2048 * 1024 * 128)


@pytest.mark.parametrize(
    ("places", "window", "outputs", "attributes", "met"),
    [
        (4, 4, 1, "size=4", 4),  # summed over
        (4, 1, 4, "size=1", 4),  # a part of the batch
        (4, 4, 4, "size=4 stride=3 lhs_dilate=4", 4),  # a batch of products: each output meets its own matrix
        (1, 2, 2, "size=2 pad=1_1", 2),  # two products side by side: each output meets the one input and padding
        (4, 2, 2, "size=2 rhs_dilate=2", 4),
    ],
)
def test_a_window_counts_where_it_meets_numbers(places, window, outputs, attributes, met):
    text = f"""HloModule m, num_partitions=1

ENTRY %main (x: f32[{places},128,8], w: f32[{window},8,64]) -> f32[{outputs},128,64] {{
  %x = f32[{places},128,8]{{2,1,0}} parameter(0)
  %w = f32[{window},8,64]{{2,1,0}} parameter(1)
  ROOT %y = f32[{outputs},128,64]{{2,1,0}} convolution(%x, %w), window={{{attributes}}}, dim_labels=0bf_0io->0bf
}}
"""
    assert read_program(text, {"data": 1}).flops == met * 2 * 128 * 8 * 64
