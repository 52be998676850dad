"""Test ``tools/test_net.py`` on real files."""

import csv
import json
import os
import re
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import yaml

from video_rs import checkpoint
from video_rs.cli.common import run
from video_rs.cli.explain import main as explain_main
from video_rs.cli.test import main
from video_rs.experiment.build import build_records
from video_rs.experiment.config import load_config
from video_rs.experiment.evaluate import evaluate
from video_rs.inference.predict import load
from video_rs.models.registry import create_model
from video_rs.terminal import counted

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


def test_a_picture_that_cannot_be_drawn_is_a_warning(job, capsys, monkeypatch):
    monkeypatch.setattr("video_rs.evaluation.report.confusion_png", MagicMock(side_effect=ValueError("no font")))
    assert run(main, arguments(job)) == 0
    assert "warning: confusion.png: not drawn (no font)" in capsys.readouterr().out
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
    assert "gone.pt does not exist" in failure(capsys, job, f"weights={tmp_path}/gone.pt")
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


# Which weights were scored on what ------------------------------------------------------------------------------------


def report_of(capsys, *argv):
    """Return the folder of the report that a test writes."""
    assert run(main, [str(word) for word in argv]) == 0, capsys.readouterr().err
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("report: "))
    return Path(line.removeprefix("report: ")).parent


@pytest.fixture
def own(job, tmp_path, monkeypatch):
    """A copy of the run folder with a log and the settings of a quick test, without drawing plots."""
    for name in ("confusion_png", "curves_png", "thumbnail"):
        monkeypatch.setattr(f"video_rs.evaluation.report.{name}", lambda *args: b"drawn")
    folder = tmp_path / "run"
    state = checkpoint.load(job / "run" / "best.pt") | {"metrics": {"top1": 0.5, "loss": 1.23456789}}
    state["config"]["data"]["root"] = str(job / "data")
    state["config"]["test"] |= {"clips": 1, "crops": 1}
    checkpoint.save(folder / "best.pt", state)
    line = {"kind": "val", "step": 7, "epoch": 1.0, "top1": 0.5, "loss": 1.23457}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def other_weights(own, path, **entries):
    state = checkpoint.load(own / "best.pt") | entries
    state["model"]["head.bias"] = state["model"]["head.bias"] + len(str(path))
    checkpoint.save(path, state)
    return path


def test_the_report_on_other_weights_is_in_a_separate_folder(job, own, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = ["--cfg", job / "tiny.yaml", f"data.root={job / 'data'}", f"out={own}", "test.clips=1", "test.crops=1"]
    assert report_of(capsys, *start) == own / "test"
    before = {file.name: file.read_bytes() for file in (own / "test").iterdir()}
    (tmp_path / "link").symlink_to(own)
    for same in ("run/best.pt", "run", "link/best.pt", own / "best.pt"):
        assert report_of(capsys, *start, "--weights", same) == own / "test"
    others = [
        other_weights(own, tmp_path / name)
        for name in ("run/last.pt", "run/checkpoints/step-00000003.pt", "b/run/best.pt", "c/d/run/best.pt")
    ]
    folders = [report_of(capsys, *start, "--weights", other) for other in others]
    assert len(set(folders)) == 4 and all(folder.parent == own for folder in folders)
    names = [folder.name[:-9] for folder in folders]
    assert names == ["test-run-last", "test-checkpoints-step-00000003", "test-run-best", "test-run-best"]
    assert report_of(capsys, *start, f"weights={others[2]}") == folders[2]
    other_weights(own, others[2], step=8)  # other weights under the same name
    checkpoint.save(others[2], checkpoint.load(others[2]) | {"step": 9})
    assert report_of(capsys, *start, "--weights", others[2]) not in folders
    assert "run/val-run-last-" in str(
        report_of(capsys, *start, "--weights", others[0], "test.split=val", f"data.val={job / 'data' / 'test'}")
    )
    assert {file.name: file.read_bytes() for file in (own / "test").iterdir()}.keys() == before.keys()
    assert (own / "test" / "metrics.json").read_bytes() == before["metrics.json"]


def test_the_report_describes_weights_data_and_views(job, own, capsys):
    weights = other_weights(own, own / "last.pt", step=12)
    folder = report_of(capsys, "--weights", weights, f"data.test={job / 'data' / 'test'}")
    about = json.loads((folder / "metrics.json").read_text())["about"]
    digest = folder.name[-8:]
    assert about["weights"] == f"{weights}, step 12, SHA-256 {digest}"
    assert about["data"].startswith(f"test split of {job / 'data' / 'test'}: 4 files, 3 classes, fingerprint ")
    assert about["model"] == "resnet3d_rs_26" and about["views"].startswith("1 x 1 views")
    page = (folder / "report.html").read_text()
    assert all(value in page for value in about.values()) and "<h1>run-last: test split</h1>" in page


def test_curves_are_those_of_the_run_that_made_the_weights(job, own, tmp_path, capsys):
    other = {"metrics": {"top1": 0.5, "loss": 2.0}}
    state = {"best_metrics": {"top1": 0.5, "loss": 1.23456789}, "metrics": None}  # as in last.pt
    for path, entries, expected in (
        (own / "best.pt", {}, True),
        (own / "last.pt", state, True),
        (own / "checkpoints" / "step-00000007.pt", state, True),
        (own / "from_another_run.pt", other, False),
        (own / "best.pt", other, False),
        (tmp_path / "elsewhere" / "best.pt", {}, False),
    ):
        weights = other_weights(own, path, **entries)
        folder = report_of(capsys, "--weights", weights, f"out={own}")
        assert (folder / "curves.png").exists() == expected, path
        assert ("training curves" in (folder / "report.html").read_text()) == expected


def test_curves_of_a_run_without_validations(own, capsys):
    state = checkpoint.load(own / "best.pt") | {"metrics": {}}
    checkpoint.save(own / "best.pt", state)
    (own / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 7, "epoch": 1.0, "loss": 1.0}) + "\n")
    assert not (report_of(capsys, "--weights", own) / "curves.png").exists()
    (own / "config.yaml").write_text(yaml.safe_dump(state["config"]))
    assert (report_of(capsys, "--weights", own) / "curves.png").exists()


def test_weights_need_no_config(job, own, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = (report_of(capsys, "--weights", own / "best.pt") / "predictions.csv").read_text()
    assert "bowling" in expected
    shared = checkpoint.load(own / "best.pt")
    plain = tmp_path / "plain.safetensors"
    checkpoint.save(plain, shared)
    checkpoint.save(tmp_path / "of_fit.pt", shared | {"config": {"fit": {"epochs": 1}}})
    checkpoint.save(tmp_path / "converted.pt", shared | {"config": {}})
    quick = [f"data.root={job / 'data'}", "test.clips=1", "test.crops=1", "data.workers=0", "train.device=cpu"]
    for words, folder in (
        (["--weights", own], own),
        ([f"weights={own}"], own),
        (["--weights", "run/best.pt"], Path("run")),
        (["--weights", plain], Path("runs") / f"{tmp_path.name}-plain"),
        (["--weights", "of_fit.pt"], Path("runs") / f"{tmp_path.name}-of_fit"),
        (["--weights", "converted.pt", "out=there"], Path("there")),
    ):
        found = report_of(capsys, *words, *quick)
        assert found.parent == folder and (found / "predictions.csv").read_text() == expected, words


@pytest.mark.parametrize("place", [".", "..", "run", "run/checkpoints"])
def test_the_run_folder_of_weights_is_found_from_any_folder(own, tmp_path, capsys, monkeypatch, place):
    weights = other_weights(own, own / "checkpoints" / "step-00000003.pt")
    monkeypatch.chdir(tmp_path / place)
    for path in (weights, own / "best.pt"):
        folder = report_of(capsys, "--weights", os.path.relpath(path))
        assert folder.parent.samefile(own) and (folder / "curves.png").exists()


def test_a_checkpoint_imports_no_plugin(own, tmp_path, capsys):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    state = checkpoint.load(own / "best.pt")
    state["config"]["plugins"] = [str(tmp_path / "evil.py")]
    checkpoint.save(own / "best.pt", state)
    report_of(capsys, "--weights", own)
    assert not (tmp_path / "mark").exists()


def test_wrong_weights_and_configs_are_one_line(own, tmp_path, capsys):
    state = checkpoint.load(own / "best.pt")
    checkpoint.save(tmp_path / "odd.pt", state | {"config": {"model": 5}})
    checkpoint.save(tmp_path / "old.pt", state | {"config": {"model": {}, "what": 1}})
    for words, text in (
        ([], "--cfg or --weights is required"),
        (["weights="], "--cfg or --weights is required"),
        (["--weights", own, f"weights={own}"], "--weights and weights= are the same"),
        (["--weights", tmp_path / "gone.pt"], "gone.pt does not exist; check the path"),
        (["--weights", tmp_path / "odd.pt"], "odd.pt: model is a section"),
        (["--weights", tmp_path / "old.pt"], "old.pt: unknown key what"),
        (["--weights", own, "data.root=/nowhere"], "data.root=/nowhere: no such folder"),
        (["--weights", own, "optim.lrr=1"], "did you mean optim.lr?"),
    ):
        assert run(main, [str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1, error


def test_missing_data_is_noticed_before_weights_are_loaded(job, capsys, monkeypatch):
    monkeypatch.setattr("video_rs.checkpoint.load", lambda *args: pytest.fail("loaded"))
    for words in (["data.root=/nowhere"], [f"data.test={job}/*.csv"], [f"data.class_names={job}/gone.txt"]):
        assert words[0].partition("=")[2] in failure(capsys, job, *words)


def test_activation_maps_of_mistakes_are_in_the_report(job, own, capsys):
    explain = ["--weights", str(own / "best.pt"), "--worst", "2", "--device", "cpu"]

    def line(code=2):
        assert run(explain_main, explain) == code
        return "".join(capsys.readouterr())

    assert f"{own / 'test'}: no test of {own / 'best.pt'} on this split; run the command test" in line()
    folder = report_of(capsys, "--weights", own / "best.pt", f"data.test={job / 'data' / 'test'}", "test.crops=1")
    page = (folder / "report.html").read_text()
    mistakes = page.count("<!-- explain:")
    assert mistakes >= 1 and "data:image/webp" not in page
    for _ in range(2):  # a second time, the pictures are replaced
        assert f"{folder / 'report.html'}: {counted(mistakes, 'mistake')} explained" in line(0)
        explained = (folder / "report.html").read_text()
        assert explained.count("<img class='cam' alt='activation maps' src='data:image/webp;base64,") == mistakes
        assert re.sub("<img class='cam'[^>]*>", "", explained) == page

    rows = (folder / "predictions.csv").read_text()
    first = next(row["path"] for row in csv.DictReader(rows.splitlines()) if row["correct"] == "0")
    (folder / "predictions.csv").write_text(rows.replace(first, f"{first}.gone"))
    out = line(2)
    assert f"{folder / 'report.html'}: {counted(mistakes - 1, 'mistake')} explained" in out
    assert f"error: {first}.gone: no such file" in out
    (folder / "predictions.csv").write_text(rows)

    (folder / "report.html").write_text(re.sub("<!-- explain:[0-9]* -->", "", page))
    assert f"{folder}: an earlier version wrote this report; run the test again" in line()
    rows = (folder / "predictions.csv").read_text().replace(",0,1,", ",1,1,")
    (folder / "predictions.csv").write_text(rows)
    assert line(0) == f"{folder}: the test has no mistakes\n"
    checkpoint.save(own / "best.pt", checkpoint.load(own / "best.pt") | {"step": 99})
    assert "the test is of other weights than" in line()
