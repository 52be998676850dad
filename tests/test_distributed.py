"""Launcher variables, the number of loader workers, timeouts and shared errors of several processes."""

import os
import socket
import time

import pytest
import torch

from video_rs.distributed import launcher
from video_rs.distributed.device import loader_workers
from video_rs.distributed.world import World, check_same, start_world
from video_rs.errors import ConfigError, MachineError, PeerFailed, UserError
from video_rs.experiment.checks import check_timeouts
from video_rs.experiment.config import load_config


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu003", "gpu003"),
        ("gpu003,gpu004", "gpu003"),
        ("gpu[003-007,12],x1", "gpu003"),
        ("a1,gpu[003-007]", "a1"),
        ("rack[1-2]-node,x", "rack1-node"),
        ("n[7,9]", "n7"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert launcher.first_host(nodes) == first


@pytest.fixture
def no_launcher(monkeypatch):
    for name in [*launcher.VARIABLES, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_step_of_slurm(no_launcher):
    step = {"STEP_NUM_TASKS": 16, "PROCID": 11, "LOCALID": 3, "STEP_TASKS_PER_NODE": "8(x2)", "JOB_ID": 31007}
    for name, value in {**step, "STEP_NODELIST": "gpu[003-004]"}.items():
        no_launcher.setenv(f"SLURM_{name}", str(value))
    found = launcher.variables()
    expected = {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "gpu003"}
    assert {name: found[name] for name in expected} == expected
    assert 15000 <= int(found["MASTER_PORT"]) < 30000
    assert launcher.processes() == 16
    no_launcher.setenv("MASTER_PORT", "4711")
    assert launcher.variables()["MASTER_PORT"] == "4711"


def test_a_batch_script_of_slurm_is_one_process(no_launcher):
    no_launcher.setenv("SLURM_NTASKS", "16")
    no_launcher.setenv("SLURM_JOB_ID", "1")
    assert launcher.processes() == 1


def test_variables_that_are_not_whole(no_launcher):
    no_launcher.setenv("RANK", "0")
    no_launcher.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        launcher.processes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "abc"}, "RANK=abc: must be a whole number"),
        ({"MASTER_PORT": "29500x"}, "MASTER_PORT=29500x: must be a whole number"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999: must be from 1 to 65535"),
        ({"RANK": "2"}, "RANK=2: must be less than WORLD_SIZE=2"),
        ({"WORLD_SIZE": "0"}, "RANK=0: must be less than WORLD_SIZE=0"),
    ],
)
def test_variables_that_say_nonsense(no_launcher, changed, message):
    whole = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in {**whole, **changed}.items():
        no_launcher.setenv(name, value)
    with pytest.raises(UserError, match=message):
        launcher.processes()


@pytest.mark.parametrize(("own", "processes", "workers"), [(96, 8, 12), (12, 8, 12), (96, 1, 96), (4, 96, 1)])
def test_loader_workers_of_processes_with_all_cores_or_their_own(monkeypatch, own, processes, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(own)), raising=False)
    assert loader_workers(-1, processes) == workers
    assert loader_workers(3, processes) == 3


def test_a_hanging_file_is_waited_for_less_long_than_a_process():
    config = load_config("motion_rs.yaml", ["data.timeout=60", "train.peer_timeout=60"])
    check_timeouts(config, 1)
    with pytest.raises(ConfigError, match="data.timeout=60: must be less than train.peer_timeout=60"):
        check_timeouts(config, 2)


@pytest.mark.parametrize("name", ["data train", "code"])
def test_other_data_or_code_in_one_process_are_refused(monkeypatch, name):
    """Rank 1 has another value."""
    monkeypatch.setattr(World, "gather", lambda self, flat, what: [flat, {**flat, name: "other"}])
    with pytest.raises(UserError, match=f"{name} is 'same' for rank 0 and 'other' for rank 1: start all"):
        check_same(World(), {"data": {"train": "same", "val": "same"}, "code": "same"})


def test_other_tokens_in_one_process_are_not_said(monkeypatch):
    def everybody(world, flat, what):
        return [flat, {"config train.init_from": "https://h/b.pt?token=secret"}]

    monkeypatch.setattr(World, "gather", everybody)
    with pytest.raises(UserError, match="init_from is 'https://h/a.pt' for rank 0 and 'https://h/b.pt' for rank 1"):
        check_same(World(), {"config": {"train.init_from": "https://me:secret@h/a.pt?token=secret"}})
    with pytest.raises(UserError) as error:
        check_same(World(), {"config": {"train.init_from": "a" * 5000}})
    assert len(str(error.value)) < 300


def work(rank, port):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = start_world(timeout=60)
    world.timeout = 2.0

    with world.together("a long test", heartbeats=True):
        for _ in range(4 * rank):  # longer than the time-out
            time.sleep(1.1)
            world.heartbeat()

    failed = pytest.raises(PeerFailed if rank == 0 else UserError, match="no such file")
    with failed, world.together("a long test", heartbeats=True):
        if rank == 1:
            raise UserError("no such file")

    if rank == 0:
        lost = pytest.raises(
            MachineError, match="rank 0 of 2: lost contact with other ranks in a third test .*no heartbeat for 2 s"
        )
        before = time.monotonic()
        with lost, world.together("all tests"), world.together("a third test", heartbeats=True):
            pass
        assert time.monotonic() < before + 6  # raised at once, without informing rank 1
    else:
        time.sleep(8)


@pytest.mark.slow
def test_a_slow_process_is_waited_for_and_a_silent_one_is_not():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port,), nprocs=2)
