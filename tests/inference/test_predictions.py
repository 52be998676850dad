"""Predictions of many files: in order, in files of all kinds, resumed, and their bad input."""

import csv
import json
import math
import sys

import numpy as np
import pytest
import torch

import video_rs
from tests import commands
from video_rs import checkpoint
from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.inference import parts
from video_rs.inference.predict import Classifier
from video_rs.inference.predictions import clip_dataset, predict_files, predict_table

CONFIG = DataConfig(
    num_frames=4, stride=2, train_size=32, short_side=36, test_size=32, class_names=("archery", "=juggling", "yoga")
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    arguments = {"name": "resnet3d_rs_26", "num_classes": 3, "width": 0.125}
    model = video_rs.create_model(**arguments, data_config=CONFIG)
    torch.nn.init.normal_(model.state_dict(keep_vars=True)["head.weight"], std=3.0)  # predictions that differ
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    checkpoint.save(path, checkpoint.from_weights(arguments, model.data_config, model.state_dict()))
    return path


@pytest.fixture(scope="module")
def classifier(weights):
    return video_rs.load(weights, "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory, make_video):
    """Videos of several lengths, and one that is damaged."""
    folder = tmp_path_factory.mktemp("videos")
    for number, length in enumerate((30, 6, 19, 12, 25)):
        make_video(folder / f"{number}.mp4", num_frames=length, fps=10, first_number=50 * number)
    (folder / "2.mp4").write_bytes(b"no video")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("every", [0.0, 0.5])
def test_predictions_do_not_depend_on_workers_and_batches(classifier, files, every):
    for workers, batch_size in ((0, 8), (1, 1), (3, 5)):
        batched = Classifier(classifier.model, "cpu", views_per_forward=batch_size)
        found = list(predict_files(batched, clip_dataset(batched, files, every=every), workers=workers))
        assert [rows.index for rows in found if rows.is_last] == [0, 1, 2, 3, 4]
        for index, path in enumerate(files):
            parts = [rows for rows in found if rows.index == index]
            if path.endswith("2.mp4"):
                assert not len(parts[0].values) and parts[0].reason
                continue
            values = np.concatenate([rows.values for rows in parts])
            if every:
                times, probs = classifier.window_probs(path, every)
                np.testing.assert_array_equal(np.concatenate([rows.times for rows in parts]), times)
                np.testing.assert_allclose(values, probs, atol=1e-5)
            else:
                expected = sorted(classifier.predict(path), key=lambda p: p.index)
                np.testing.assert_allclose(values[0], [p.score for p in expected], atol=1e-5)


@pytest.mark.parametrize("every", [0, -1.0, math.nan, "2s"])
def test_times_of_windows_are_positive_numbers(classifier, files, every):
    for call in (
        classifier.window_probs,
        classifier.embed_windows,
        lambda *args: next(classifier.predict_windows(*args)),
    ):
        with pytest.raises(UserError, match=f"every_seconds={every!r}: must be a number above 0"):
            call(files[0], every)


def test_windows_are_predicted_while_the_video_is_read(classifier, files):
    one_by_one = Classifier(classifier.model, "cpu", views_per_forward=1)
    found = list(predict_files(one_by_one, clip_dataset(one_by_one, files[:1], every=0.5)))
    assert [len(rows.values) for rows in found] == [1, 1, 1, 1, 2]  # a window is complete when the next one begins
    assert [rows.is_last for rows in found] == [False] * 4 + [True]


@pytest.mark.parametrize("every", [0.0, 0.5])
def test_files_of_all_kinds_have_the_same_rows(classifier, files, tmp_path, every):
    parquet = pytest.importorskip("pyarrow.parquet")
    clips = clip_dataset(classifier, files, every=every)
    for suffix in ("csv", "json", "parquet"):
        table = predict_table(classifier, clips, tmp_path / f"p.{suffix}", top_k=2, about={"weights": "w"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.json", "p.parquet"]
    columns = ["path", *(["start", "end"] if every else []), "rank", "label", "index", "score", "reason"]
    rows = list(csv.reader((tmp_path / "p.csv").open()))
    assert rows[0] == columns
    document = json.loads((tmp_path / "p.json").read_text())
    assert document["version"] == 1 and document["about"]["weights"] == "w" and document["about"]["every"] == every
    found = parquet.read_table(tmp_path / "p.parquet")
    assert found.column_names == columns and found.schema.metadata[b"version"] == b"1"
    records = iter(found.to_pylist())
    cells = iter(rows[1:])
    for result in document["predictions"]:
        for rank, prediction in enumerate(result["predictions"] or [None], 1):
            record, row = next(records), dict(zip(columns, next(cells)))
            assert record["path"] == row["path"] == result["path"]
            assert record["reason"] == row["reason"] == result["reason"]
            if prediction is None:
                assert result["reason"] and record["label"] is None and row["label"] == row["score"] == ""
                continue
            assert record["rank"] == int(row["rank"]) == rank and record["label"] == prediction["label"]
            assert row["label"] == ("'=juggling" if record["label"] == "=juggling" else record["label"])
            assert record["score"] == pytest.approx(float(row["score"]), abs=1e-6) == pytest.approx(prediction["score"])
            if every:
                assert record["start"] == pytest.approx(float(row["start"]), abs=1e-3) == pytest.approx(result["start"])
    assert not list(records) and not list(cells)
    paths = [result["path"] for result in document["predictions"]]
    assert list(dict.fromkeys(paths)) == files and [bool(r["reason"]) for r in document["predictions"]].count(True) == 1
    assert table.reasons.keys() == {2}


def test_an_interrupted_table_resumes(classifier, files, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "FLUSH_SECONDS", 0)
    out, read, clips = tmp_path / "p.csv", [], clip_dataset(classifier, files)

    def stop(rows):
        read.append(rows.index)
        if len(read) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_table(Classifier(classifier.model, "cpu", views_per_forward=2), clips, out, on_rows=stop)
    for other, words in (
        (clip_dataset(classifier, files, views=2), "views 4, not 2"),
        (clip_dataset(classifier, files[:4]), r"files '5 \(.*', not '4 \("),
    ):
        with pytest.raises(UserError, match=words):
            predict_table(classifier, other, out)
    with pytest.raises(UserError, match="sha256 '', not 'b'"):
        predict_table(classifier, clips, out, about={"sha256": "b"})
    predict_table(classifier, clips, out, on_rows=lambda rows: read.append(rows.index))
    assert sorted(read) == [0, 1, 2, 2, 3, 4]  # the unreadable file is read again
    predict_table(classifier, clips, tmp_path / "whole.csv")
    rows = [list(csv.reader(path.open())) for path in (out, tmp_path / "whole.csv")]
    assert [row[:4] for row in rows[0]] == [row[:4] for row in rows[1]]


def test_the_command_writes_a_table_with_timelines(weights, files, tmp_path):
    out = tmp_path / "p.csv"
    options = ("--every", "500ms", "--segments", tmp_path / "s.csv", "--timeline", tmp_path / "t", "--threshold", 0)
    done = commands.script("tools/predict.py", "--weights", weights, *files, "--workers", 2, "--out", out, *options)
    assert done.returncode == 2 and f"error: {files[2]}: " in done.stderr, done.stderr
    assert done.stderr.endswith("1 of 5 could not be predicted\n")
    assert done.stdout.endswith(f"{out}: predictions of 4 of 5 files\n")
    windows = [row for row in csv.DictReader(out.open()) if not row["reason"]]
    segments = list(csv.DictReader((tmp_path / "s.csv").open()))
    for path in (files[0], files[1], files[3], files[4]):
        labels = {row["label"] for row in windows if row["path"] == path}
        own = [row for row in segments if row["path"] == path]
        assert {row["label"] for row in own} == labels and float(own[0]["start"]) == 0
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["0.png", "1.png", "3.png", "4.png"]
    rows = list(csv.DictReader(out.open()))
    again = commands.script(
        "tools/predict.py", "--weights", weights, *files, "--out", out, "--every", "500ms", "--overwrite"
    )
    assert again.returncode == 2 and list(csv.DictReader(out.open())) == rows
    printed = commands.script(
        "tools/predict.py", "--weights", weights, *files, "--csv", *options[:4], *options[6:]
    ).stdout
    assert [row["path"] for row in csv.DictReader(printed.splitlines())] == [row["path"] for row in windows]
    assert list(csv.DictReader((tmp_path / "s.csv").open())) == segments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--out p.txt", "p.txt: unknown kind of file"),
        ("--out old.csv", "old.csv exists"),
        ("--out file/p.csv", "file/p.csv.parts cannot be written"),
        ("--out p.csv --json", "--json and --csv"),
        ("--overwrite", "--overwrite needs --out"),
        ("--timeline t.png", "--timeline needs --every"),
        ("--segments s.csv", "--segments needs --every"),
        ("--every 1s --timeline t.png", "t.png: 5 files need a folder; leave out .png"),
        ("--every 1s --segments file/s.csv", "file/s.csv cannot be written: File exists"),
        ("--every 1s --segments s.json", "--segments s.json: must end in .csv"),
        ("--every 1s --timeline /proc/t.png", "/proc/t.png cannot be written: "),
        ("--every 1s --threshold 0.7", "--threshold needs"),
        ("--every 1s --segments s.csv --threshold 1.5", "'1.5' is not a number from 0 to 1"),
        ("--every 1s --segments s.csv --threshold nan", "'nan' is not a number from 0 to 1"),
    ],
)
def test_bad_options_are_one_line(weights, files, tmp_path, options, words):
    (tmp_path / "old.csv").touch()
    (tmp_path / "file").touch()
    done = commands.script("tools/predict.py", "--weights", weights, *options.split(), *files, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and words in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.parts"))


def test_files_that_are_all_unreadable_are_one_line_and_leave_nothing(weights, files, tmp_path):
    done = commands.script("tools/predict.py", "--weights", weights, files[2], "--out", tmp_path / "p.csv")
    assert done.returncode == 2 and "none of the 1 files can be used" in done.stderr and not list(tmp_path.iterdir())


def test_a_missing_pyarrow_names_the_extra(weights, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = commands.script("tools/predict.py", "--weights", weights, files[0], "--out", "p.parquet")
    assert done.returncode == 2 and "video-rs[parquet]" in done.stderr and done.stderr.count("\n") == 1
