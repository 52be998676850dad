"""Detect how this process was started: by a launcher (torchrun or a SLURM step), or by multiprocessing."""

import multiprocessing
import os
import re
import sys
from collections.abc import Mapping

from video_rs.errors import UserError
from video_rs.terminal import warn_once

# Workers are forked on Linux, so they start at once and share the records, the index and all imports. Python 3.14 no
# longer forks by default, because a child deadlocks if another thread held a lock at the time of the fork. That is safe
# here: workers decode and do not log, and a worker that hangs is killed. All objects that are passed to workers can be
# pickled, for systems without fork.
START_METHOD = "fork" if sys.platform.startswith("linux") else "spawn"
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def variables() -> Mapping[str, str]:
    """Return torchrun's environment variables, or those of a SLURM step under the same names; empty without either.

    Raises:
        UserError: a variable is missing or invalid.
    """
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if "RANK" in found or "WORLD_SIZE" in found:
        missing = [name for name in VARIABLES if name not in found]
        if missing and found.get("WORLD_SIZE") != "1":
            raise UserError(f"environment variables {', '.join(missing)}: missing; start with torchrun, or set them")
        _check(os.environ)
        return os.environ
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) == 1:  # only set by srun; a batch script is a single process
        return {}
    job = int(os.environ["SLURM_JOB_ID"])
    return {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0],
        "MASTER_ADDR": os.environ.get("MASTER_ADDR") or first_host(os.environ["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(15000 + job % 15000),
    }


def processes() -> int:
    """Return the number of processes that the launcher started. Raise UserError for invalid variables."""
    return int(variables().get("WORLD_SIZE", 1))


def is_torchrun() -> bool:
    """Return True if torchrun hosts the store, which then exists as long as torchrun."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def can_start_processes() -> bool:
    """Return False in a daemonic process of multiprocessing, and print a warning the first time."""
    if not multiprocessing.current_process().daemon:
        return True
    warn_once("a daemonic process cannot start others; files are read in this process")
    return False


def first_host(nodes: str) -> str:
    """Return the first host in SLURM's node list: ``gpu[003-007,12],x1`` -> ``gpu003``."""
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodes).split(",")[0]


def _check(found: Mapping[str, str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        if not found.get(name, "1").isdecimal():
            raise UserError(f"{name}={found[name]}: must be a whole number; start with torchrun, or correct it")
    rank, size, port = int(found.get("RANK", 0)), int(found["WORLD_SIZE"]), int(found.get("MASTER_PORT", 1))
    if rank >= size:
        raise UserError(f"RANK={rank}: must be less than WORLD_SIZE={size}; start with torchrun, or correct it")
    if not 0 < port < 2**16:
        raise UserError(f"MASTER_PORT={port}: must be from 1 to 65535")
