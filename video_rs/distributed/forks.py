"""Processes that were forked after torch was used, such as the workers of ``gunicorn --preload``."""

import os

import torch

from video_rs.errors import UserError
from video_rs.terminal import warn_once

_forks: list[bool] = []  # one per fork from the import to this process: True if the fork lost threads


def _after_fork() -> None:
    _forks.append(torch.get_num_threads() > 1)
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and the child would wait for them forever


os.register_at_fork(after_in_child=_after_fork)


def was_forked() -> bool:
    """Return True in a process that was forked after the import of this module."""
    return bool(_forks)


def check_fork(device: torch.device) -> None:
    """Check that a process that was forked after the import of this module can use a device.

    On the CPU, print a warning once, because such a process has one thread.

    Raises:
        UserError: the parent process has used the device.
    """
    hint = "load the network after the fork (gunicorn without --preload), or start processes with spawn"
    in_use = torch.cuda._is_in_bad_fork() if device.type == "cuda" else device.type != "cpu"
    if _forks and in_use:
        raise UserError(f"device {device}: a parent process used it before the fork; {hint}")
    if device.type == "cpu" and any(_forks):
        warn_once(f"a forked process computes with one thread; for more, {hint}")
