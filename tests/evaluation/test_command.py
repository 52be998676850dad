"""Test ``tools/test_net.py`` on real files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from video_rs import checkpoint
from video_rs.cli.common import run
from video_rs.cli.test import main
from video_rs.experiment.build import build_records
from video_rs.experiment.config import load_config
from video_rs.experiment.evaluate import evaluate
from video_rs.inference.predict import load
from video_rs.models.registry import create_model

CONFIG = """
model: {name: resnet3d_rs_26, width: 0.125}
data: {num_frames: 4, stride: 2, train_size: 32, short_side: 40, test_size: 32, workers: 0}
test: {clips: 2, crops: 3}
train: {device: cpu, threads: 1}
"""
NAMES = ("bowling", "chess", "diving")


@pytest.fixture(scope="module")
def job(tmp_path_factory, make_video):
    """A config, a test split of four videos, one of them broken, and a checkpoint in the run folder."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "tiny.yaml").write_text(CONFIG)
    for i, name in enumerate((*NAMES, NAMES[0])):
        make_video(folder / "data" / "test" / name / f"{i}.mp4", num_frames=10 + i, first_number=100 * i)
    (folder / "data" / "test" / NAMES[2] / "2.mp4").write_bytes(b"no video")

    config = load_config(folder / "tiny.yaml")
    torch.manual_seed(0)
    model_args = {"name": config.model.name, "num_classes": len(NAMES), "width": config.model.width}
    model = create_model(**model_args)
    torch.nn.init.normal_(model.head.weight, std=3.0)
    state = {"format": 1, "config": config.to_dict(), "model_args": model_args, "step": 7, "ema": None}
    state |= {"model": model.state_dict(), "data_config": config.data_config(NAMES).to_dict()}
    checkpoint.save(folder / "run" / "best.pt", state)
    return folder


def arguments(job, *overrides):
    return ["--cfg", str(job / "tiny.yaml"), f"data.root={job / 'data'}", f"out={job / 'run'}", *map(str, overrides)]


def failure(capsys, *args):
    """Return the one line that a refused command prints."""
    assert run(main, arguments(*args)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    return error


def test_report_and_metrics(job, capsys):
    assert run(main, arguments(job, "test.save_views=true")) == 0
    out = capsys.readouterr().out
    folder = job / "run" / "test"
    assert "3 of 4 scored" in out and f"report: {folder / 'report.html'}" in out and "next: " in out
    assert "2.mp4: a text file, not a video" in out

    rows = {Path(row["path"]).name: row for row in csv.DictReader((folder / "predictions.csv").open())}
    metrics = json.loads((folder / "metrics.json").read_text())
    correct = sum(int(row["correct"]) for row in rows.values())
    assert (metrics["num_videos"], metrics["num_scored"]) == (4, 3) and rows["2.mp4"]["scored"] == "0"
    assert metrics["top1"] == pytest.approx(correct / 3) and metrics["top1_all"] == correct / 4
    assert metrics["top_k"] == 3 and metrics["top5_all"] == 3 / 4
    assert np.load(folder / "views.npz")["views"].shape == (4, 6, 3)

    path = rows["1.mp4"]["path"]
    first = load(job / "run" / "best.pt", "cpu").predict(path, top_k=1, clips=2, crops=3)[0]
    assert rows["1.mp4"]["predicted"] == first.label and float(rows["1.mp4"]["prob_1"]) == pytest.approx(first.score)


def test_from_python(job, capsys):
    lines = []
    config = load_config(job / "tiny.yaml", [f"data.root={job / 'data'}", f"out={job / 'run'}"])
    found = evaluate(config, log=lines.append)
    assert found.metrics["num_scored"] == 3 and found.report.is_file() and found.paths[found.scores.errors[0][0]]
    assert lines[1] == f"model: resnet3d_rs_26 from {job / 'run' / 'best.pt'}, step 7" and not capsys.readouterr().out


def test_a_picture_that_cannot_be_drawn_is_a_warning(job, capsys):
    log = job / "run" / "metrics.jsonl"
    log.write_bytes(b"\xff\xfe")
    assert run(main, arguments(job)) == 0
    log.unlink()
    assert "warning: curves.png: not drawn (" in capsys.readouterr().out
    assert "Not drawn" in (job / "run" / "test" / "report.html").read_text()


def test_workers_score_the_same(job):
    assert run(main, arguments(job)) == 0
    before = (job / "run" / "test" / "predictions.csv").read_text()
    assert run(main, arguments(job, "data.workers=2", "test.batch_size=5")) == 0
    after = (job / "run" / "test" / "predictions.csv").read_text()
    assert [r.split(",")[:5] for r in before.splitlines()] == [r.split(",")[:5] for r in after.splitlines()]


@pytest.mark.parametrize(
    "override, values",
    [
        ("model.width=0.25", ["model.width is 0.25, in the checkpoint 0.125"]),
        ("model.name=resnet3d_rs_50", ["resnet3d_rs_50, in the checkpoint resnet3d_rs_26"]),
        ("model.num_classes=5", ["model.num_classes is 5, in the checkpoint 3"]),
        ("data.num_frames=8", ["data.num_frames is 8, in the checkpoint 4"]),
        ("data.fps=12", ["data.fps is 12.0, in the checkpoint 0.0"]),
        ("data.sampling=segments", ["data.sampling is segments, in the checkpoint dense"]),
        ("data.mean=[0.5,0.5,0.5]", ["data.mean is (0.5, 0.5, 0.5), in the checkpoint (0.0, 0.0, 0.0)"]),
    ],
)
def test_another_data_config_is_refused_with_both_values(job, capsys, override, values):
    error = failure(capsys, job, override)
    assert all(value in error for value in values) and "best.pt" in error


def test_classes_in_another_order_are_refused(job, capsys, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(reversed(NAMES)))
    assert "class 0 is 'diving' in the data, 'bowling' in" in failure(capsys, job, f"data.class_names={names}")


def test_checkpoints_that_are_not_there_or_damaged(job, capsys, tmp_path):
    assert "train first" in failure(capsys, job, f"out={tmp_path}")
    cut = tmp_path / "cut.pt"
    cut.write_bytes((job / "run" / "best.pt").read_bytes()[:5000])
    assert str(cut) in failure(capsys, job, f"weights={cut}")


def test_nothing_to_score(job, capsys, tmp_path):
    for name in NAMES:
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "x.mp4").write_bytes(b"no video")
    assert "none of the 3 videos can be scored" in failure(capsys, job, f"data.root={tmp_path}")


def test_a_split_made_of_training_files_must_be_the_one_kept_from_the_checkpoint(job, capsys, tmp_path, make_video):
    for name in NAMES:
        for i in range(4):
            make_video(tmp_path / "data" / name / f"{name}{i}.mp4", num_frames=10)
    root = f"data.root={tmp_path / 'data'}"
    assert "may have been trained on these videos" in failure(capsys, job, root)

    config = load_config(job / "tiny.yaml", [root])
    state = checkpoint.load(job / "run" / "best.pt")
    state["fingerprint"] = {"val": build_records(config, ["val"])["val"].fingerprint()}
    checkpoint.save(tmp_path / "best.pt", state)
    assert run(main, arguments(job, root, f"weights={tmp_path / 'best.pt'}")) == 0
    assert "data.val_fraction" in failure(capsys, job, root, f"weights={tmp_path / 'best.pt'}", "data.val_fraction=0.9")


def test_a_folder_that_cannot_be_made_is_found_before_the_work(job, capsys, monkeypatch):
    monkeypatch.setattr("video_rs.experiment.evaluate.score", lambda *args, **kwargs: pytest.fail("scored"))
    assert "Not a directory" in failure(
        capsys, job, f"weights={job / 'run' / 'best.pt'}", f"out={job / 'tiny.yaml' / 'x'}"
    )
