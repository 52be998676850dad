"""Links in folders that commands write to: their targets are never changed."""

import json
import os
import shutil
from pathlib import Path

import pytest

from video_rs.files import open_append

FILES = (
    *("log.txt", "metrics.jsonl", "config.yaml", "status.json", "broken_files.csv", "best.pt", "last.pt", ".lock"),
    *(".last.pt.link", "clips_train.png", "clips_train_0.gif"),
    *(f"test/{name}" for name in ("report.html", "metrics.json", "predictions.csv", "confusion.png", "curves.png")),
    "test/views.npz",
)
FOLDERS = ("checkpoints", "tensorboard", "test", "check")


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def commands(run_tool, config, *names):
    """Run commands that write into a run folder, and return their results."""
    calls = {
        "train": ("train_net.py", "--cfg", config, "train.epochs=1"),
        "test": ("test_net.py", "--cfg", config, "test.clips=1", "test.crops=1", "test.save_views=true"),
        "show": ("show_clips.py", "--cfg", config, "--num", 1, "--gif"),
        "check": ("check_dataset.py", "--cfg", config, "--workers", 1),
    }
    return {name: run_tool(*calls[name]) for name in names}


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with a file for each link, which must stay as it is."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in FILES:
        (folder / name.replace("/", "_")).write_text('{"kind": "train", "step": 1}\n')
    return folder


@pytest.mark.parametrize("shift", [0, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 2))])
def test_files_are_not_written_through_links(tmp_path, run_tool, tiny_config, elsewhere, shift):
    run, links = tmp_path / "run", {}
    for number, name in enumerate(FILES):
        kinds = ["dangling link"] if name in ("best.pt", "last.pt") else ["link", "hard link", "dangling link"]
        links[name] = kinds[(number + shift) % len(kinds)]
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        target = elsewhere / name.replace("/", "_")
        if links[name] == "hard link":
            os.link(target, run / name)
        else:
            (run / name).symlink_to(target.with_suffix(".new") if links[name] == "dangling link" else target)
    before = content(elsewhere)
    done = commands(run_tool, tiny_config(), "train", "test", "show")
    assert {name: result.returncode for name, result in done.items()} == dict.fromkeys(done, 0), done
    assert content(elsewhere) == before
    for name in {*FILES} - {".lock", ".last.pt.link", "broken_files.csv", "test/curves.png", "last.pt"}:
        assert not (run / name).is_symlink() and (run / name).stat().st_nlink == 1, (name, links[name])


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_links_are_an_error(tmp_path, run_tool, tiny_config, elsewhere, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(elsewhere)
    before = content(elsewhere)
    command = name if name in ("test", "check") else "train"
    done = commands(run_tool, tiny_config(), *{"test": ("train", "test")}.get(name, (command,)))[command]
    expected = f"{tmp_path / 'run' / name}: is a link, which is not followed; remove it or use another folder"
    assert (done.returncode, done.stderr) == (2, f"error: {expected}\n")
    assert content(elsewhere) == before


def test_a_run_folder_can_be_a_link_itself(tmp_path, run_tool, tiny_config):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    done = run_tool("train_net.py", "--cfg", tiny_config(), "train.epochs=1")
    assert done.returncode == 0 and (tmp_path / "disk/best.pt").is_file(), done.stderr


def test_a_copy_of_a_run_by_hard_links_leaves_the_run_as_it_is(tmp_path, run_tool, tiny_config):
    run, copy = tmp_path / "run", tmp_path / "copy"
    assert run_tool("train_net.py", "--cfg", tiny_config(), "train.epochs=1").returncode == 0
    shutil.copytree(run, copy, copy_function=os.link)
    before = content(run)
    done = run_tool("train_net.py", "--cfg", run / "config.yaml", f"out={copy}")
    assert done.returncode == 0 and content(run) == before, done.stderr
    log = (run / "log.txt").read_text()
    assert (copy / "log.txt").read_text().startswith(log) and (copy / "log.txt").read_text() != log


def test_appending_creates_a_file_with_the_permissions_of_the_process(tmp_path):
    with open_append(tmp_path / "log.txt") as file:
        file.write("a\udcff\n")
    assert (tmp_path / "log.txt").read_text() == "a\\udcff\n"
    assert (tmp_path / "log.txt").stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o22))


@pytest.mark.parametrize("name", ["videos", "videos/class_1", "shards"])
def test_prepared_copies_are_not_written_through_links(tmp_path, run_tool, make_video, elsewhere, name):
    for label in ("class_1", "class_2"):
        make_video(tmp_path / "data/train" / label / "a.mp4", 8)
    out = tmp_path / "out"
    call = ("prepare_dataset.py", "--cfg", "motion_rs.yaml", f"data.root={tmp_path / 'data'}", "--out", out, "--shards")
    call += ("data.val_fraction=0.5", "--workers", 1)
    make_video(tmp_path / "data/train/class_1/b.mp4", 8, first_number=50)
    make_video(tmp_path / "data/train/class_2/b.mp4", 8, first_number=90)
    place = out / name.replace("class_1", "train/class_1")
    place.parent.mkdir(parents=True)
    place.symlink_to(elsewhere)
    before = content(elsewhere)
    done = run_tool(*call)
    assert done.returncode == 2 and f"{place}: is a link, which is not followed" in done.stderr, done.stderr
    assert content(elsewhere) == before


def test_the_embedded_dataset_is_not_written_through_links(tmp_path, run_tool, elsewhere):
    call = ("make_motion.py", "--out", tmp_path / "m", "--train", 8, "--val", 8, "--test", 8, "--size", 32)
    call += ("--frames", 4, "--workers", 1)
    assert run_tool(*call).returncode == 0
    stamp, (first, second, *_) = tmp_path / "m/motion.json", sorted((tmp_path / "m").rglob("*.mp4"))
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"complete": False}))
    first.unlink()
    first.with_suffix(".part").symlink_to(elsewhere / "log.txt")
    second.unlink()
    second.symlink_to(elsewhere / "new.mp4")
    before = content(elsewhere)
    assert run_tool(*call).returncode == 0 and content(elsewhere) == before
    assert first.is_file() and second.is_file() and not second.is_symlink()
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"complete": False}))
    shutil.rmtree(first.parent)
    first.parent.symlink_to(elsewhere)
    done = run_tool(*call)
    assert done.returncode == 2 and f"{first.parent}: is a link" in done.stderr and content(elsewhere) == before
