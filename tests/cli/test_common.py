"""Shared by all commands: their arguments, and their messages when something goes wrong."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from video_rs.cli import common, main
from video_rs.data.tools.pool import watched_calls
from video_rs.errors import UserError
from video_rs.experiment import config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name, script", [item for item in common.SCRIPTS.items() if item[0] != "status"])
def test_a_missing_package_is_one_line(name, script):
    tool = ROOT / "tools" / script
    assert f'main("{name}")' in tool.read_text()
    arguments = {
        "predict": ["--weights=x.pt", "x.mp4"],
        "explain": ["--weights=x.pt", "--out=cam.mp4", "x.mp4"],
        "make-motion": [],
        "models": [],
        "probe": ["f.npz"],
        "push": ["--weights=x.pt", "--repo=me/x"],
        "inflate": ["--weights=x.pt", "--out=y.pt"],
        "convert": ["--from=timm", "--model=resnet_rs_50", "--out=y.pt"],
    }
    command = [sys.executable, "-S", str(tool), *arguments.get(name, ["--cfg=k400_rs50"])]  # without site-packages
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: the package ") and sys.executable in done.stderr


def test_all_tools_have_a_command():
    alone = {"convert_tensorflow.py"}  # run once by few, and no part of the package
    assert {*common.SCRIPTS.values(), *alone} == {path.name for path in (ROOT / "tools").glob("*.py")}


def shown(capsys, name, *arguments):
    with pytest.raises(SystemExit):
        main.dispatch([name, *arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "test", "check", "index", "prepare", "show-clips", "average"])
def test_help_shows_ten_keys_and_help_all_every_key(capsys, name):
    keys = config.flatten(config.Config())
    text = shown(capsys, name, "--help")
    assert sum(f"\n  {key} " in text for key in keys) == 10 and "--help-all" in text
    everything = shown(capsys, name, "--help-all")
    assert all(f"\n  {key} " in everything for key in keys)


def test_the_same_words_in_all_commands_and_older_spellings_unlisted(capsys):
    for name in ("predict", "convert", "inflate"):
        text = shown(capsys, name, "--help")
        assert "--weights FILE" in text and ("--out FILE" in text or name == "predict")
    assert "--from" not in text  # of inflate, where it named the file
    assert common.run(main.dispatch, ["inflate", "--from", "gone.pt", "--out", "x.pt"]) == 2
    assert "gone.pt" in capsys.readouterr().err
    assert common.run(main.dispatch, ["inflate", "--out", "x.pt"]) == 2
    assert "--weights is required" in capsys.readouterr().err


@pytest.fixture
def fake_python(tmp_path, monkeypatch):
    """An environment in ``env`` of the current folder."""
    monkeypatch.chdir(tmp_path)
    bin = tmp_path / "env" / "bin"
    bin.mkdir(parents=True)
    for name in ("python", "python3", "video-rs"):
        (bin / name).symlink_to(shutil.which("true"))
    monkeypatch.setattr(sys, "executable", str(bin / "python"))
    return bin


@pytest.mark.parametrize("active", [False, True])
def test_the_next_command_works_as_printed(fake_python, monkeypatch, active):
    if active:
        monkeypatch.setenv("PATH", str(fake_python), prepend=os.pathsep)

    def after(called):
        monkeypatch.setattr(sys, "argv", [called])
        return common.command("test", "--cfg", "a b.yaml")

    python = "" if active else "env/bin/python "
    assert after("tools/train_net.py") == f"{python}tools/test_net.py --cfg 'a b.yaml'"
    assert after("/far/tools/train_net.py") == f"{python}/far/tools/test_net.py --cfg 'a b.yaml'"
    assert after("train_net.py") == f"{python}./test_net.py --cfg 'a b.yaml'"
    console = "video-rs" if active else "env/bin/video-rs"
    assert after(str(fake_python / "video-rs")) == f"{console} test --cfg 'a b.yaml'"
    assert after("notebook.py") == "video-rs test --cfg 'a b.yaml'"


def test_a_printed_command_holds_no_token():
    printed = common.command("train", "--cfg", "a.yaml", "train.init_from=https://h/a.pt?token=secret")
    assert printed.endswith("train --cfg a.yaml train.init_from=https://h/a.pt")


def test_file_names_that_are_not_utf8_are_printed():
    code = (
        "import sys; from video_rs.cli.common import run; sys.exit(run(lambda argv: print(argv[0]), ['a\\udcff.mp4']))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "a\\udcff.mp4\n"), done.stderr


def test_progress_in_a_log(capsys):
    assert list(common.progress("abcdefghijklmnopqrstuvwxy", desc="drawing", unit="letters"))[-1] == "y"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13 and lines[0] == "drawing: 2/25 letters" and lines[-1] == "drawing: 25/25 letters"


def test_sizes_as_text():
    assert [common.size_text(size) for size in (0, 999, 24_310, 2.5e6, 4.5e11)] == (
        ["0 bytes", "999 bytes", "24.3 kB", "2.5 MB", "450.0 GB"]
    )


def _die(number, beat):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_one_line(capsys):
    assert common.run(lambda argv: list(watched_calls(_die, range(2), 2, 1.0)), []) == 3
    error = capsys.readouterr().err
    assert "its process was killed (SIGKILL)" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOENT, 2), (errno.EACCES, 2), (errno.ENOSPC, 3), (errno.ETIMEDOUT, 3)],
)
def test_errors_of_the_system_are_one_line(capsys, number, code):
    def main(argv):
        raise OSError(number, os.strerror(number), "/data/a.mp4")

    assert common.run(main, []) == code
    assert capsys.readouterr().err == f"error: /data/a.mp4: {os.strerror(number)}\n"


def test_messages_are_printable_and_truncated(capsys):
    def main(argv):
        raise UserError(f"data.root=a\x1b[31m\n\u202eb{'x' * 100_000}: no such folder {'y ' * 50_000}")

    assert common.run(main, []) == 2
    err = capsys.readouterr().err
    assert err.startswith(r"error: data.root=a\x1b[31m \u202ebxxx") and err.count("\n") == 1
    assert err.strip().isprintable() and len(err) < 1500 and not re.search(r"\w{101}", err)


@pytest.mark.parametrize("written", ["~/x", "$HOME/x", "${PLACE}/x"])
def test_home_and_variables_are_expanded_in_every_path_of_a_command(monkeypatch, tmp_path, written, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main.dispatch(["make-motion", "--out", written, "--train=8", "--val=8", "--test=8", "--frames=8"]) == 0
    (tmp_path / "x.mp4").touch()
    (tmp_path / "x" / "mine.yaml").write_text("data: {root: $HOME/x/data}\n")
    for argv in (
        ["predict", "--weights", f"{written}/none.pt", "x.mp4"],
        ["convert", "--weights", f"{written}/none.pt", "--out", f"{written}/out.pt"],
        ["inflate", "--weights", f"{written}/none.pt", "--out", f"{written}/out.pt"],
        ["inflate", "--weights", "timm", "--class-names", f"{written}/none.pt", "--out", f"{written}/out.pt"],
        ["test", "--cfg", f"{written}/mine.yaml", f"weights={written}/none.pt"],
        ["status", f"{written}/none.pt"],
        ["check", "--cfg", "motion_rs", f"data.root={written}/none.pt", f"out={written}"],
        ["predict", "--weights=x.pt", "--plugins", f"{written}/none.pt.py", "x.mp4"],
    ):
        assert common.run(main.dispatch, argv) == 2, argv
        assert f"{tmp_path}/x/none.pt" in capsys.readouterr().err, argv
    assert common.run(main.dispatch, ["predict", "--weights", "$NOT_SET_HERE/x", "x.mp4"]) == 2
    assert "the environment variable NOT_SET_HERE is not set" in capsys.readouterr().err
    assert not (tmp_path / "~").exists() and not list(tmp_path.glob("$*"))


def test_similar_paths_of_a_command_are_resolved_with_a_note(tmp_path, capsys):
    (tmp_path / "cafe\u0301.pt").write_bytes(b"no checkpoint")
    assert common.run(main.dispatch, ["predict", "--weights", f"{tmp_path}/Caf\u00e9.pt", str(tmp_path)]) == 2
    note, error = capsys.readouterr().err.splitlines()
    assert note.startswith("note: the path: '") and note.isascii() and "cafe\u0301.pt" in error


def test_a_missing_package_without_a_name_is_one_line(capsys):
    def main(argv):
        raise ModuleNotFoundError("install lz4 to read this\nand so on")

    assert common.run(main, []) == 3
    assert capsys.readouterr().err.startswith("error: install lz4 to read this in ")


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/data/a.mp4"), "too many open files: raise `ulimit -n`"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "no more processes or threads can be started"),
        (RuntimeError("can't start new thread"), "no more processes or threads can be started: raise `ulimit -u`"),
        (OSError("AF_UNIX path too long"), "the path of TMPDIR is too long for a socket: set TMPDIR=/tmp"),
        (RuntimeError("unable to resize file: File too large (27)"), "the limit of file sizes is too low for batches"),
    ],
    ids=["descriptors", "processes", "threads", "TMPDIR", "file sizes"],
)
def test_a_missing_resource_is_one_line(capsys, error, start):
    def main(argv):
        raise error

    assert common.run(main, []) == 3
    err = capsys.readouterr().err
    assert err.startswith(f"error: {start}") and err.count("\n") == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried 2 GiB"), "bad_alloc"])
def test_out_of_memory_is_one_line(capsys, error):
    def main(argv):
        raise error if isinstance(error, Exception) else RuntimeError(f"std::{error}")

    assert common.run(main, []) == 3
    out, err = capsys.readouterr()
    assert err.startswith("error: out of memory: lower data.workers or train.micro_batch") and err.count("\n") == 1


@pytest.mark.parametrize(
    "words, setting",
    [
        (["--data.root", "X"], "data.root=X"),
        (["--data.root=X"], "data.root=X"),
        (["-data.root", "X"], "data.root=X"),
        (["--optim.lr", "0.1", "train.epochs=3"], "optim.lr=0.1"),
        (["--lr", "0.1"], "optim.lr=0.1"),
        (["--batch-size=8"], "train.batch_size=8"),
        (["--data.rooot", "X"], "data.root=X"),
        (["--out", "X"], "out=X"),
        (["--train.init_from", "https://h/a.pt?token=secret"], "train.init_from=https://h/a.pt"),
        (["--data.root"], "data.root=VALUE"),
        (["data.root", "X"], "data.root=X"),
        (["data.root", "=", "X"], "data.root=X"),
        (["data.root:", "X"], "data.root=X"),
        (["optim.lr", "=0.1"], "optim.lr=0.1"),
        (["\N{EM DASH}data.root", "X"], "data.root=X"),
        (["--DATA.ROOT", "X"], "data.root=X"),
        (["--train.wandb", "train.epochs=3"], "train.wandb=VALUE"),
        (["--train.init_from=https://h/a.pt?token=secret"], "train.init_from=https://h/a.pt"),
    ],
)
def test_settings_with_dashes_or_blanks_name_the_setting(capsys, words, setting):
    assert common.run(main.dispatch, ["train", "--cfg", "k400_rs50", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"; write {setting}" in error and "secret" not in error


@pytest.mark.parametrize(
    "argv, option",
    [
        (["predict", "--weight", "x.pt", "x.mp4"], "did you mean --weights?"),
        (["test", "--weight=x.pt"], "did you mean --weights?"),
        (["train", "--config", "k400_rs50"], "did you mean --cfg?"),
        (["train", "--cfg", "k400_rs50", "--dryrun"], "did you mean --dry-run?"),
        (["check", "--cfg", "k400_rs50", "--worker=4"], "did you mean --workers?"),
        (["inflate", "--form", "x.pt"], "did you mean --from?"),
        (["train", "--cfg", "k400_rs50", "--gpus", "2"], "see video-rs train --help"),
        (["train", "--cfg", "k400_rs50", "--set", "data.root=X"], "see video-rs train --help"),
    ],
)
def test_a_mistyped_option_names_the_nearest(capsys, argv, option):
    assert common.run(main.dispatch, argv) == 2
    name = next(word.partition("=")[0] for word in argv[::-1] if word.startswith("--"))
    assert capsys.readouterr().err == f"error: {name}: no such option; {option}\n"
