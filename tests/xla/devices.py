"""Training steps on each of several devices: ``python -m tests.xla.devices FOLDER``, with CPU_NUM_DEVICES devices.

XLA's CPU device cannot reduce over processes, only over the devices of one process, with a thread for each.
"""

import dataclasses
import sys
import threading
import time
from pathlib import Path

import torch
import torch_xla
from torch_xla.core import xla_model
from torch_xla.debug import metrics

from tests.xla import trainers
from video_rs.distributed import device
from video_rs.distributed.world import World

_own, _guard, _barriers = threading.local(), threading.Lock(), []


def take_turns(rank, size):
    """The first device compiles each graph and other devices find it: graphs compiled twice do not reduce together.

    They do not wait until the first has returned: what is small is run before that, and waits for theirs. Nor may it
    wait with Python's lock in its hands, as it does where it lets go of what a graph still uses.
    """
    with _guard:
        _own.rank = rank
        if _barriers:
            return
        _barriers.append(threading.Barrier(size))
        original, returned = device._sync_xla, threading.Event()
        set_token = torch_xla._XLAC._set_all_reduce_token

    def set_token_later(name, token):
        xla_model.wait_device_ops()
        set_token(name, token)

    def sync(wait=False):
        seen = looked_up()
        returned.clear()
        _barriers[0].wait()
        while _own.rank and looked_up() == seen and not returned.is_set():
            time.sleep(0.01)
        time.sleep(0.3 if _own.rank else 0)  # until what was compiled can be found
        original(wait)
        returned.set()
        xla_model.wait_device_ops()  # or the next compilation would keep a device from coming in time
        _barriers[0].wait()

    device._sync_xla, torch_xla._XLAC._set_all_reduce_token = sync, set_token_later


def looked_up():
    """Return the number of graphs that were compiled or found in the cache."""
    compiled = metrics.metric_data("CompileTime")
    return (compiled[0] if compiled else 0) + (metrics.counter_value("CachedCompile") or 0)


def work(rank, folder):
    torch.set_num_threads(1)
    torch.autograd.set_multithreading_enabled(False)
    world = World(rank=rank, size=device.reducing_processes(torch.device("xla")))
    take_turns(rank, world.size)
    schedule = dataclasses.replace(trainers.PLAN, world_size=world.size)
    for sync_bn in (True, False):
        options = {"precision": "float64", "world": world, "sync_bn": sync_bn}
        with _guard:  # threads share torch's random generator
            model = trainers.small_network()
        trainer = trainers.trainer("xla", schedule, model, **options)
        for step in range(3 if sync_bn else 2):
            trainer.train_step(trainers.micro_batches(schedule, step, rank))
        state = {"weights": trainers.on_host(trainer.model.state_dict()), "sums": trainer.metrics.sums.cpu()}
        torch.save(state, Path(folder) / f"{rank}-{sync_bn}.pt")


if __name__ == "__main__":
    torch_xla.launch(work, args=(sys.argv[1],))
