"""``tools/prepare_dataset.py``: its output, training on it, interruptions, bad input."""

import contextlib
import csv
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import corpus
from tests.cli.processes import group, reader, start, wait_for
from tests.commands import full_disk
from tests.conftest import write_video
from tests.data.hanging import write_hanging_video
from tests.integration.conftest import TINY, tool
from video_rs.cli.common import run
from video_rs.cli.prepare import main
from video_rs.data.tools.encode import Settings
from video_rs.data.tools.prepare import Job, _encode
from video_rs.data.video.decode import open_video
from video_rs.errors import MediaError
from video_rs.experiment.build import build_records
from video_rs.experiment.config import load_config
from video_rs.files import locked


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two classes with spaces in their names; train and val; a file that is not a video, and two with one name."""
    root = tmp_path_factory.mktemp("source") / "data"
    for first, split, count in ((0, "train", 3), (1000, "val", 2)):
        for k, name in enumerate(("juggling balls", "tap, dancing")):
            for i in range(count):
                write_video(root / split / name / f"{i}.mp4", 20, first_number=first + 100 * k + 20 * i, width=80)
    shutil.copy(root / "train/tap, dancing/1.mp4", root / "train/tap, dancing/1.mkv")
    (root / "train/juggling balls/broken.mp4").write_text("no video")
    return root


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    """(finished process, OUT)"""
    out = tmp_path_factory.mktemp("prepared") / "out"
    return prepare(source, out), out


def prepare(root, out, *arguments, **options):
    return tool(
        "prepare_dataset.py", "--cfg", "motion_rs.yaml", f"data.root={root}", "--out", out, *arguments, **options
    )


def here(*arguments):
    """Run the command in this process alone, which is faster."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run(main, ["--cfg", "motion_rs.yaml", "--workers", "1", *map(str, arguments)])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def prepare_here(root, out, *arguments):
    return here(f"data.root={root}", "--out", out, *arguments)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_what_it_writes(source, prepared):
    done, out = prepared
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "11 videos" in done.stdout and "prepare: 12/12 videos" in done.stdout
    assert "1 could not be re-encoded" in done.stdout and f"data.root={out}" in done.stdout.splitlines()[-1]
    assert (out / "class_names.txt").read_text() == "juggling balls\ntap, dancing\n"
    assert not (out / "test.csv").exists()
    assert (out / "val.csv").read_text().splitlines()[:2] == [
        "path,label",
        "videos/val/juggling balls/0.mp4,juggling balls",
    ]
    failed = list(csv.reader((out / "failed.csv").open()))
    assert failed[0] == ["path", "reason"] and failed[1][0].endswith("broken.mp4") and len(failed) == 2
    assert "videos_2/train/tap, dancing/1.mp4" in (out / "train.csv").read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["files"], summary["failed"]) == (11, 1)
    assert summary["seconds_before"] == summary["seconds_after"] == pytest.approx(11 * 0.8, abs=0.01)
    assert summary["bytes_after"] == sum(file.stat().st_size for file in out.rglob("*.mp4"))
    assert summary["settings"] == {"short_side": 256, "crf": 20, "gop": 16}


def test_the_records_are_the_same(source, prepared, frame_numbers):
    from video_rs.data.video.decode import read_frames

    overrides = [f"data.root={prepared[1]}", f"data.class_names={prepared[1] / 'class_names.txt'}"]
    before = build_records(load_config("motion_rs.yaml", [f"data.root={source}"]))
    after = build_records(load_config("motion_rs.yaml", overrides))
    for split in ("train", "val"):
        old = [i for i in range(len(before[split])) if "broken" not in before[split].path(i)]
        assert before[split].labels[old].tolist() == after[split].labels.tolist()
        assert before[split].class_names == after[split].class_names
        for i, j in zip(old, range(len(after[split]))):
            numbers = [
                frame_numbers(read_frames(r.path(k), [0, 7])) for r, k in ((before[split], i), (after[split], j))
            ]
            assert numbers[0] == numbers[1]
    assert after["test"] is after["val"]


def test_names_that_go_to_other_files(tmp_path):
    """A copy follows its source when another file takes its name as the dataset grows."""
    root, out = tmp_path / "data", tmp_path / "out"
    for k, name in enumerate(("a", "b")):
        for i in range(2):
            write_video(root / "train" / name / f"{i}.mp4", 10, first_number=100 * k + 20 * i)
    (root / "train" / "b" / ("n" * 248 + ".mp4")).write_bytes(b"")
    assert prepare_here(root, out).returncode == 0
    assert "too long" in (out / "failed.csv").read_text()
    write_video(root / "train" / "a" / "0.avi", 10, first_number=60, codec="mpeg4")
    assert prepare_here(root, out).returncode == 0
    assert prepare_here(root, tmp_path / "anew").returncode == 0
    assert tree(out) == tree(tmp_path / "anew")


def test_copies_have_unique_names_on_every_file_system(tmp_path):
    """Copies do not overwrite each other on file systems that ignore case and Unicode form."""
    names = ("clip", "CLIP", "caf\u00e9", "cafe\u0301")
    for n, name in enumerate(names):
        write_video(tmp_path / "data/train/a" / f"{name}.mp4", 10, first_number=20 * n)
    write_video(tmp_path / "data/train/b/0.mp4", 10, first_number=500)
    done = prepare_here(tmp_path / "data", tmp_path / "out", "--shards")
    assert done.returncode == 0, done.stderr
    copies = [row["path"] for row in csv.DictReader((tmp_path / "out/train.csv").open(encoding="utf-8"))]
    (index,) = (tmp_path / "out/shards").glob("*.csv")
    packed = [row["name"] for row in csv.DictReader(index.open(encoding="utf-8"))][:-1]
    for written in (copies, packed):
        assert len({unicodedata.normalize("NFC", name).casefold() for name in written}) == len(written) == 5


def test_lists_keep_segments_and_splits(source, tmp_path):
    clips = [f"train/{name}/{i}.mp4" for name in ("juggling balls", "tap, dancing") for i in (0, 1)]
    rows = [("path", "label", "start", "end", "split")]
    for clip in clips:
        rows += [(clip, f"{start} s", start, start + 0.4, ("train", "test")["1" in clip]) for start in (0, 1)]
    with open(tmp_path / "all.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    done = prepare_here(source, tmp_path / "out", f"data.list={tmp_path / 'all.csv'}")
    assert done.returncode == 0, done.stderr
    for split in ("train", "test"):
        written = list(csv.reader((tmp_path / "out" / f"{split}.csv").open(newline="", encoding="utf-8")))
        assert written[0] == ["path", "label", "start", "end"]
        wanted = [(f"videos/{path}", label, float(a), b) for path, label, a, b, part in rows[1:] if part == split]
        assert [(path, label, float(a), float(b)) for path, label, a, b in written[1:]] == wanted


def test_files_without_extension_gifs_and_frame_folders(make_video, assets, tmp_path):
    root = tmp_path / "data"
    for name, number in (("run/noext", 0), ("run/deep/er/v.2", 100), ("swim/a.mp4", 200)):
        make_video(tmp_path / "made.mp4", 10, first_number=number)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "made.mp4", root / name)
    shutil.copy(assets / "cases/vfr_gif.gif", root / "swim/x.gif")
    (root / "swim/frames").mkdir()
    Image.new("RGB", (8, 8)).save(root / "swim/frames/0.png")
    names = ("run/noext", "run/deep/er/v.2", "swim/a.mp4", "swim/x.gif", "swim/frames")
    lines = ["path,label", *(f"{name},{name.split('/')[0]}" for name in names)]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    lists = [f"data.{split}={tmp_path / 'train.csv'}" for split in ("train", "val")]
    done = prepare_here(root, tmp_path / "out", *lists)
    assert done.returncode == 0 and not done.stderr, done.stderr
    copies = ["videos/run/noext.mp4", "videos/run/deep/er/v.mp4", "videos/swim/a.mp4", "videos/swim/x.mp4"]
    assert [row["path"] for row in csv.DictReader((tmp_path / "out/train.csv").open())] == copies
    failed = list(csv.DictReader((tmp_path / "out/failed.csv").open()))
    assert failed == [{"path": f"{root}/swim/frames", "reason": "a folder, not a file"}]
    with open_video(tmp_path / "out/videos/swim/x.mp4") as video, open_video(root / "swim/x.gif") as gif:
        assert video.num_frames == gif.num_frames and np.allclose(video.times, gif.times, atol=1e-3)


def test_segments_are_refused_in_shards(source, tmp_path):
    lines = ["path,label,start,end", *(f"train/{name}/0.mp4,{name},0,0.4" for name in ("juggling balls", "swim"))]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    shutil.copytree(source / "train", tmp_path / "root/train")
    shutil.copytree(source / "train/juggling balls", tmp_path / "root/train/swim")
    lists = [f"data.{split}={tmp_path / 'train.csv'}" for split in ("train", "val")]
    done = prepare_here(tmp_path / "root", tmp_path / "out", *lists, "--shards")
    refused(done, 2, "the train list has segments (start, end), which shards do not support; omit --shards")
    assert not (tmp_path / "out").exists()


def test_a_deleted_output_folder_is_an_error(slow_source, tmp_path):
    process = begin(slow_source, tmp_path / "out")
    wait_for(lambda: any((tmp_path / "out").rglob("*.mp4*")))
    (tmp_path / "out").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved")
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode in (2, 3) and stderr.count("\n") == 1 and f"{tmp_path}/out" in stderr, stderr
    assert not list((tmp_path).rglob("*.csv"))


def test_a_source_of_another_size_is_encoded_anew(make_video, tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    for name in ("a/0", "a/1", "b/0", "b/1"):
        make_video(root / f"{name}.mp4", 10)
    assert prepare_here(root, out).returncode == 0
    before = {name: (out / name).stat().st_ino for name in tree(out) if name.endswith(".mp4")}
    make_video(root / "b/0.mp4", 12, first_number=500)
    assert prepare_here(root, out).returncode == 0
    after = {name: (out / name).stat().st_ino for name in before}
    assert [name for name in before if before[name] != after[name]] == ["videos/b/0.mp4"]
    with open_video(out / "videos/b/0.mp4") as video:
        assert video.num_frames == 12


def test_a_damaged_copy_is_made_again(make_video, assets, tmp_path):
    job = Job(str(make_video(tmp_path / "a.mp4", 10)), "copy.mp4", "a.mp4")
    shutil.copy(assets / "cases/m00392_h264frag.mp4", tmp_path / "copy.mp4")
    assert _encode(str(tmp_path), Settings(), job, lambda: None).problem == ""
    with open_video(tmp_path / "copy.mp4") as video:
        assert video.num_frames == 10


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 10**6), os.unlink])
def test_a_source_that_changes_during_encoding_has_no_copy(change, make_video, tmp_path):
    source = make_video(tmp_path / "a.mp4", 10)
    job, calls = Job(str(source), "copy.mp4", "a.mp4"), itertools.count()
    with pytest.raises(MediaError, match="changed or deleted while it was read"):
        _encode(str(tmp_path), Settings(), job, lambda: None if next(calls) else change(source))
    assert not (tmp_path / "copy.mp4").exists()


def test_it_goes_on_and_keeps_what_is_there(source, prepared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(prepared[1], out)
    kept, gone = out / "videos/val/juggling balls/0.mp4", out / "videos/val/juggling balls/1.mp4"
    gone.unlink()
    for name in ("train.csv", "summary.json"):
        (out / name).unlink()
    (out / "videos/val/.1.mp4.a1b2c3d4").write_text("left behind by a process that was killed")
    (out / "test.csv").write_text("of another time")
    before = kept.stat()
    assert prepare_here(source, out).returncode == 0
    assert tree(out) == tree(prepared[1]) and kept.stat().st_mtime_ns == before.st_mtime_ns
    assert kept.stat().st_ino == before.st_ino


def test_lists_without_a_validation_split_and_several_labels(source, tmp_path):
    """One list of files in two folders, an empty root, labels as numbers and sets."""
    lines = [f"{source}/train/juggling balls/{i}.mp4 {label}" for i, label in enumerate(("0;2", "1", ""))]
    lines += [f"{source}/val/tap, dancing/{i}.mp4,{i}" for i in range(2)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    config = ["data.root=", "data.multi_label=true", f"data.train={tmp_path / 'list.txt'}"]
    done = here(*config, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/train.csv").read_text().splitlines() == [
        "path,label",
        "videos/train/juggling balls/0.mp4,0;2",
        "videos/train/juggling balls/1.mp4,1",
        "videos/train/juggling balls/2.mp4,",
        '"videos/val/tap, dancing/0.mp4",0',
        '"videos/val/tap, dancing/1.mp4",1',
    ]
    assert not (tmp_path / "out/val.csv").exists()
    told = [part for part in done.stdout.splitlines()[-1].split() if "=" in part]
    assert f"data.train={tmp_path / 'out/train.csv'}" in told
    assert build_records(load_config("motion_rs.yaml", told))["train"].multi_label


def test_a_split_by_listed_sources_is_kept(source, tmp_path):
    lines = [f"train/juggling balls/{i}.mp4,{i % 2},s{i % 2}" for i in range(3)]
    lines += [f"clips/tap/{i}.mp4,{i},t{i}" for i in range(2)]
    (tmp_path / "list.csv").write_text("path,label,source\n" + "\n".join(lines))
    root = tmp_path / "root"
    shutil.copytree(source, root)
    (root / "val").rename(root / "clips")
    (root / "clips/tap, dancing").rename(root / "clips/tap")
    shutil.rmtree(root / "train/tap, dancing")
    settings = [f"data.train={tmp_path / 'list.csv'}", "data.val_fraction=0.4"]
    assert prepare_here(root, tmp_path / "out", *settings, "--shards").returncode == 0
    made = build_records(load_config("motion_rs.yaml", [f"data.root={root}", *settings]))
    for split in ("train", "val"):
        listed = (tmp_path / f"out/{split}.csv").read_text().splitlines()[1:]
        paths = [made[split].path(i) for i in range(len(made[split]))]
        assert [line.split(",")[0] for line in listed] == [f"videos/{os.path.relpath(path, root)}" for path in paths]
    listed = build_records(load_config("motion_rs.yaml", [f"data.root={tmp_path / 'out'}"]))
    assert [len(set(listed[split].sources)) for split in made] == [len(set(made[split].sources)) for split in made]
    packed = build_records(load_config("motion_rs.yaml", [f"data.root={tmp_path / 'out/shards'}"]))
    for split in ("train", "val"):
        assert sorted(packed[split].sources) == sorted(made[split].sources)


@pytest.mark.slow
def test_the_result_passes_the_check_and_trains(prepared, tmp_path):
    import yaml

    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "out": str(tmp_path / "run")}))
    overrides = [f"data.root={prepared[1]}", f"data.class_names={prepared[1] / 'class_names.txt'}", "train.epochs=1"]
    done = tool("check_dataset.py", "--cfg", tmp_path / "tiny.yaml", *overrides, "--out", tmp_path / "check")
    assert done.returncode == 0, done.stderr
    done = tool("train_net.py", "--cfg", tmp_path / "tiny.yaml", *overrides, "train.batch_size=4")
    assert done.returncode == 0, done.stderr


def begin(root, out, *arguments, **options):
    settings = ("--cfg", "motion_rs.yaml", f"data.root={root}", "--out", out, "--workers", "2")
    return start("prepare_dataset.py", *settings, *arguments, **options)


@pytest.fixture(scope="module")
def slow_source(tmp_path_factory):
    """Return videos that take some tenths of a second each."""
    root = tmp_path_factory.mktemp("slow") / "data"
    first = write_video(root / "train/a/0.mp4", 150, height=240, width=320, options={"preset": "ultrafast"})
    for name in ("train/a/1", "train/b/0", "train/b/1", "val/a/0", "val/b/0"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(first, root / f"{name}.mp4")
    return root


@pytest.fixture(scope="module")
def undisturbed(slow_source, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert prepare(slow_source, out, "--workers", "1").returncode == 0
    return tree(out)


def disturb(root, out, whole_group, after):
    """Kill a run some seconds after it has started its first file. No process may survive."""
    process = begin(root, out)
    wait_for(lambda: process.poll() is not None or any(out.rglob("*.mp4*")))
    time.sleep(after)
    if process.poll() is None:
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    try:
        wait_for(lambda: not group(process.pid), 10)
    finally:
        for orphan in group(process.pid):
            os.kill(orphan, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_killed_and_started_again(slow_source, undisturbed, tmp_path):
    out = tmp_path / "out"
    disturb(slow_source, out, False, 0.1)
    assert tree(out) != undisturbed
    assert prepare(slow_source, out).returncode == 0
    assert tree(out) == undisturbed


@pytest.mark.exhaustive
@pytest.mark.parametrize("whole_group", [False, True])
def test_killed_at_random_moments(whole_group, slow_source, undisturbed, tmp_path):
    rng = random.Random(int(whole_group))
    for number in range(4):
        out = tmp_path / str(number)
        for _ in range(3):
            disturb(slow_source, out, whole_group, rng.uniform(0, 1.0))
        assert prepare(slow_source, out).returncode == 0
        assert tree(out) == undisturbed


@pytest.mark.slow
def test_ctrl_c(slow_source, tmp_path):
    process = begin(slow_source, tmp_path / "out")
    wait_for(lambda: any((tmp_path / "out").rglob("*.mp4*")))
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "error: interrupted\n" and process.returncode == 130
    wait_for(lambda: not group(process.pid), 10)  # multiprocessing's tracker exits a little later


@pytest.mark.slow
def test_files_that_hang_or_crash_their_process_are_named(slow_source, undisturbed, tmp_path):
    """Two files take minutes each: stop the process of one and kill that of the other."""
    root, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(slow_source, root)
    bad = corpus.copy(write_hanging_video, root / "train/a/hangs.mkv"), root / "train/b/dies.mkv"
    shutil.copy(*bad)
    process = begin(root, out, "data.timeout=2")
    for path, number in zip(bad, (signal.SIGSTOP, signal.SIGSEGV)):
        pid = wait_for(lambda path=path: reader(process.pid, path))
        wait_for(lambda path=path: list((out / "videos").rglob(f".{path.stem}.mp4.*")))
        os.kill(pid, number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and not errors, errors
    assert "6 videos" in output and "prepare: 8/8 videos" in output and "2 could not be re-encoded" in output
    reasons = dict(list(csv.reader((out / "failed.csv").open()))[1:])
    assert list(reasons) == [str(path) for path in bad]
    assert "no progress for 2 s" in reasons[str(bad[0])] and "killed the decoder (SIGSEGV)" in reasons[str(bad[1])]
    made = {name: data for name, data in tree(out).items() if name.endswith(".mp4")}
    assert made == {name: data for name, data in undisturbed.items() if name.endswith(".mp4")}
    assert not list(out.rglob("*.mp4.*"))


def refused(done, code, *messages):
    assert done.returncode == code and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    assert all(message in done.stderr for message in messages), done.stderr


def test_bad_input(source, prepared, tmp_path):
    before = tree(source)
    refused(prepare_here(source, prepared[1], "--crf", 21), 2, "made with crf 20, not 21")
    refused(prepare_here(source, source / "small"), 2, "lies in the source")
    refused(prepare_here(source, source), 2, "lies in the source")
    (tmp_path / "file").touch()
    refused(prepare_here(source, tmp_path / "file/out"), 2, "--out", "cannot be made")
    refused(prepare_here(source, tmp_path), 2, "not empty and was not made by this command")
    refused(prepare_here(source, tmp_path / "out", "--short-side", 255), 2, "short side of 255")
    refused(prepare_here(tmp_path / "nowhere", tmp_path / "out"), 2, "no such folder")
    refused(prepare_here(tmp_path / "file", tmp_path / "out"), 2, "data.root=", "a file, give its folder")
    refused(prepare_here(source, "s3://bucket/out"), 2, "--out s3://bucket/out", "a local folder")
    refused(prepare_here(source, tmp_path / "out", "--shard-mb", 5), 2, "--shard-mb", "--shards")
    assert tree(source) == before and not (tmp_path / "out").exists()


def test_bad_datasets(source, tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "0.png")
        (tmp_path / "frames" / name / "clip").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "frames" / name / "clip" / "0.png")
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "0.mp4").write_text("no video")
    refused(prepare_here(tmp_path / "images", tmp_path / "out"), 2, "images", "prepare is for video files")
    of_frames = prepare_here(tmp_path / "frames", tmp_path / "out", "data.frame_folders=true")
    refused(of_frames, 2, "folders of frames (", "train/a/clip", "prepare is for video files")
    refused(prepare_here(tmp_path / "broken", tmp_path / "out"), 2, "none of the 4 videos could be re-encoded")
    shutil.copytree(source, tmp_path / "odd")
    (tmp_path / "odd/train/tap, dancing").rename(tmp_path / "odd/train/1.5")
    shutil.rmtree(tmp_path / "odd/val")
    refused(prepare_here(tmp_path / "odd", tmp_path / "out2"), 2, "class name '1.5'")


def test_a_full_disk(source, tmp_path):
    with full_disk(2000):
        done = prepare(source, tmp_path / "out")
    refused(done, 3, "cannot be written: File too large")
    assert not list((tmp_path / "out").rglob(".*"))


def test_another_command_writes_there(source, tmp_path):
    with locked(tmp_path / "out"):
        refused(prepare_here(source, tmp_path / "out"), 2, "being written by another command")


@pytest.mark.slow
def test_what_may_not_be_read_or_written(source, as_a_user, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(source, root)
    (root / "train/juggling balls").chmod(0)
    done = prepare(root, tmp_path / "out", **as_a_user)
    refused(done, 2, f"{root}/train/juggling balls: cannot be read (Permission denied)")
    (root / "train/juggling balls").chmod(0o700)
    (tmp_path / "target").mkdir(mode=0o500)
    for out in (tmp_path / "target/out", tmp_path / "target"):
        said = f"--out {out} cannot be made or written (Permission denied); give another folder"
        refused(prepare(root, out, **as_a_user), 2, said)
    (root / "train/juggling balls/0.mp4").chmod(0)
    assert prepare(root, tmp_path / "out", **as_a_user).returncode == 0
    failed = dict(list(csv.reader((tmp_path / "out/failed.csv").open()))[1:])
    assert "Permission denied" in failed[f"{root}/train/juggling balls/0.mp4"] and len(failed) == 2
