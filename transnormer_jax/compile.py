"""Compiles a run's training step for a slice of TPUs and reports what it needs; no TPU is required.

    python -m transnormer_jax.compile --config=configs/quickstart.py --topology=v5e:2x2 --config.mesh.fsdp=4

Needs only the TPU compiler (`pip install --no-deps --target=.venv/libtpu libtpu`). The last line of stdout is one JSON
object; all numbers are for one chip and one step:

    parameters, tokens    of the whole model, and of the whole batch
    bytes_per_chip        arguments, outputs, aliases (outputs that reuse the memory of arguments), temporaries, peak,
                          and the memory available
    fits                  whether the peak fits
    flops_per_chip        of the compiled program, with loops counted once per iteration
    model_flops_per_chip  6ND; recompute_factor is the ratio of the two
    collectives           kind, mesh axes, count, bytes sent
    estimated_seconds     from the compiler's cycle counts, with its parts in seconds; implied_mfu follows from it

--sweep tries meshes, recomputation and micro-batches, and ranks those that fit.
"""

import json
from typing import Any

from absl import flags
from ml_collections import config_flags

from transnormer_jax import command, config_flag
from transnormer_jax.distributed import make_mesh, placement_table
from transnormer_jax.distributed.topology import Topology, load_topology
from transnormer_jax.errors import UserError
from transnormer_jax.training.compilation import STEPS, compile_step
from transnormer_jax.training.config import Config
from transnormer_jax.training.placement import abstract_params, place_params
from transnormer_jax.training.setup import make_task
from transnormer_jax.training.sweep import rank, sweep, table

_CONFIG = config_flag.define_config_flag()
_TOPOLOGY = flags.DEFINE_string("topology", None, "Slice to compile for, such as v5e:4x4 or v5p:8x8x8.", required=True)
_STEP = flags.DEFINE_enum(
    "step", "train", STEPS, "What to compile; decode is one token for each of evaluation.batch_size rows."
)
_PARAMETERS = flags.DEFINE_bool("parameters", False, "Print how each parameter is divided over the mesh.")
_SWEEP = flags.DEFINE_bool("sweep", False, "Try meshes, recomputation and micro-batches of the training step.")
_MAX_COMPILES = flags.DEFINE_integer(
    "max_compiles", 24, "Maximum number of programs that --sweep compiles.", lower_bound=1
)


def main() -> None:
    """Compiles."""
    config = config_flag.read_config_flag(_CONFIG)
    topology = load_topology(_TOPOLOGY.value)
    if _PARAMETERS.value:
        params = abstract_params(make_task(config))
        print(placement_table(place_params(params, make_mesh(config.mesh, topology.devices))))
    if _SWEEP.value:
        if _STEP.value != "train":
            raise UserError("--sweep is for the training step: leave out --step.")
        report = _sweep(config, topology)
    else:
        report = compile_step(config, topology, _STEP.value)
    print(json.dumps({"config": config_flags.get_config_filename(flags.FLAGS["config"])} | report))


def _sweep(config: Config, topology: Topology) -> dict[str, Any]:
    reports = list[dict[str, Any]]()
    for report in sweep(config, topology, _MAX_COMPILES.value):
        reports.append(report)
        print(f"compiled {len(reports)} in {report['compile_seconds']:.0f} s: {report['overrides']}", flush=True)
    ranked, refused = rank(reports), [report for report in reports if not report["fits"]]
    print(f"{len(reports)} programs compiled (at most {_MAX_COMPILES.value}), {len(ranked)} of them fit")
    print(table([*ranked, *refused]))
    return {"topology": topology.name, "compiled": len(reports), "ranked": ranked, "refused": refused}


if __name__ == "__main__":
    command.run(main)
