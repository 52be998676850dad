"""Devices by name and index. For several GPUs, functions of torch.cuda are replaced."""

import pytest
import torch

import video_rs
from tests.integration.test_bad_input import assert_one_line
from video_rs.distributed.device import claim_device, select_device
from video_rs.distributed.memory import available_bytes
from video_rs.errors import UserError
from video_rs.inference.predict import Classifier
from video_rs.models.registry import create_model
from video_rs.training.options import Options

UNKNOWN = [
    "gpu",
    "CUDA",
    "cuda1",
    "cuda:",
    "cuda:-1",
    "cuda:1.5",
    "cuda:0,1",
    "cuda:1000",
    "cpu:",
    "meta",
    "auto:0",
    " ",
]
UNKNOWN += ["0", "x" * 5000, "cuda:1\n", "", None, 3]
WRONG = [*((name, "unknown; use auto, cpu, cuda, cuda:1 (the second GPU) or xla") for name in UNKNOWN)]
WRONG += [("mps", "not supported; use device cpu"), ("mps:0", "not supported"), ("cpu:1", "only CUDA devices have an")]
WRONG += [("xla:1", "only CUDA devices have an index; use xla")]
NAMES = [repr(name)[:12] for name, _ in WRONG]


@pytest.fixture
def two_gpus(monkeypatch):
    """Return the indices that are selected."""
    selected = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    return selected


@pytest.mark.parametrize(("name", "words"), WRONG, ids=NAMES)
def test_unknown_devices_are_one_line(name, words):
    with pytest.raises(UserError) as error:
        select_device(name)
    assert words in str(error.value) and len(str(error.value)) < 200 and "\n" not in str(error.value)
    with pytest.raises(UserError, match="device "):
        Options(device=name)


@pytest.mark.parametrize("name", ["gpu", "CUDA", "mps", "cpu:1", "cuda:-1", "[cuda]", "x" * 5000])
def test_every_command_refuses_an_unknown_device(tiny_config, run_tool, tmp_path, name):
    path = tiny_config()
    for command in (["train_net.py"], ["train_net.py", "--dry-run"], ["test_net.py"]):
        assert_one_line(run_tool(*command, "--cfg", path, f"train.device={name}"), 2, "device ", name[:20])
    (tmp_path / "a.mp4").touch()
    done = run_tool("predict.py", "--weights", tmp_path / "none.pt", "--device", name, tmp_path / "a.mp4")
    assert_one_line(done, 2, "device ", name[:20])
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_an_absent_gpu_is_one_line(tiny_config, run_tool, tmp_path):
    for name in ("cuda:1", "cuda:99"):
        for tool in ("train_net.py", "test_net.py"):
            done = run_tool(tool, "--cfg", tiny_config(), f"train.device={name}")
            assert_one_line(done, 2, f"device {name}: ", "use cpu or auto")
        (tmp_path / "a.mp4").touch()
        done = run_tool("predict.py", "--weights", tmp_path / "none.pt", "--device", name, tmp_path / "a.mp4")
        assert_one_line(done, 2, f"device {name}: ")
        for call in (lambda name: video_rs.load(tmp_path, device=name), lambda name: Classifier(Wrong(), name)):
            with pytest.raises(UserError, match=f"device {name}: "):
                call(name)
            with pytest.raises(UserError, match="device gpu: unknown"):
                call("gpu")


class Wrong(torch.nn.Module):
    """Must not be moved."""

    def to(self, *args):
        raise AssertionError


def test_a_gpu_by_its_index(two_gpus):
    assert [select_device(name) for name in ("cuda:1", "cuda:0", torch.device("cuda:1"))] == [
        torch.device("cuda", index) for index in (1, 0, 1)
    ]
    assert select_device("auto") == select_device("cuda") == torch.device("cuda")
    for name in ("cuda:2", "cuda:99"):
        with pytest.raises(UserError, match=f"device {name}: this process sees 2 GPUs, counted from 0"):
            select_device(name)
    claim_device(select_device("cuda:1"))
    assert two_gpus == [1]
    with pytest.raises(UserError, match="device cuda:1: each of 2 processes has its own GPU; use cuda"):
        claim_device(select_device("cuda:1"), rank=0, size=2)
    claim_device(select_device("cuda"), rank=1, size=2, local_rank=1, local_size=2)
    assert two_gpus == [1, 1]


def test_the_memory_of_a_gpu_by_its_index(two_gpus, monkeypatch):
    free = {0: 5, 1: 100}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 200))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert available_bytes(torch.device("cuda:1")) == 120


def test_the_cpu_by_its_index(tiny_config, run_tool):
    assert select_device("cpu:0") == select_device(torch.device("cpu")) == torch.device("cpu")
    done = run_tool("train_net.py", "--cfg", tiny_config(train__max_steps=1), "train.device=cpu:0", "--dry-run")
    assert done.returncode == 0 and "devices        cpu, " in done.stdout
    assert Options(device=torch.device("cpu", 0)).device == "cpu:0"
    assert Classifier(create_model("resnet3d_rs_26", width=0.125), "cpu:0").device == torch.device("cpu")
