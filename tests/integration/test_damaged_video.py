"""Damaged files: the same pixels in every process; commands report unreadable files in one line each."""

import csv
import shutil

import pytest
import torch

import video_rs
from tests.conftest import same
from video_rs import checkpoint
from video_rs.data.video.decode import read_frames

DAMAGED = "m00089_mjpeg.mov"
REASONS = {
    "audio_cover.mp4": "no video stream, only a cover image",
    "encrypted.mp4": "encrypted; decrypt it first",
    "ffconcat.mp4": "a playlist, not a video; use the files that it lists",
    "html.mp4": "a web page saved under this name; download the file again",
    "lfs.mp4": "a Git LFS pointer, not the file; run git lfs pull",
    "m00159_mpeg2.ts": "damaged: it has packets of a stream that its header does not declare",
    "m00392_h264frag.mp4": "cannot be decoded (Cannot allocate memory)",
    "m00761_rotated_90.mov": "damaged: it has only 3 of 4294901763 frames",
    "m00812_mjpeg.mov": "damaged: it has only 9 of 40 frames",
    "m02379_flv1.flv": "a frame has 24640x8759 pixels; raise data.max_pixels=67108864 (or VIDEO_RS_MAX_PIXELS)",
}
READ = ("pal8.avi", "av1_no_seq.mp4", "m02454_mjpeg.mov", "matrix_tkhd_all_zero.mp4")


def test_two_reads_of_a_damaged_file_are_equal(assets):
    reads = [read_frames(assets / "cases" / DAMAGED, range(40)) for _ in range(2)]
    assert torch.equal(*reads)


@pytest.mark.slow
def test_two_trainings_on_a_damaged_file_are_equal(assets, make_video, run_tool, tiny_config, tmp_path):
    for label in ("a", "b"):
        for split in ("train", "val"):
            make_video(tmp_path / f"videos/{split}/{label}/good.mp4", 12, height=48, width=48)
        shutil.copy(assets / "cases" / DAMAGED, tmp_path / f"videos/train/{label}/damaged.mov")
    config = tiny_config(data__root=str(tmp_path / "videos"), train__batch_size=2, train__epochs=1)
    weights = []
    for run in ("first", "second"):
        done = run_tool("train_net.py", "--cfg", config, f"out={tmp_path / run}", "data.workers=1")
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / run / "broken_files.csv").exists()
        file = max((tmp_path / run / "checkpoints").glob("*.pt"))
        weights.append(checkpoint.load(file)["model"])
    assert same(*weights)


def test_predict_names_each_unreadable_file(assets, run_tool, tmp_path):
    data_config = {"num_frames": 4, "stride": 2, "train_size": 32, "short_side": 36, "test_size": 32}
    arguments = {"name": "resnet3d_rs_26", "num_classes": 3, "width": 0.125}
    model = video_rs.create_model(**arguments)
    state = {"format": 1, "config": {}, "model": model.state_dict(), "ema": None}
    names = {"class_names": ("a", "b", "c"), **model.data_config.to_dict(), **data_config}
    checkpoint.save(tmp_path / "a.pt", state | {"data_config": names, "model_args": arguments})
    files = [assets / "cases" / name for name in (*REASONS, *READ)]
    done = run_tool("predict.py", "--device", "cpu", "--weights", tmp_path / "a.pt", *files)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for name, reason in REASONS.items():
        assert done.stderr.count(f"{assets / 'cases' / name}: {reason}") == 1, (name, done.stderr)
    assert len(done.stderr.splitlines()) <= len(REASONS) + 1
    assert all(f"{assets / 'cases' / name}\n" in done.stdout for name in READ), done.stdout


@pytest.mark.slow
def test_check_and_training_agree_on_unreadable_files(assets, make_video, run_tool, tiny_config, tmp_path):
    folder = tmp_path / "videos/train/a"
    for number, place in enumerate(("train/a", "train/b", "val/a", "val/b")):
        make_video(tmp_path / "videos" / place / "good.mp4", 12, height=48, width=48, first_number=50 * number)
    for name in (*REASONS, *READ, DAMAGED):
        shutil.copy(assets / "cases" / name, folder)
    config = tiny_config(data__root=str(tmp_path / "videos"))
    done = run_tool("check_dataset.py", "--cfg", config, "--out", tmp_path / "check", "--workers", 1)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    with open(tmp_path / "check/problems.csv", newline="") as file:
        rows = [
            (row["path"].removeprefix(f"{folder}/"), row["detail"])
            for row in csv.DictReader(file)
            if row["kind"] == "broken"
        ]
    damage = "FFmpeg reports damage (decode_sos: index(3) out of components)"
    assert dict(rows) == REASONS | {DAMAGED: damage} and len(rows) == len(REASONS) + 1


def test_max_pixels_is_a_config_key(make_video, run_tool, tiny_config, tmp_path, monkeypatch):
    for place, size in (("train/a", 64), ("train/b", 48), ("val/a", 48), ("val/b", 48)):
        make_video(tmp_path / "videos" / place / "0.mp4", 12, height=48, width=size)
    monkeypatch.setenv("VIDEO_RS_MAX_PIXELS", "1")  # the key has precedence
    config = tiny_config(data__root=str(tmp_path / "videos"))
    done = run_tool("check_dataset.py", "--cfg", config, "--out", tmp_path / "check", f"data.max_pixels={48 * 48}")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    with open(tmp_path / "check/problems.csv", newline="") as file:
        broken = [(row["path"], row["detail"]) for row in csv.DictReader(file) if row["kind"] == "broken"]
    reason = "a frame has 64x48 pixels; raise data.max_pixels=2304 (or VIDEO_RS_MAX_PIXELS)"
    assert broken == [(str(tmp_path / "videos/train/a/0.mp4"), reason)]
