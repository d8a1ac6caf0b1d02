"""What launchers say: variables as real launchers set them, and who a process is by them."""

import warnings

import pytest

from transnormer_jax.distributed import cluster
from transnormer_jax.distributed.cluster import Membership, membership, own_gpus
from transnormer_jax.errors import UserError

ALL = "0,1,2,3,4,5,6,7"


def slurm(tasks: str = "1(x4)", task: int = 1, node: int = 1, local: int = 0, gpus: str | None = ALL) -> dict[str, str]:
    """The variables of a task of `srun`, as Slurm 22.05 sets them."""
    count = sum(cluster.tasks_per_node(tasks))
    variables = {
        "SLURM_JOB_ID": "5000",
        "SLURM_STEP_NODELIST": "host[0-3]",
        "SLURM_NTASKS": str(count),
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_PROCID": str(task),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        "SLURM_GPUS_ON_NODE": "8",
    }
    return variables | ({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus})


def open_mpi(rank: int = 1, size: int = 4, **variables: str) -> dict[str, str]:
    return {
        "OMPI_COMM_WORLD_SIZE": str(size),
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank % 2),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        **variables,
    }


def test_one_task_per_node_takes_all_of_its_gpus():
    assert membership(Membership(), slurm()) == Membership(f"host0:{61440 + 5000 % 4096}", 4, 1, tuple(range(8)))
    assert membership(Membership(), slurm(gpus=None)).local_device_ids == tuple(range(8))


def test_tasks_of_a_node_take_equal_shares():
    shares = [membership(Membership(), slurm("2(x3),4", 6 + i, 3, i)).local_device_ids for i in range(4)]
    assert shares == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert membership(Membership(), slurm("8(x4)", 9, 1, 1)).local_device_ids == (1,)


@pytest.mark.parametrize(("tasks", "gpus", "ids"), [("8(x4)", "3", (0,)), ("4(x4)", "2,3", (0, 1))])
def test_a_task_with_gpus_of_its_own_takes_them(tasks, gpus, ids):
    """--gpus-per-task; JAX counts among the visible ones."""
    assert membership(Membership(), slurm(tasks, gpus=gpus)).local_device_ids == ids


def test_more_tasks_than_gpus_are_refused():
    with pytest.raises(UserError, match=r"16 tasks on this machine cannot share 8 GPUs equally: .* or 8 tasks"):
        membership(Membership(), slurm("16(x4)"))
    with pytest.raises(UserError, match=r"3 tasks on this machine cannot share 8 GPUs equally: .* or 2 tasks"):
        membership(Membership(), slurm("3(x4)"))


def test_on_cpus_gpus_do_not_matter():
    assert membership(Membership(), slurm("16(x4)") | {"JAX_PLATFORMS": "cpu"}).local_device_ids is None
    assert own_gpus(4, 0, {"CUDA_VISIBLE_DEVICES": ""}) is None
    assert own_gpus(2, 1, {"CUDA_VISIBLE_DEVICES": "0", "JAX_LOCAL_DEVICE_IDS": "4,5"}) == (4, 5)


@pytest.mark.parametrize(
    "alone",
    [
        slurm("1"),  # srun --ntasks=1 --gpus=8
        {"SLURM_JOB_ID": "6", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # the shell of sbatch
        slurm("1") | {"SLURM_NTASKS": "4"},  # a shell of salloc that is a step
        open_mpi(0, 1),
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"},
        {},
    ],
)
def test_who_stands_alone_joins_nobody(alone, monkeypatch):
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert membership(Membership(), alone) == Membership()


def test_open_mpi_4_names_its_launcher():
    uri = "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"
    got = membership(Membership(), open_mpi(3, OMPI_MCA_orte_hnp_uri=uri, CUDA_VISIBLE_DEVICES=ALL))
    assert got == Membership(f"10.96.0.1:{61440 + 1531576320 // 4096 % 4096}", 4, 3, (4, 5, 6, 7))
    uri = "1314521088.0;tcp6://[fe80::b9b:ac5d,2620:10d]:43370"
    assert membership(Membership(), open_mpi(OMPI_MCA_orte_hnp_uri=uri)).coordinator.startswith("fe80::b9b:ac5d:")


def test_open_mpi_5_fills_in_rank_and_size():
    assert membership(Membership("host0:1"), open_mpi()) == Membership("host0:1", 4, 1)
    assert membership(Membership(), open_mpi()).coordinator is None  # which `joined` asks for


def test_an_indexed_job_tells_the_process_id():
    pod = {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "JOB_COMPLETION_INDEX": "3",
        "JAX_COORDINATOR_ADDRESS": "job-0.job:8476",
        "JAX_NUM_PROCESSES": "4",
    }
    assert membership(Membership(), pod) == Membership("job-0.job:8476", 4, 3)


def test_flags_come_first():
    got = membership(Membership("other:1", 2, 0), slurm())
    assert got[:3] == ("other:1", 2, 0)


def test_a_variable_that_is_no_number_is_refused():
    with pytest.raises(UserError, match=r"\$SLURM_STEP_NUM_TASKS is 'four'"):
        membership(Membership(), slurm() | {"SLURM_STEP_NUM_TASKS": "four"})
