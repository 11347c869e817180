"""The number of processes that a launcher starts must be the Trainer's; the variables are those of each launcher."""

import pytest
from pytorch_lightning.plugins.environments import LightningEnvironment

from degrain.models.core.errors import InputError
from degrain.models.training.launchers import refuse_launcher

SRUN = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MASTER_ADDR")
    for name in (*names, "SLURM_JOB_NAME", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE", "SLURM_NNODES"):
        monkeypatch.delenv(name, raising=False)


REFUSED = {  # variables, devices, nodes, what is said
    "srun, one device": (SRUN | {"SLURM_NTASKS": "4"}, 1, 1, "set --trainer.devices 4 --trainer.num_nodes 1"),
    "srun, two machines": (
        SRUN | {"SLURM_NTASKS": "4", "SLURM_NNODES": "2"},
        *(2, 1, "set --trainer.devices 2 --trainer.num_nodes 2"),
    ),
    "srun of fewer": (SRUN | {"SLURM_NTASKS": "1"}, 2, 1, r"has started 1 \(SLURM_NTASKS\), the Trainer expects 2 \("),
    "torchrun": (TORCHRUN | {"WORLD_SIZE": "4"}, 1, 1, r"torchrun has started 4 \(WORLD_SIZE\).* --trainer.devices 4"),
    "torchrun, two machines": (
        TORCHRUN | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
        *(4, 2, "set --trainer.devices 2 --trainer.num_nodes 2"),
    ),
    "torchrun in a job of SLURM": (
        SRUN | TORCHRUN | {"SLURM_NTASKS": "1", "WORLD_SIZE": "2"},
        *(1, 1, "torchrun has started 2"),
    ),
    "jsrun": ({"JSM_NAMESPACE_SIZE": "6"}, 1, 1, "jsrun has started 6 .*set --trainer.devices 6"),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "4"}, 1, 1, "without mpi4py; start them by torchrun --nproc_per_node 4"),
    "mpiexec of as many": ({"PMI_SIZE": "2"}, 2, 1, "without mpi4py; start them by torchrun --nproc_per_node 2"),
    "nobody": ({}, 1, 2, "num_nodes 2: nothing has started the processes of the other machines"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_number_of_processes_is_refused_with_the_number_to_set(monkeypatch, case):
    variables, devices, nodes, said = REFUSED[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said) as caught:
        refuse_launcher(devices, nodes)
    assert "\n" not in str(caught.value)
    refuse_launcher(devices, nodes, [LightningEnvironment()])  # the user says who starts the processes


WORKS = {
    "no launcher": ({}, 4, 1),
    "srun": (SRUN | {"SLURM_NTASKS": "4"}, 2, 2),
    "a shell of salloc": ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, 1, 1),
    "a shell of srun --pty bash": ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, 2, 1),
    "a process that Lightning has started": ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, 2, 1),
    "torchrun in a shell of salloc": (TORCHRUN | {"WORLD_SIZE": "2", "SLURM_NTASKS": "1"}, 2, 1),
    "a size without a rank": ({"WORLD_SIZE": "4"}, 1, 1),
    "mpiexec of one": ({"PMI_SIZE": "1"}, 2, 1),
    "machines by hand": ({"MASTER_ADDR": "node1", "NODE_RANK": "1"}, 1, 2),
}


@pytest.mark.parametrize("case", WORKS)
def test_what_lightning_lets_work_works(monkeypatch, case):
    variables, devices, nodes = WORKS[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refuse_launcher(devices, nodes)
