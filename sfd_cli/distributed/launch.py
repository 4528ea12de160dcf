"""Several processes for one command: those of torchrun or SLURM where it runs under them, else some started here."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from typing import Literal

from sfd_cli.errors import StageFailure, UserError
from sfd_cli.machine import cores
from sfd_cli.messages import say

SHUTDOWN = 300
"""Seconds that processes have to write a checkpoint after they were told to stop; torchrun's own 30 are few for XL."""
OF_OTHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where MPI's launchers say how many processes they have started."""
FIRST_PORT, PORTS = 20_000, 10_000
"""Of the meeting point of a SLURM step, which is its own as jobs and steps are numbered."""


def is_member() -> bool:
    """Whether this is one of several processes already: of torchrun, or of a step that `srun` has started.

    A SLURM step's variables are put in the place of torchrun's. A line says where a job has machines that are not used.

    Raises:
        UserError: SLURM tells too little of the step, or this was started by what is not known here, as by mpirun.
    """
    if "WORLD_SIZE" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of the network are pages each
        return True
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        os.environ.update(_of_slurm(dict(os.environ)))
        return is_member()
    for name in OF_OTHERS:
        if os.environ.get(name, "1") != "1":
            problem = f"one of {os.environ[name]} processes that are not known to each other here"
            raise UserError(name, problem, "start them by torchrun or srun instead of mpirun")
    if (machines := os.environ.get("SLURM_JOB_NUM_NODES", "1")) != "1":
        say(f"one machine of the {machines} of this job works; `srun sfd ...` makes all work")
    return False


def wanted(processes: int | Literal["auto"], device: str) -> int:
    """How many processes `runtime.processes` and `runtime.device` ask for.

    `auto` is one for every GPU where the device is not one of them by its number, and one where there is none.

    Raises:
        UserError: no such device here.
    """
    if processes != "auto":
        return processes
    from sfd_cli.devices import choose_device, kind_of

    kind = kind_of(found := choose_device(device))
    return kind.count() if found.index is None and kind.backend is not None else 1


def launch(count: int, arguments: list[str]) -> int:
    """Run `sfd ARGUMENTS` in `count` processes of this machine that know of each other; by `torch.distributed.run`.

    Returns:
        The exit code: that of the process that failed first, which has said why, or 128 and the signal's number after
        a signal.

    Raises:
        StageFailure: a process was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    # Each process has its share of the cores, where nobody says otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // count, 1)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # a failed process speaks for itself
    parser, options = get_args_parser(), ["--standalone", "--nproc-per-node", str(count)]
    if "--shutdown-timeout" in parser.format_usage():  # which PyTorch did not always have
        options += ["--shutdown-timeout", str(SHUTDOWN)]
    say(f"{count} processes (runtime.processes)")
    try:
        run(parser.parse_args([*options, "-m", "sfd_cli", *arguments]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            problem = f"was ended by {name}" + (", as by a system short of memory" if name == "SIGKILL" else "")
            raise StageFailure(f"process {rank} of {count}", problem, "run the same command to go on") from None
        return failure.exitcode
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


def _of_slurm(step: dict[str, str]) -> dict[str, str]:
    """torchrun's variables from those of a SLURM step."""
    try:
        count, rank, local = (int(step[f"SLURM_{name}"]) for name in ("STEP_NUM_TASKS", "PROCID", "LOCALID"))
        number = int(step["SLURM_JOB_ID"]) * 16 + int(step["SLURM_STEP_ID"]) % 16
    except (KeyError, ValueError) as error:
        problem = f"tells {step['SLURM_STEP_NUM_TASKS']} tasks and not all of the rest ({error})"
        remedy = "start it by `srun`, or by torchrun in one task a machine"
        raise UserError("SLURM", problem, remedy) from None
    found = {"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(local)}
    return found | {
        "MASTER_ADDR": step.get("MASTER_ADDR") or _first_host(step),
        "MASTER_PORT": step.get("MASTER_PORT") or str(FIRST_PORT + number % PORTS),
    }


def _first_host(step: dict[str, str]) -> str:
    if step.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return "127.0.0.1"
    if shutil.which("scontrol"):
        command = ["scontrol", "show", "hostnames", step.get("SLURM_STEP_NODELIST", "")]
        hosts = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        if hosts:
            return hosts[0]
    problem = "a step on several machines, and `scontrol` tells no host to meet at"
    raise UserError("SLURM", problem, "export MASTER_ADDR, the name of the first machine")
