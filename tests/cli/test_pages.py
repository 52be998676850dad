"""The first and the last lines of a run's log."""

import json
import re
import sys
import time

import pytest
import torch

from video_rs.distributed.world import World
from video_rs.experiment import config as configs
from video_rs.experiment.run import make_job
from video_rs.models import cost
from video_rs.models.registry import create_model
from video_rs.training import pages
from video_rs.training.incidents import Incidents, Suspect
from video_rs.training.run_status import Status
from video_rs.training.schedule import Schedule

SMALL = ["model.name=resnet3d_rs_26", "model.width=0.25", "train.device=cpu", "train.precision=float32"]
SMALL += ["train.batch_size=16", "train.micro_batch=2", "data.workers=3", "train.epochs=4", "out=runs/small"]


@pytest.fixture
def page(tmp_path):
    """Return the first lines of a run of 40 training files, with overrides; ``change`` modifies the job."""
    for folder in (tmp_path / split / label for split in ("train", "val") for label in "ab"):
        folder.mkdir(parents=True)
        for i in range(20):
            (folder / f"{i:02}.mp4").touch()

    def make(*overrides, change=lambda job: None, resumed_from=""):
        config = configs.load_config("k400_rs50", [f"data.root={tmp_path}", *SMALL, *overrides])
        job = make_job(config)
        change(job)
        return pages.start_page(job, config.out, resumed_from)

    return make


def texts(lines):
    """Return ``{heading: [text, ...]}``, and check that every text begins in the same column."""
    found, heading = {}, ""
    width = re.match(r"\S+( \S+)*  +", lines[0]).end()
    for line in lines:
        assert line[width - 2 : width] == "  " and line[width:].strip(), line
        heading = line[:width].strip() or heading
        found.setdefault(heading, []).append(line[width:])
    return found


def test_the_first_page(page):
    lines = page("train.max_steps=10", "optim.lr=0.4", "optim.warmup_epochs=2")
    said = texts(lines)
    assert len(lines) <= 16  # one is about the small micro-batch
    assert (said["precision"], said["loading"]) == (["float32"], ["3 loader workers"])
    model = create_model("resnet3d_rs_26", num_classes=2, width=0.25)
    parameters = sum(p.numel() for p in model.parameters())
    gigamacs = cost.macs(model, (3, 32, 224, 224)) / 1e9
    assert said["network"] == [f"resnet3d_rs_26, {parameters:,} parameters, 2 classes, {gigamacs:.4g} GMACs per clip"]
    assert said["train"][0].startswith("40 files, 2 classes, fingerprint ")
    assert said["clips"] == ["32 frames x stride 2, 224 px"]
    assert said["batch"] == ["16 = 8 micro-batches x 2"]
    assert said["steps"] == ["10: 4 epochs of 40 samples, validated after each epoch"]
    assert said["learning rate"] == ["up to 0.00625 = 0.4 x 16 / 1024; 2 epochs of warm-up, then cosine"]
    assert said["begins"] == ["starting at step 0 of 10"] and "weights" not in said and "phases" not in said
    assert "runs/small" in said["folder"][0] and "every 10 minutes" in said["folder"][0]


def test_a_decoder_that_is_not_installed_is_named(page, monkeypatch):
    assert "decoder" not in texts(page())
    monkeypatch.setitem(sys.modules, "decord", None)
    [line] = texts(page("data.decoder=decord"))["decoder"]
    assert line.startswith("PyAV, since decord cannot be imported: ")


def test_the_first_page_of_many_processes_that_go_on(page):
    def change(job):
        job.world = World(size=4, local_size=2)
        job.started_from = "started from a.pt: all of them"
        job.trainer.step = 5

    overrides = ["train.val_every=2", "train.checkpoint_minutes=0", "data.phases=[[2,16,224]]"]
    said = texts(page(*overrides, change=change, resumed_from="runs/small/checkpoints/step-00000005.pt"))
    assert said["devices"][0].startswith("4 processes on 2 machines, each on cpu")
    assert said["loading"] == ["3 loader workers in each process"]
    assert said["batch"] == ["16 = 4 processes x 2 micro-batches x 2"]
    assert [line.partition(": ")[2] for line in said["parameters"]] == [
        "weight decay 4e-05, learning rate x 1",
        "weight decay 0, learning rate x 1",
    ]
    assert [line.partition(" (")[0] for line in said["phases"]] == ["clips to epoch 2", "clips from there"]
    assert said["steps"][0].endswith("validated after each 2 epochs")
    assert said["weights"] == ["started from a.pt: all of them"] and "after each step" in said["folder"][0]
    assert said["begins"] == ["resuming at step 5 of 10 from runs/small/checkpoints/step-00000005.pt"]


def test_a_network_that_cannot_be_counted(page):
    model = create_model("resnet3d_rs_26", width=0.25)
    model.register_forward_pre_hook(lambda module, args: args[0].sum().item())
    assert pages.gigamacs(model) is None


def test_counting_is_quick_and_draws_no_random_numbers():
    model = create_model("resnet3d_rs_50")
    pages.gigamacs(model)  # imports
    before, start = torch.get_rng_state(), time.process_time()
    assert pages.gigamacs(model) == pytest.approx(89.87, abs=0.01)
    assert time.process_time() - start < 1
    assert torch.equal(torch.get_rng_state(), before)


PLAN = Schedule(num_samples=24, num_steps=6, batch_size=8, micro_batch=8)


def finished(folder, first_step=0):
    """Return the status of a run at its end."""
    lines = [
        {"kind": "val", "step": 3, "epoch": 1.0, "top1": 0.875, "top5": 1.0, "loss": 0.4},
        {"kind": "val", "step": 6, "epoch": 2.0, "top1": 0.75, "top5": 1.0, "loss": 0.5},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = Status(folder)
    status.begin(first_step, 6, "resume")
    return status


def test_the_last_page(tmp_path):
    status = finished(tmp_path)
    (tmp_path / "best.pt").touch()
    incidents = Incidents(24)
    incidents.note_files([(f"{i:02}.mp4", "cut short") for i in range(12)])
    incidents.note_step(2, [Suspect("poison.mp4", 0, 0), Suspect("good.mp4", 0, 0)])
    incidents.note_step(5, [Suspect("poison.mp4", 1, 0)])
    lines = pages.end_page(PLAN, status, tmp_path, incidents, "video-rs test --cfg x.yaml")
    assert lines[-1] == "next: video-rs test --cfg x.yaml"
    assert sum(".mp4 (1x): cut short" in line for line in lines) == 10  # no more, and a file with all
    assert any(str(tmp_path / "broken_files.csv") in line for line in lines)
    said = {heading: text[0] for heading, text in texts(lines[:-1]).items()}
    assert said["complete"] == "6 steps, 2 epochs, in 0s"
    assert said["validation"] == "top-1 75.00 %  top-5 100.00 %  loss 0.5000 after epoch 2"
    assert said["weights"] == f"best validation top-1 87.50 % after epoch 1, in {tmp_path / 'best.pt'}"
    assert said["bad steps"].startswith("2 steps with a non-finite loss or gradient")
    (at,) = [i for i, line in enumerate(lines) if line.startswith("bad steps")]
    assert [line.strip() for line in lines[at + 1 : at + 3]] == ["poison.mp4 (in 2 of them)", "good.mp4 (in 1 of them)"]
    assert said["written"] == f"best.pt, metrics.jsonl in {tmp_path}"


def test_the_last_page_of_a_run_that_was_resumed(tmp_path):
    finished(tmp_path).end("interrupted", "resume")
    status = finished(tmp_path, first_step=3)
    status.validating()
    time.sleep(0.6)
    status.validated(3)
    time.sleep(0.5)
    lines = pages.end_page(PLAN, status, tmp_path, Incidents(24), "next")
    assert lines[0].endswith("in 1s, 1s with earlier starts")
    mean = float(lines[1].split()[1])
    assert 0.5 * 3 * 8 / 0.5 < mean <= 3 * 8 / 0.5  # the three steps of this start, without the validation


def test_nothing_is_said_of_what_there_is_not(tmp_path):
    lines = pages.end_page(PLAN, finished(tmp_path), tmp_path, Incidents(24), "next")
    assert not any(line.startswith(("broken", "bad")) for line in lines)
    assert len(lines) <= 6
