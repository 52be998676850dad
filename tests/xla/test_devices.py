"""Several devices take the same steps as one."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from tests.integration.conftest import REPOSITORY
from tests.xla import trainers

pytestmark = pytest.mark.xla


@pytest.fixture(scope="module")
def two_devices(xla_on_the_cpu, tmp_path_factory):
    """The state that each of two devices saved. NPROC exceeds the cores: some threads wait for the other device."""
    folder = tmp_path_factory.mktemp("devices")
    environment = {
        **os.environ,
        "CPU_NUM_DEVICES": "2",
        "NPROC": "8",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-m", "tests.xla.devices", str(folder)]
    for _ in range(3):  # XLA ends a process whose devices come ten seconds apart, as they may on a busy machine
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=REPOSITORY)
        if done.returncode == 0 or "rendezvous" not in done.stderr:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    return lambda rank, sync_bn: torch.load(folder / f"{rank}-{sync_bn}.pt")


def one_process(micro_batch, steps):
    """The same steps on the CPU, with the statistics of larger micro-batches."""
    schedule = dataclasses.replace(trainers.PLAN, micro_batch=micro_batch)
    trainer = trainers.trainer("cpu", schedule, trainers.small_network(), precision="float64", sync_bn=True)
    for step in range(steps):
        trainer.train_step(trainers.micro_batches(schedule, step))
    return {"weights": trainers.on_host(trainer.model.state_dict()), "sums": trainer.metrics.sums}


def test_two_devices_equal_one(two_devices):
    """Each has a micro-batch of four; batch norm is over both."""
    expected = one_process(8, steps=3)
    for rank in (0, 1):
        found = two_devices(rank, True)
        torch.testing.assert_close(found["sums"], expected["sums"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=1e-7, atol=1e-9)


def test_two_devices_with_statistics_of_their_own(two_devices):
    """The gradients are those of one process with two micro-batches; buffers are the mean of both devices'."""
    expected = one_process(4, steps=2)
    first, second = (two_devices(rank, False) for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first["sums"], expected["sums"], rtol=1e-9, atol=1e-9)
    synced = two_devices(0, True)["weights"]
    assert not torch.equal(first["weights"]["head.weight"], synced["head.weight"])
    names = [name for name in first["weights"] if "running" not in name and "tracked" not in name]
    for name in names:
        torch.testing.assert_close(first["weights"][name], expected["weights"][name], rtol=1e-9, atol=1e-9)
