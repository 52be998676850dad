"""Processes find each other in a store with keys of earlier processes."""

import socket
import threading
import time

import pytest
import torch.distributed as dist

from video_rs.distributed import rendezvous
from video_rs.errors import MachineError


@pytest.fixture
def store(monkeypatch):
    """torchrun's store, which outlives the processes."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)


def meet(port, size, delays, timeout=20.0):
    """Return the store, or the error, of each rank that arrives after its delay in seconds."""
    found = {}

    def come(rank, delay):
        time.sleep(delay)
        try:
            found[rank] = rendezvous.meet(rank, size, "127.0.0.1", port, timeout)
        except MachineError as error:
            found[rank] = error

    threads = [threading.Thread(target=come, args=item) for item in delays.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_each_round_has_a_place_of_its_own(store):
    rounds = []
    for delays in ({0: 0, 1: 0, 2: 0}, {0: 0, 1: 0.5, 2: 0}, {0: 0.5, 1: 0, 2: 0}, {0: 0, 1: 0.3}):
        found = meet(store.port, len(delays), delays)
        found[0].set("seen", "by all")
        assert all(other.check(["seen"]) for other in found.values())
        for before in rounds:
            assert not any(one.check(["own"]) for one in found.values())
            before[0].set("own", "")
        rounds.append(found)


@pytest.mark.parametrize(("missing", "before"), [(0, True), (1, False), (2, True)])
def test_who_did_not_come_is_named(store, missing, before):
    """Also if the rank took part in an earlier round."""
    if before:
        meet(store.port, 3, {0: 0, 1: 0, 2: 0})
    found = meet(store.port, 3, {rank: 0 for rank in range(3) if rank != missing}, timeout=0.5)
    for error in found.values():
        assert isinstance(error, MachineError) and f"of 3: rank {missing} did not arrive" in str(error)


def test_a_store_of_torchrun_that_has_ended_is_not_waited_for(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(rendezvous, "TORCHRUN_SECONDS", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nothing listens
        error = meet(taken.getsockname()[1], 2, {1: 0}, timeout=600)[1]
    assert isinstance(error, MachineError) and "check that torchrun still runs there" in str(error)
