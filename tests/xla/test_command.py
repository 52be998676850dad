"""The commands with train.device=xla: runs that move between devices, the main config, and mistakes."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.integration.conftest import REPOSITORY, process
from video_rs import checkpoint
from video_rs.data.video.decode import read_frames

pytestmark = pytest.mark.xla
EXACT = {"train__precision": "float64"}


def run(run_tool, *arguments, name="train_net.py"):
    done = run_tool(name, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def half_of(source, folder):
    """Return a run folder with the checkpoint after step 3 of 6."""
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(source / "checkpoints" / "step-00000003.pt", folder / "checkpoints")
    return folder


def assert_close(folder, expected):
    """Compare weights, EMA and momenta of two runs."""
    a, b = (checkpoint.load(place / "last.pt") for place in (folder, expected))
    assert a["step"] == b["step"] == 6
    for part in ("model", "ema"):
        torch.testing.assert_close(a[part], b[part], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(a["optimizer"]["state"], b["optimizer"]["state"], rtol=1e-6, atol=1e-9)


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["kind"], line["step"], line["loss"]) for line in lines]


def test_a_run_moves_between_the_devices(tiny_config, tmp_path, run_tool):
    """Half on the CPU and half on XLA, and vice versa; then a test of the result on both."""
    path = tiny_config(**EXACT, data__mixup=0.2)
    whole, on_xla, back = (tmp_path / name for name in ("whole", "on_xla", "back"))
    run(run_tool, "--cfg", path, f"out={whole}")
    text = run(run_tool, "--cfg", path, f"out={on_xla}", "train.device=xla")
    assert re.search(r"devices +xla on CPU, torch_xla 2\.9", text)
    assert losses(on_xla) == losses(whole)
    assert_close(on_xla, whole)
    run(run_tool, "--cfg", path, f"out={half_of(on_xla, back)}")
    assert_close(back, whole)
    there = half_of(whole, tmp_path / "there")
    assert "resuming at step 3 of 6" in run(run_tool, "--cfg", path, f"out={there}", "train.device=xla")
    assert_close(there, whole)

    figures = []
    for device in ("cpu", "xla"):
        run(run_tool, "--cfg", path, f"out={whole}", f"train.device={device}", name="test_net.py")
        figures.append(json.loads((whole / "test" / "metrics.json").read_text()))
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-6)
    assert figures[0]["top1"] == figures[1]["top1"]


def test_the_main_config_takes_twenty_steps(tmp_path, assets, make_video, run_tool):
    """The recipe of k400_rs50.yaml with small clips and a narrow network, and loader processes."""
    for label, name in (("arm wrestling", "arm_wrestling.mp4"), ("flipping pancake", "flipping_pancake.mkv")):
        clip = read_frames(assets / "videos" / name, np.arange(120), short_side=72).numpy()
        for i, split in enumerate(("train", "train", "val")):
            frames = clip[40 * i : 40 * i + 40, :, : clip.shape[2] // 2 * 2]
            make_video(tmp_path / "data" / split / label / f"{i}.mp4", frames=frames)
    sizes = ["model.width=0.125", "data.num_frames=4", "data.train_size=64", "data.test_size=64", "data.short_side=72"]
    small = [
        *sizes,
        "data.workers=2",
        "train.batch_size=4",
        "train.max_steps=20",
        "train.log_every=5",
        "train.val_every=0",
    ]
    folder = tmp_path / "run"
    arguments = ["--cfg", "k400_rs50.yaml", f"data.root={tmp_path / 'data'}", f"out={folder}", *small]
    text = run(run_tool, *arguments, "train.device=xla")
    assert "resnet3d_rs_50" in text and "2 loader workers" in text
    found = losses(folder)
    assert [step for kind, step, _ in found if kind == "train"] == [5, 10, 15, 20]
    assert all(np.isfinite(loss) and loss > 0 for _, _, loss in found)
    assert checkpoint.load(folder / "last.pt")["step"] == 20


def test_dry_run(tiny_config, tmp_path, run_tool):
    text = run(run_tool, "--cfg", tiny_config(), "train.device=xla", "--dry-run")
    assert "one step of 1 micro-batches" in text
    assert not (tmp_path / "run").exists()


# Mistakes -----------------------------------------------------------------------------------------------------------


def test_no_tpu(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    done = process("train_net.py", "--cfg", tiny_config(), "train.device=xla")
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "PJRT_DEVICE=TPU, but no such device can be used" in line
    assert not (tmp_path / "run").exists()


def test_processes_without_devices_of_their_own(tiny_config, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = [str(REPOSITORY / "tools" / "train_net.py"), "--cfg", str(tiny_config()), "train.device=xla"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *script], capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode != 0
    assert "2 processes were started, and XLA has 1 devices for them" in done.stderr
    assert not (tmp_path / "run").exists()


def test_fp16_is_refused(tiny_config, run_tool):
    done = run_tool("train_net.py", "--cfg", tiny_config(train__precision="fp16"), "train.device=xla")
    assert done.returncode == 2 and "train.precision=fp16 needs CUDA; use float32 on xla" in done.stderr
