"""Tries meshes, policies of recomputation and micro-batches for a slice of TPUs, and ranks what fits."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from transnormer_jax.distributed import MeshConfig, make_mesh
from transnormer_jax.distributed.topology import Topology
from transnormer_jax.errors import UserError
from transnormer_jax.models import ModelConfig
from transnormer_jax.training.assembly import assemble
from transnormer_jax.training.compilation import compile_step, local_bytes
from transnormer_jax.training.config import Config
from transnormer_jax.training.placement import check_mesh
from transnormer_jax.training.setup import make_task

# From the least recomputation and the largest micro-batch: on one mesh, the first that fits is the fastest of them.
_SETTINGS = (("none", 1), ("dots", 1), ("full", 1), ("full", 2), ("full", 4), ("full", 8))
_MOST_TENSOR = 16
_MOST_CONTEXT = 16


def sweep(config: Config, topology: Topology, max_compiles: int) -> Iterator[dict[str, Any]]:
    """Compiles the training step under one setting after the other, and yields the report of each at once.

    Every mesh of fsdp x context x tensor that divides the run is tried, those with less tensor and context parallelism
    first, and on each the settings of recomputation and micro-batches in turn until one fits. What cannot fit, since
    its state alone is larger than the memory, is not compiled.

    Args:
      config: of the run; its mesh, `model.remat` and `accumulation_steps` are replaced.
      max_compiles: at most so many.

    Yields:
      Reports of `compile_step`, with "overrides": the flags of `train.py` that make the run so.

    Raises:
      UserError: the model is not a language model, or no mesh divides the run.
    """
    if not isinstance(config.model, ModelConfig):
        raise UserError(f"--sweep is for a language model, not for {config.architecture!r}: leave it out.")
    candidates = _meshes(config, topology)
    if not candidates:
        raise UserError(
            f"no mesh of {len(topology.devices)} devices divides config.batch_size = {config.batch_size} and "
            f"config.sequence_length = {config.sequence_length}: make one of them larger."
        )
    compiles = 0
    for mesh in candidates:
        for remat, accumulation_steps in _SETTINGS:
            changed = _changed(config, mesh, remat, accumulation_steps)
            if changed is None or not _may_fit(changed, topology):
                continue
            if compiles == max_compiles:
                return
            compiles += 1
            report = compile_step(changed, topology)
            yield report | {"overrides": _overrides(config, changed)}
            if report["fits"]:
                break


def rank(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that fit, the best first: by estimated time, or without one by recomputation and bytes sent."""

    def order(report: dict[str, Any]) -> tuple[float, ...]:
        sent = sum(one["bytes"] for one in report["collectives"])
        return report.get("estimated_seconds", float("inf")), report["recompute_factor"], sent

    return sorted((report for report in reports if report["fits"]), key=order)


def table(reports: list[dict[str, Any]]) -> str:
    """One line for each report."""
    head = ("mesh", "remat", "micro-batches", "peak GiB", "fits", "recompute", "GB sent", "ms", "MFU")
    rows = [head]
    for report in reports:
        overrides, peak = report["overrides"], report["bytes_per_chip"]["peak"]
        sizes = [f"{axis}={size}" for axis, size in report["mesh"].items() if size > 1]
        sent = sum(one["bytes"] for one in report.get("collectives", []))
        rows.append(
            (
                " ".join(sizes) or "1 device",
                str(overrides["config.model.remat"]),
                str(overrides["config.accumulation_steps"]),
                "-" if peak is None else f"{peak / 2**30:.2f}",
                "yes" if report["fits"] else "no",
                f"{report['recompute_factor']:.3f}" if "recompute_factor" in report else "-",
                f"{sent / 1e9:.2f}" if "collectives" in report else "-",
                f"{1e3 * report['estimated_seconds']:.1f}" if "estimated_seconds" in report else "-",
                f"{report['implied_mfu']:.1%}" if "implied_mfu" in report else "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)


def _meshes(config: Config, topology: Topology) -> list[MeshConfig]:
    """Meshes that divide the run, if not into micro-batches."""
    devices = len(topology.devices)
    found = []
    for tensor in (n for n in range(1, _MOST_TENSOR + 1) if devices % n == 0):
        for context in (n for n in range(1, _MOST_CONTEXT + 1) if devices % (tensor * n) == 0):
            mesh = MeshConfig(data=1, fsdp=devices // (tensor * context), context=context, tensor=tensor)
            changed = _changed(config, mesh, "full", 1)
            if changed is not None and _divides(changed, topology):
                found.append(mesh)
    return sorted(found, key=lambda mesh: (mesh.tensor * mesh.context, mesh.tensor))


def _divides(config: Config, topology: Topology) -> bool:
    try:
        check_mesh(config, make_mesh(config.mesh, topology.devices))
    except UserError:
        return False
    return True


def _changed(config: Config, mesh: MeshConfig, remat: str, accumulation_steps: int) -> Config | None:
    """The run with another setting, or None where its batch does not divide."""
    if config.batch_size % (accumulation_steps * mesh.fsdp):
        return None
    rows = config.evaluation.batch_size
    model: Any = config.model
    evaluation = dataclasses.replace(config.evaluation, batch_size=-(-rows // mesh.fsdp) * mesh.fsdp)
    return dataclasses.replace(
        config,
        mesh=mesh,
        model=dataclasses.replace(model, remat=remat),
        accumulation_steps=accumulation_steps,
        evaluation=evaluation,
    )


def _may_fit(config: Config, topology: Topology) -> bool:
    assembly = assemble(config, make_task(config), make_mesh(config.mesh, topology.devices))
    return local_bytes(assembly.state) <= topology.chip.hbm_bytes


def _overrides(config: Config, changed: Config) -> dict[str, Any]:
    overrides: dict[str, Any] = {f"config.mesh.{axis}": size for axis, size in dataclasses.asdict(changed.mesh).items()}
    overrides["config.model.remat"] = changed.model.remat
    overrides["config.accumulation_steps"] = changed.accumulation_steps
    if changed.evaluation.batch_size != config.evaluation.batch_size:
        overrides["config.evaluation.batch_size"] = changed.evaluation.batch_size
    return overrides
