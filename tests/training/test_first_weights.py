"""Ranks whose networks were made with other seeds start with the weights of rank 0."""

import socket

import torch
import torch.multiprocessing

from video_rs.distributed.world import start_world


def rank_main(rank, port, folder):
    import os

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for _ in range(2):  # the port is free again after the first
        world = start_world(timeout=30.0)
        torch.manual_seed(rank)
        model = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3).to(memory_format=torch.channels_last_3d))
        model.register_buffer("count", torch.tensor(rank))
        world.broadcast_([*model.parameters(), *model.buffers()], "the weights")
        world.close()
    torch.save(model.state_dict(), folder / f"{rank}.pt")


def test_ranks_start_with_the_same_weights(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(rank_main, (port, tmp_path), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
