"""``tools/check_dataset.py`` on a dataset of video files."""

import csv
import json
import os
import shutil
import signal

import av
import numpy as np
import pytest
from PIL.PngImagePlugin import PngInfo

from tests import corpus
from tests.cli.processes import group, reader, start, wait_for
from tests.commands import full_disk
from tests.data.hanging import write_hanging_video
from video_rs.cli.check import main
from video_rs.cli.common import run

SETTINGS = ["data.num_frames=4", "data.stride=1"]


@pytest.fixture
def dataset(make_video, tmp_path):
    for s, split in enumerate(("train", "val")):
        for c, name in enumerate("ab"):
            for i in range(2):
                make_video(tmp_path / "data" / split / name / f"{i}.mp4", 12, first_number=1000 * s + 100 * c + 20 * i)
    return tmp_path / "data"


@pytest.fixture
def check(capfd):
    """Run the command in this process, with real workers. Return the exit code, stdout and stderr."""

    def call(root, out, *overrides):
        arguments = ["--cfg", "motion_rs.yaml", f"data.root={root}", *SETTINGS, *overrides]
        code = run(main, [*arguments, "--out", str(out), "--workers", "1"])
        return (code, *capfd.readouterr())

    return call


def rows(path):
    with open(path, newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_a_sound_dataset(dataset, check, tmp_path):
    code, stdout, stderr = check(dataset, tmp_path / "out")
    assert code == 0, stderr
    assert "no problems" in stdout and "train --cfg motion_rs.yaml" in stdout
    files = rows(tmp_path / "out/files.csv")
    assert [row["split"] for row in files] == ["train"] * 4 + ["val"] * 4  # no test split: val is used as one
    assert [row["label"] for row in files] == ["a", "a", "b", "b"] * 2
    first = files[0] | {"path": os.path.relpath(files[0]["path"], dataset), "sha1": len(files[0]["sha1"])}
    assert list(first.values()) == (
        ["train", "train/a/0.mp4", "a", "12", "25", "0.48", "64", "96", "0", "h264", first["decoder"], 40, ""]
    )  # fmt: skip
    assert rows(tmp_path / "out/problems.csv") == []
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["files"] == {"train": 4, "val": 4} and summary["classes"]["b"] == {"train": 2, "val": 2}
    assert summary["frames"] == {"min": 12, "median": 12, "max": 12} and summary["seconds"] == 3.84
    assert (tmp_path / "out/check.png").read_bytes().startswith(b"\x89PNG")


def test_problems_are_named_and_grave_ones_are_an_error(dataset, check, make_video, tmp_path):
    make_video(dataset / "train/a/short.mp4", 3, first_number=500)
    (dataset / "train/empty").mkdir()
    (dataset / "train/b/broken.mp4").write_bytes(b"no video")
    shutil.copy(dataset / "train/a/0.mp4", dataset / "val/b/again.mp4")
    code, stdout, stderr = check(dataset, tmp_path / "out")
    assert code == 2 and stderr.count("\n") == 1 and "short: 1" in stdout
    assert "class folders of train without a file: 1 (empty)" in stdout
    assert "1 x broken, 1 x leak, 1 x label conflict" in stderr and "problems.csv" in stderr
    found = {(os.path.basename(row["path"]), row["kind"]) for row in rows(tmp_path / "out/problems.csv")}
    assert found == {
        ("broken.mp4", "broken"), ("short.mp4", "short"), ("again.mp4", "leak"), ("again.mp4", "label conflict")
    }  # fmt: skip
    again = next(row for row in rows(tmp_path / "out/files.csv") if row["path"].endswith("again.mp4"))
    assert again["problems"] == "leak;label conflict"


def copy_with(target, source, sound=False, **metadata):
    """Copy the video packets into another container, with a title and optional audio."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        made.metadata.update(metadata)
        stream = made.add_stream_from_template(given.streams.video[0])
        if sound:
            audio = made.add_stream("aac", rate=48000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate = 48000
            made.mux(audio.encode(frame))
            made.mux(audio.encode())
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)


SLOW_KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("ts", "title", "name", "hard link")]


@pytest.mark.parametrize("kind", ["mkv", "sound", "symbolic link", *SLOW_KINDS])
def test_the_same_video_in_two_splits_is_a_leak_in_any_container(kind, dataset, check, tmp_path):
    source, target = dataset / "train/a/0.mp4", dataset / f"val/b/COPY.{kind if len(kind) < 4 else 'mp4'}"
    match kind:
        case "symbolic link":
            target.symlink_to(source)
        case "hard link":
            os.link(source, target)
        case "name":
            shutil.copy(source, target)
        case _:
            copy_with(target, source, kind == "sound", title=kind)
    code, _, stderr = check(dataset, tmp_path / "out")
    assert code == 2 and f"1 x leak, 1 x label conflict); {target} in val and {source} in train; see " in stderr
    (leak,) = (row for row in rows(tmp_path / "out/problems.csv") if row["kind"] == "leak")
    assert leak["path"] == str(target) and leak["detail"].endswith(f"as {source} in train")


@pytest.mark.slow
def test_images_and_frame_folders_in_two_splits_are_leaks(check, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for root, inner in ((tmp_path / "images", "{}.png"), (tmp_path / "frames", "{}/img_{:05d}.jpg")):
        for place in ("train/a/0", "train/b/0", "val/a/0", "val/b/0"):
            for frame in range(1 if inner == "{}.png" else 5):
                file = root / inner.format(place, frame + 1)
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    info = PngInfo()
    info.add_text("Title", "another")
    Image.open(tmp_path / "images/train/a/0.png").save(tmp_path / "images/val/b/1.png", pnginfo=info)
    shutil.copytree(tmp_path / "frames/train/a/0", tmp_path / "frames/val/b/1")
    for frame in (tmp_path / "frames/val/b/1").iterdir():
        frame.rename(frame.with_name(frame.name.replace("img_0", "frame_")))
    damaged_metadata = b"Exif\0\0II*\0\x08\0\0\0\x05\0"  # PIL warns about it
    Image.new("RGB", (32, 32)).save(tmp_path / "images/val/a/1.jpg", exif=damaged_metadata)
    for kind, end, setting in (("images", ".png", "data.num_frames=1"), ("frames", "", "data.frame_folders=true")):
        root = tmp_path / kind
        code, _, stderr = check(root, tmp_path / "out", setting)
        assert code == 2 and f"; {root}/val/b/1{end} in val and {root}/train/a/0{end} in train; see " in stderr
        assert stderr.count("\n") == 1


def test_segments_of_one_video_in_two_splits_are_a_leak(dataset, check, tmp_path):
    """In one split they are duplicates only if their intersection is at least half of their union."""
    header = "path,label,start,end"
    train = ["train/a/0.mp4,a,0,0.2", "train/a/0.mp4,b,0.2,0.4", "train/a/1.mp4,a,0,0.24", "train/a/1.mp4,a,0,0.2"]
    for name, lines in (("train", [*train, "train/b/0.mp4,b,,"]), ("val", ["train/a/0.mp4,a,0.4,", "val/b/0.mp4,b,,"])):
        (dataset / f"{name}.csv").write_text("\n".join([header, *lines]))
    code, stdout, stderr = check(
        dataset, tmp_path / "out", f"data.train={dataset}/train.csv", f"data.val={dataset}/val.csv"
    )
    file = f"{dataset}/train/a/0.mp4"
    assert code == 2 and f"(1 x leak); {file} in val and {file} in train; see " in stderr, stderr
    assert "\n4 files, listed 7 times, " in stdout
    assert [tuple(row.values()) for row in rows(tmp_path / "out/problems.csv") if row["kind"] != "short"] == [
        (file, "leak", f"another segment of {file} in train"),
        (f"{dataset}/train/a/1.mp4", "duplicate", f"another segment of {dataset}/train/a/1.mp4"),
    ]


def test_segments_outside_their_video_are_broken(dataset, check, tmp_path):
    """The videos have 12 frames in 0.48 s; a clip has 4 frames."""
    lines = ["path,label,start,end", "train/a/0.mp4,a,0.48,0.6", "train/a/1.mp4,a,0.47,0.6", "train/b/0.mp4,b,0.3,0.47"]
    (dataset / "train.csv").write_text("\n".join(lines))
    (dataset / "val.csv").write_text("path,label\nval/a/0.mp4,a\nval/b/0.mp4,b\n")
    lists = [f"data.{split}={dataset / split}.csv" for split in ("train", "val")]
    code, _, stderr = check(dataset, tmp_path / "out", *lists)
    assert code == 2 and "the dataset has problems (1 x broken)" in stderr, stderr
    assert [tuple(row.values()) for row in rows(tmp_path / "out/problems.csv")] == [
        (f"{dataset}/train/a/0.mp4", "broken", "a segment starts at 0.48 s, but the video ends at 0.48 s"),
        (f"{dataset}/train/a/1.mp4", "short", "1 frames, a clip spans 4"),
    ]


def test_class_names_that_look_alike_are_listed(make_video, check, tmp_path):
    for n, name in enumerate(("jump rope", "jump_rope", "run", "Run ", "walk", "1", "1.1", "11")):
        for s, split in enumerate(("train", "val")):
            make_video(tmp_path / "data" / split / name / "0.mp4", 8, first_number=1000 * s + 50 * n)
    code, stdout, stderr = check(tmp_path / "data", tmp_path / "out")
    assert code == 0, stderr
    assert "class names that look alike: 2 (" in stdout
    pairs = json.loads((tmp_path / "out/summary.json").read_text())["similar_class_names"]
    assert sorted(map(sorted, pairs)) == [["Run ", "run"], ["jump rope", "jump_rope"]]


def test_odd_names_are_written_to_tables_and_plots(make_video, check, tmp_path):
    names = ("\U0001f600 smile", 'say "hi", $x$ $', "two\nlines", "\u202eright to left", "tab\there")
    for n, name in enumerate(names):
        for s, split in enumerate(("train", "val")):
            make_video(tmp_path / "data" / split / name / f"{name}.mp4", 8, first_number=1000 * s + 50 * n)
    shutil.copy(tmp_path / "data/train" / names[2] / f"{names[2]}.mp4", tmp_path / "data/val" / names[3] / "0.mp4")
    code, stdout, stderr = check(tmp_path / "data", tmp_path / "out")
    assert code == 2 and stderr.count("\n") == 1 and "1 x leak" in stderr, stderr
    escaped = {name.replace("\n", r"\n").replace("\t", r"\t").replace("\u202e", r"\u202e") for name in names}
    assert {row["label"] for row in rows(tmp_path / "out/files.csv")} == escaped
    assert (tmp_path / "out/check.png").exists()


def test_a_class_without_training_files_and_lists_of_several_labels(dataset, check, make_video, tmp_path):
    make_video(dataset / "train/b/0.mp4", 3, first_number=500)  # short, but usable for training
    (dataset / "train.csv").write_text("train/a/0.mp4,a\ntrain/a/1.mp4,b;a\ntrain/b/0.mp4,\n")
    (dataset / "val.csv").write_text("val/a/0.mp4,b\n")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    code, stdout, stderr = check(
        dataset, tmp_path / "out", "data.multi_label=true", f"data.class_names={tmp_path / 'names.txt'}"
    )
    assert code == 0, stderr
    assert "short: 1" in stdout and "classes without a training file: 1 (c)" in stdout
    assert "short videos: 25 % are shorter than a clip (4 frames" in stdout and "would fit 100 %" in stdout
    assert [row["label"] for row in rows(tmp_path / "out/files.csv")] == ["a", "a;b", "", "b"]


def test_bad_input(dataset, check, tmp_path):
    (tmp_path / "file").touch()
    for arguments, message in (((tmp_path / "no", tmp_path / "out"), "no such folder"),
                               ((dataset, tmp_path / "file"), "cannot be written")):  # fmt: skip
        code, stdout, stderr = check(*arguments)
        assert code == 2 and message in stderr and stderr.count("\n") == 1


@pytest.mark.slow
def test_sources_that_lists_name(dataset, check, tmp_path):
    """Sources in lists take precedence over file names: two clips of one video id have two sources here."""
    clip = "abcdefghijk_000000_00001{}.mp4"
    for split in ("train", "val"):
        (dataset / split / "a/0.mp4").rename(dataset / split / "a" / clip.format(len(split)))
        lines = [f"{split}/a/{clip.format(len(split))},a,{split}", f"{split}/a/1.mp4,a,one", f"{split}/b/0.mp4,b,"]
        (dataset / f"{split}.csv").write_text("\n".join(["path,label,source", *lines]))
    code, stdout, stderr = check(dataset, tmp_path / "out")
    assert code == 2 and "leak: 1" in stdout, stderr
    assert f"{dataset}/val/a/1.mp4 in val and {dataset}/train/a/1.mp4 in train;" in stderr
    assert [tuple(row.values()) for row in rows(tmp_path / "out/problems.csv")] == [
        (f"{dataset}/val/a/1.mp4", "leak", f"same source video as {dataset}/train/a/1.mp4 in train")
    ]
    made = [f"data.train={dataset}/train.csv", "data.val_fraction=0.5"]
    (dataset / "val.csv").unlink()
    shutil.rmtree(dataset / "val")
    code, stdout, stderr = check(dataset, tmp_path / "out", *made)
    assert code == 0 and "held out from the training files" in stdout and "leak" not in stdout, stderr


@pytest.fixture(scope="module")
def endless(make_video, tmp_path_factory):
    """Return a dataset with a file that takes minutes to decode."""
    root = tmp_path_factory.mktemp("endless") / "data"
    for n, name in enumerate(("train/a/0", "train/b/0", "val/a/0", "val/b/0")):
        make_video(root / f"{name}.mp4", 12, first_number=100 * n)
    corpus.copy(write_hanging_video, root / "train/a/long.mkv")
    return root


def begin(root, out):
    """Return the command once it decodes the slow file, and the process that reads the file."""
    settings = ("--cfg", "motion_rs.yaml", f"data.root={root}", *SETTINGS, "--out", out, "--workers", "2")
    process = start("check_dataset.py", *settings)
    return process, wait_for(lambda: reader(process.pid, root / "train/a/long.mkv"))


@pytest.mark.slow
def test_a_crashed_process_affects_only_its_file(endless, tmp_path):
    process, reading = begin(endless, tmp_path / "out")
    os.kill(reading, signal.SIGSEGV)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2 and stderr.count("\n") == 1 and "1 x broken" in stderr, stderr
    assert [tuple(row.values()) for row in rows(tmp_path / "out/problems.csv") if row["kind"] == "broken"] == [
        (f"{endless}/train/a/long.mkv", "broken", "killed the decoder (SIGSEGV)")
    ]
    assert "check: 5/5 files" in stdout and len(rows(tmp_path / "out/files.csv")) == 5


@pytest.mark.slow
def test_a_killed_process_is_a_machine_error(endless, tmp_path):
    process, reading = begin(endless, tmp_path / "out")
    os.kill(reading, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3 and stderr.count("\n") == 1, stderr
    assert f"{endless}/train/a/long.mkv: its process was killed (SIGKILL), possibly out of memory" in stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_ctrl_c(endless, tmp_path):
    process, _ = begin(endless, tmp_path / "out")
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "error: interrupted\n" and process.returncode == 130
    assert list((tmp_path / "out").iterdir()) == []
    wait_for(lambda: not group(process.pid), 10)


def test_a_full_disk(dataset, check, tmp_path):
    """The table is longer than the limit on the size of files."""
    with full_disk(500):
        code, _, stderr = check(dataset, tmp_path / "out")
    assert code == 3 and stderr.count("\n") == 1, stderr
    assert f"{tmp_path}/out/files.csv cannot be written: File too large" in stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["problems.csv"]


@pytest.mark.slow
def test_what_may_not_be_read_or_written(dataset, as_a_user, tmp_path):
    settings = ("--cfg", "motion_rs.yaml", f"data.root={dataset}", *SETTINGS, "--out", tmp_path / "target")
    (tmp_path / "target").mkdir()
    for place, message in (
        (dataset / "val/a", ": cannot be read (Permission"),
        (tmp_path / "target", " cannot be writ"),
    ):
        place.chmod(0o500 if place.name == "target" else 0)
        process = start("check_dataset.py", *settings, **as_a_user)
        stderr = process.communicate(timeout=60)[1]
        place.chmod(0o700)
        assert process.returncode == 2 and stderr.count("\n") == 1 and f"{place}{message}" in stderr, stderr
