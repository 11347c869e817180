"""The number of processes: what a launcher has started against what the Trainer expects."""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from pytorch_lightning.plugins.environments import ClusterEnvironment

from degrain.models.core.errors import InputError

MPI = {"OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec", "MV2_COMM_WORLD_SIZE": "mpirun"}
"""Variables with the number of processes -> launcher; Lightning knows these launchers through mpi4py alone."""


def launched() -> tuple[str, str, int] | None:
    """Return (launcher, variable, number of processes) as the environment has them, or None without a launcher.

    In an interactive job of SLURM, a shell named `bash` or `interactive`, nothing was started
    by srun, and Lightning starts its processes itself.
    """
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    variables = {"WORLD_SIZE": "torchrun"} if {"LOCAL_RANK", "RANK"} & os.environ.keys() else {}
    variables |= {} if interactive else {"SLURM_NTASKS": "srun"}
    variables |= {"JSM_NAMESPACE_SIZE": "jsrun"} | MPI
    for variable, launcher in variables.items():  # in Lightning's order
        if os.environ.get(variable, "").isdigit():
            return launcher, variable, int(os.environ[variable])
    return None


def refuse_launcher(devices: int, nodes: int, plugins: Iterable[Any] = ()) -> None:
    """Refuse another number of processes than a launcher has started: each would train the run, or wait for ever.

    Args:
        devices: processes of each machine, as the Trainer counts them.
        nodes: machines.
        plugins: the Trainer's; one that describes the cluster answers for it.

    Raises:
        InputError: the numbers differ, or nobody starts the processes of the other machines.
    """
    if any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        return
    here = launched()
    if here is None:
        if nodes > 1 and "MASTER_ADDR" not in os.environ:
            raise InputError(
                f"trainer.num_nodes {nodes}: nothing has started the processes of the other machines; start all of "
                f"them by torchrun or srun (see docs/usage.md), or set --trainer.num_nodes 1"
            )
        return
    launcher, variable, count = here
    by_mpi = variable in MPI
    if by_mpi and count == 1:  # it may start the others itself
        return
    expected = f"{devices * nodes} (trainer.devices {devices} x trainer.num_nodes {nodes})"
    started = f"processes: {launcher} has started {count} ({variable})"
    if by_mpi and find_spec("mpi4py") is None:
        raise InputError(
            f"{started}, which Lightning does not see without mpi4py; start them by torchrun --nproc_per_node {count} "
            f"and set --trainer.devices {count}"
        )
    if count != devices * nodes:
        raise InputError(f"{started}, the Trainer expects {expected}; {way(launcher, count)}")


def way(launcher: str, count: int) -> str:
    """Return the options that fit a launcher's number of processes."""
    nodes = int(os.environ.get("SLURM_NNODES", 1)) if launcher == "srun" else 1
    if launcher == "torchrun":
        nodes = count // int(os.environ.get("LOCAL_WORLD_SIZE", count))
    fits = (
        f"set --trainer.devices {count // nodes} --trainer.num_nodes {nodes}, or start as many as the Trainer expects"
    )
    if launcher == "srun":
        fits += " by #SBATCH --ntasks-per-node; unset SLURM_NTASKS if srun did not start this process"
    return fits
