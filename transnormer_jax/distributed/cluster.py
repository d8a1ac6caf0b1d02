"""Detects the cluster from the environment: coordinator, process id and the GPUs of this process.

Flags and `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID` come first. What they leave out is taken from
the launcher: Open MPI, Slurm, an indexed Job of Kubernetes, or JAX's own detection of a TPU pod. JAX's detection is not
used elsewhere: under Slurm it gives every task one GPU, and inside a pod it needs the package `kubernetes`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from transnormer_jax.errors import UserError

_FIRST_PORT, _NUM_PORTS = 61440, 4096  # as JAX chooses them


class Membership(NamedTuple):
    """What a process knows of its run; None is unknown.

    Attributes:
      coordinator: "host:port" of process 0, where that process listens.
      process_id: of this one, from 0.
      local_device_ids: GPUs of this process, counted among those that it sees; None is all of them.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: tuple[int, ...] | None = None


class _Node(NamedTuple):
    """The tasks of a launcher on this machine."""

    num_tasks: int
    own: int


def membership(given: Membership, environment: Mapping[str, str] = os.environ) -> Membership:
    """Completes what flags say by what the environment says.

    Args:
      given: by flags.

    Returns:
      All Nones for a process that stands alone. A run of one process has no device ids: it takes all devices.

    Raises:
      UserError: a variable is not a number, or a task has no GPU of its own.
    """
    given = Membership(
        given.coordinator or environment.get("JAX_COORDINATOR_ADDRESS"),
        _number("JAX_NUM_PROCESSES", environment) if given.num_processes is None else given.num_processes,
        _number("JAX_PROCESS_ID", environment) if given.process_id is None else given.process_id,
    )
    detected, node = _detect(environment, known=given[:3] != (None, None, None))
    whole = detected._replace(**{key: value for key, value in given._asdict().items() if value is not None})
    if whole == (None, 1, 0, None):
        return Membership()
    if node is None:
        return whole
    return whole._replace(local_device_ids=own_gpus(node.num_tasks, node.own, environment))


def _detect(environment: Mapping[str, str], *, known: bool) -> tuple[Membership, _Node | None]:
    """What the launcher says. With `known`, flags or variables say a part: only then is a pod a hint."""
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return _open_mpi(environment)
    # A shell of sbatch or salloc is in a job, but in no step: what runs there runs alone.
    if "SLURM_STEP_NUM_TASKS" in environment and "SLURM_STEP_NODELIST" in environment:
        return _slurm(environment)
    if (tpu := _tpu_pod()) is not None:
        return tpu, None
    if known:  # an indexed Job
        return Membership(process_id=_number("JOB_COMPLETION_INDEX", environment)), None
    return Membership(), None


def _slurm(environment: Mapping[str, str]) -> tuple[Membership, _Node | None]:
    count = _required("SLURM_STEP_NUM_TASKS", environment)
    if count == 1:
        return Membership(None, 1, 0), None
    port = environment.get("JAX_COORDINATOR_PORT") or _port(_required("SLURM_JOB_ID", environment))
    coordinator = f"{first_host(environment['SLURM_STEP_NODELIST'])}:{port}"
    tasks = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    node = _number("SLURM_NODEID", environment) or 0
    here = _Node(tasks[node] if node < len(tasks) else 1, _number("SLURM_LOCALID", environment) or 0)
    return Membership(coordinator, count, _required("SLURM_PROCID", environment)), here


def _open_mpi(environment: Mapping[str, str]) -> tuple[Membership, _Node | None]:
    count = _required("OMPI_COMM_WORLD_SIZE", environment)
    if count == 1:
        return Membership(None, 1, 0), None
    # Open MPI 4 tells the address of mpirun, which JAX takes for that of process 0. Open MPI 5 tells none.
    launcher = re.match(
        r"(\d+)\.\d+;(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", environment.get("OMPI_MCA_orte_hnp_uri", "")
    )
    coordinator = None
    if launcher is not None:
        port = environment.get("JAX_COORDINATOR_PORT") or _port(int(launcher[1]) // 4096)
        coordinator = f"{launcher[2] or launcher[3]}:{port}"
    here = _Node(
        _number("OMPI_COMM_WORLD_LOCAL_SIZE", environment) or 1, _number("OMPI_COMM_WORLD_LOCAL_RANK", environment) or 0
    )
    return Membership(coordinator, count, _required("OMPI_COMM_WORLD_RANK", environment)), here


def _tpu_pod() -> Membership | None:
    """By JAX's own detection of Cloud TPU machines and of TPUs in GKE, alone or several slices."""
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster, GkeTpuCluster

    found = next((cluster for cluster in (GkeTpuCluster, GceTpuCluster) if cluster.is_env_present()), None)
    if found is None or (count := found.get_process_count()) == 1:
        return None
    port = os.environ.get("JAX_COORDINATOR_PORT")
    address = found.get_coordinator_address(timeout_secs=300, override_coordinator_port=port)
    return Membership(address, count, found.get_process_id())


def own_gpus(num_tasks: int, own: int, environment: Mapping[str, str] = os.environ) -> tuple[int, ...] | None:
    """Returns the GPUs of a task, as numbers among those that it sees; None is all, or that there are none.

    Args:
      num_tasks: of this run on this machine.
      own: number of the task among them, from 0.

    Raises:
      UserError: the tasks cannot have equal shares.
    """
    platforms = environment.get("JAX_PLATFORMS", "")
    if ids := environment.get("JAX_LOCAL_DEVICE_IDS"):
        return tuple(int(one) for one in ids.split(","))
    if platforms and not {"cuda", "gpu", "rocm"} & set(platforms.split(",")):
        return None
    on_machine = _number("SLURM_GPUS_ON_NODE", environment) or _num_nvidia_devices()
    visible = _visible_gpus(environment)
    visible = on_machine if visible is None else visible
    if visible == 0 or num_tasks == 1:
        return tuple(range(visible)) or None
    if visible * num_tasks <= on_machine:  # the launcher gave each task its own, as --gpus-per-task does
        return tuple(range(visible))
    if visible % num_tasks:
        raise UserError(
            f"{num_tasks} tasks on this machine cannot share {visible} GPUs equally: start one task per machine, or "
            f"{_largest_divisor(visible, num_tasks)} tasks."
        )
    share = visible // num_tasks
    return tuple(range(own * share, (own + 1) * share))


def _visible_gpus(environment: Mapping[str, str]) -> int | None:
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if name in environment:
            ids = [one.strip() for one in environment[name].split(",") if one.strip()]
            hidden = next((i for i, one in enumerate(ids) if one in ("-1", "NoDevFiles", "none", "void")), len(ids))
            return hidden  # CUDA ignores what follows a wrong id
    return None


def _num_nvidia_devices() -> int:
    return sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in Path("/dev").glob("nvidia*"))


def _largest_divisor(number: int, at_most: int) -> int:
    return max(one for one in range(1, at_most + 1) if number % one == 0)


def first_host(node_list: str) -> str:
    """Returns the first host of a list as Slurm writes it.

    >>> [first_host(one) for one in ("node001,b", "node[001-015],b", "rack2-[7,9-11]", "a[1-2]b[3-4]-x")]
    ['node001', 'node001', 'rack2-7', 'a1b3-x']
    """
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", node_list)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def tasks_per_node(text: str) -> list[int]:
    """Returns the number of tasks of every node, from how Slurm writes it.

    >>> tasks_per_node("2(x3),1")
    [2, 2, 2, 1]
    """
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, nodes in parts for _ in range(int(nodes or 1))]


def _port(job: int) -> int:
    return _FIRST_PORT + job % _NUM_PORTS


def _required(variable: str, environment: Mapping[str, str]) -> int:
    number = _number(variable, environment)
    if number is None:
        raise UserError(
            f"${variable} is missing beside the launcher's other variables: give --coordinator, --num_processes and "
            "--process_id."
        )
    return number


def _number(variable: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(variable)
    try:
        return int(text) if text else None
    except ValueError as error:
        raise UserError(f"${variable} is {text!r}: give a whole number.") from error
