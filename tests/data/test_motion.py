"""The embedded dataset: motion follows the class, single frames do not, and a seed gives the same files."""

import csv
import faulthandler
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from video_rs.data.tools import motion
from video_rs.errors import MachineError, UserError
from video_rs.rng import keyed_rng

SMALL = {"train": 16, "val": 9, "test": 8, "size": 32, "frames": 6}
TOOL = Path(__file__).parents[2] / "tools" / "make_motion.py"
PLAYED_BACKWARDS = [
    ("rotate_clockwise", "rotate_counterclockwise"),
    ("translate_left", "translate_right"),
    ("translate_up", "translate_down"),
    ("zoom_in", "zoom_out"),
]


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.mp4"))}


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def flow_along(name, frames, x, y, radius):
    """Return how much the shape moves as in class ``name``, by least squares on the optical flow equation."""
    gray = frames.astype(np.float64).mean(-1)
    kernel = np.ones(3) / 3
    for axis in (1, 2):  # the noise is per pixel
        gray = np.apply_along_axis(np.convolve, axis, gray, kernel, "same")
    size, total, weight = gray.shape[1], 0.0, 0.0
    rows, columns = np.mgrid[:size, :size]
    for t in range(len(gray) - 1):
        right, down = (columns - x[t] + size / 2) % size - size / 2, (rows - y[t] + size / 2) % size - size / 2
        dx, dy, turn, zoom = motion._DIRECTIONS[name]
        u, v = dx - turn * down + zoom * right, dy + turn * right + zoom * down
        grad_y, grad_x = np.gradient((gray[t] + gray[t + 1]) / 2)
        along = (u * grad_x + v * grad_y)[np.hypot(right, down) < radius[t]]
        total -= (along * (gray[t + 1] - gray[t])[np.hypot(right, down) < radius[t]]).sum()
        weight += (along**2).sum()
    return total / weight


@pytest.mark.parametrize("name", motion.CLASSES)
def test_decoded_pixels_move_as_the_class_says(name, tmp_path):
    """Measured on the frames of the mp4 files. The opposite motion would change the sign."""
    speeds = []
    for number in range(6):
        motion.encode(tmp_path / "x.mp4", motion.render(name, 24, 64, keyed_rng(3, "test", number)))
        x, y, _, radius = motion.trajectory(name, 24, 64, keyed_rng(3, "test", number))
        speeds.append(flow_along(name, decode(tmp_path / "x.mp4"), x, y, radius))
    assert np.median(speeds) > 0.01, speeds


@pytest.mark.parametrize("one, other", PLAYED_BACKWARDS)
def test_opposite_classes_are_each_other_played_backwards(one, other):
    forward = motion.trajectory(one, 24, 64, keyed_rng(0, "test", 5))
    backward = motion.trajectory(other, 24, 64, keyed_rng(0, "test", 5))
    for there, back in zip(forward, backward):
        np.testing.assert_allclose(there, back[::-1], atol=1e-9)
    assert any(np.ptp(values) > 0 for values in forward)


def test_the_pose_in_one_frame_has_the_same_distribution_in_every_class():
    """Position and angle are uniform in any frame of any class. The size is that of a zoom at a random moment."""
    pose = {
        name: np.array([motion.trajectory(name, 24, 64, keyed_rng(1, "test", k)) for k in range(1500)])
        for name in motion.CLASSES
    }  # [videos, (x, y, angle, radius), frames]
    levels = np.linspace(0.05, 0.95, 19)
    for name, values in pose.items():
        for quantity, period in ((0, 64), (1, 64), (2, 2 * np.pi)):
            for frame in (0, 11, 23):
                quantiles = np.quantile(values[:, quantity, frame] % period / period, levels)
                np.testing.assert_allclose(quantiles, levels, atol=0.05, err_msg=f"{name} {quantity} {frame}")
        np.testing.assert_allclose(
            np.log(np.quantile(values[:, 3], levels)),
            np.log(np.quantile(pose["zoom_in"][:, 3], levels)),
            atol=0.05,
            err_msg=name,
        )


def test_files_are_the_same_on_any_number_of_processes(tmp_path):
    counts = {"train": 64, "val": 8, "test": 8, "size": 16, "frames": 2}
    for folder, options in {"one": {"workers": 1}, "two": {"workers": 2}, "other": {"workers": 1, "seed": 1}}.items():
        assert motion.make(tmp_path / folder, **counts, **options)
    one = files(tmp_path / "one")
    assert len(one) == 80
    assert one == files(tmp_path / "two")
    assert not set(one.values()) & set(files(tmp_path / "other").values())
    assert len(set(one.values())) == 80  # no video occurs twice


def test_encoding_is_deterministic(tmp_path):
    """At the real size, with a different heap each time. x264 fails this with its default settings."""
    rng = np.random.default_rng(0)
    for number in range(6):
        frames, seen = motion.render("zoom_in", 24, 64, keyed_rng(0, "test", number)), set()
        for _ in range(6):
            _heap = [np.full(rng.integers(1, 60_000), rng.integers(256), np.uint8) for _ in range(30)][::3]
            motion.encode(tmp_path / "x.mp4", frames)
            seen.add((tmp_path / "x.mp4").read_bytes())
        assert len(seen) == 1


def test_layout_and_codec(tmp_path):
    motion.make(tmp_path / "m", **SMALL, workers=1)
    names = files(tmp_path / "m")
    assert {name.split("/")[1] for name in names} == set(motion.CLASSES) and tuple(
        sorted(motion.CLASSES)
    ) == motion.CLASSES
    assert [sum(name.startswith(f"{split}/") for name in names) for split in motion.SPLITS] == [16, 9, 8]
    assert "val/rotate_clockwise/00001.mp4" in names and "val/zoom_in/00001.mp4" not in names
    with av.open(str(tmp_path / "m" / "test/zoom_out/00000.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.height, stream.width) == ("h264", 32, 32)
        assert sum(1 for _ in container.decode(stream)) == 6
    assert not list((tmp_path / "m").rglob("*.part"))


def test_interrupted_work_is_finished_and_finished_work_is_left_alone(tmp_path):
    root, seen = tmp_path / "m", []

    def stop_after_ten(done, total):
        for number, item in enumerate(done):
            if number == 10:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        motion.make(root, **SMALL, workers=1, progress=stop_after_ten)
    partial = files(root)
    assert 10 <= len(partial) < 33
    assert motion.make(root, **SMALL, workers=1, progress=lambda done, total: (seen.append(total), done)[1])
    assert seen == [33 - len(partial)]
    assert not motion.make(root, **SMALL, workers=1)
    motion.make(tmp_path / "whole", **SMALL, workers=1)
    assert files(root) == files(tmp_path / "whole")


def _crash(item, beat, **_):
    faulthandler.disable()  # pytest enables it
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_crashed_process_does_not_complete_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(motion, "_write", _crash)
    with pytest.raises(MachineError, match=r"\.mp4: .*SIGSEGV"):
        motion.make(tmp_path / "m", **SMALL, workers=1)
    assert json.loads((tmp_path / "m" / motion.STAMP).read_text())["complete"] is False


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    motion.make(tmp_path / "m", **SMALL, workers=1)
    with pytest.raises(UserError, match="seed 0, not 7"):
        motion.make(tmp_path / "m", **SMALL, seed=7)
    (tmp_path / "m" / motion.STAMP).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        motion.make(tmp_path / "m", **SMALL)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty"):
        motion.make(tmp_path / "other", **SMALL)
    with pytest.raises(UserError, match="size=31"):
        motion.make(tmp_path / "new", **SMALL | {"size": 31})
    (tmp_path / "file").touch()
    for path, options, match in [
        ("file", {}, "file is not a folder"),
        ("file/m", {}, "file/m is not a folder"),
        ("new", {"workers": -1}, "workers=-1"),
        ("new", {"seed": -1}, "seed=-1"),
    ]:
        with pytest.raises(UserError, match=match):
            motion.make(tmp_path / path, **SMALL, **options)


def test_command(tmp_path):
    def run(*extra):
        numbers = [f"--{key}={value}" for key, value in SMALL.items()]
        command = [sys.executable, TOOL, "--out", "m", "--workers=1", *numbers, *extra]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ, timeout=60)

    first, again, other = run(), run(), run("--seed=3")
    assert first.returncode == again.returncode == 0, first.stderr
    assert "33 videos of 8 classes" in first.stdout and "m is complete" in first.stdout
    assert "m is there already" in again.stdout
    assert json.loads((tmp_path / "m" / motion.STAMP).read_text())["complete"]
    assert other.returncode == 2 and other.stderr.count("\n") == 1
    assert other.stderr.startswith("error: m was made with seed 0, not 3")


def test_a_long_video_shows_the_classes_at_the_times_of_its_table(tmp_path):
    table = motion.make_long(tmp_path / "long.mp4", size=32, frames=6, seed=3)
    rows = list(csv.DictReader(table.open()))
    assert sorted(row["label"] for row in rows) == list(motion.CLASSES) and {row["path"] for row in rows} == {
        "long.mp4"
    }
    assert [(row["start"], row["end"]) for row in rows] == [(f"{k}.000", f"{k + 1}.000") for k in range(8)]  # 2 shots
    frames = decode(tmp_path / "long.mp4")
    rng = keyed_rng(3, "long motion")
    rng.permutation(motion.CLASSES)
    for number, row in enumerate(rows):
        for shot in range(2):
            rendered = motion.render(row["label"], 6, 32, rng).astype(float)
            first = 12 * number + 6 * shot
            assert (
                np.abs(frames[first : first + 6] - rendered).mean() < 12 < np.abs(frames[first - 6] - rendered).mean()
            )
    for name, words in (("long.mp4", "exists"), ("long.avi", "an mp4 file")):
        with pytest.raises(UserError, match=words):
            motion.make_long(tmp_path / name)
