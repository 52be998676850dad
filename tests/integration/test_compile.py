"""``train.compile`` and ``train.activation_checkpointing`` in the command itself."""

import shutil

import pytest
import torch

from tests.integration.conftest import process
from tests.integration.test_bad_input import assert_one_line
from tests.integration.test_processes import finish, saved, start
from tests.integration.test_resume import assert_same, run
from video_rs import checkpoint


@pytest.mark.exhaustive
def test_a_compiler_that_is_missing(tiny_config, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    done = process("train_net.py", "--cfg", tiny_config(train__compile=True))  # torch reads CXX once
    assert_one_line(done, 3, "torch.compile failed", "train.compile=false")


@pytest.mark.exhaustive
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler: apt install g++")
def test_two_processes_compile_alike(tiny_config, tmp_path):
    """Around DistributedDataParallel, with micro-batches that send no gradients, and a stage computed again."""
    sizes = {"train__max_steps": 2, "train__micro_batch": 2, "train__activation_checkpointing": [3]}
    for compile in (False, True):
        finish(start(tiny_config(**sizes, train__compile=compile, out=str(tmp_path / str(compile))), 2))
    eager, compiled = saved(tmp_path / "False"), saved(tmp_path / "True")
    assert list(eager["model"]) == list(compiled["model"])
    for name, value in eager["model"].items():
        torch.testing.assert_close(compiled["model"][name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_activation_checkpointing_is_free(tiny_config, tmp_path):
    for name, stages in (("none", []), ("all", [1, 2, 3, 4])):
        path = tiny_config(train__activation_checkpointing=stages, train__epochs=1, out=str(tmp_path / name))
        assert run(path) == 0
    assert_same(*(checkpoint.load(tmp_path / name / "last.pt") for name in ("none", "all")))


def test_bad_values(tiny_config, run_tool):
    done = run_tool("train_net.py", "--cfg", tiny_config(train__activation_checkpointing=[0]))
    assert_one_line(done, 2, "train.activation_checkpointing must be between 1 and 4")
    external = tiny_config(train__activation_checkpointing=[1], model__name="pytorchvideo/slow_r50", model__width=1.0)
    done = run_tool("train_net.py", "--cfg", external, "model.drop_path=null")
    assert_one_line(
        done, 2, "pytorchvideo/slow_r50 has no such setting: train.activation_checkpointing=[1]; set", "=[]"
    )


@pytest.mark.slow
def test_two_processes_compute_again_what_they_share(tiny_config, tmp_path):
    """Batch norm over all processes sends its sums once more, in the backward pass, in the same order everywhere."""
    for name, stages in (("none", []), ("all", [1, 2, 3, 4])):
        path = tiny_config(
            train__activation_checkpointing=stages, train__sync_bn=True, train__epochs=1, out=str(tmp_path / name)
        )
        finish(start(path, 2))
    assert_same(saved(tmp_path / "none"), saved(tmp_path / "all"))
