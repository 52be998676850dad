"""Training and testing from local shards and from an S3 server give the results of files, bit for bit."""

import csv
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml

from tests.commands import full_disk
from tests.conftest import same
from tests.data.test_shards import members, pack_splits
from tests.integration.conftest import REPOSITORY, TINY, process
from tests.integration.test_bad_input import assert_one_line
from tests.integration.test_resume import assert_same, interrupt_after
from tests.integration.test_resume import run as train_here
from video_rs import checkpoint
from video_rs.cli import check, index, predict, prepare
from video_rs.cli.common import run
from video_rs.data import storage
from video_rs.data.loader import clip_loader
from video_rs.data.sampler import BatchStream
from video_rs.errors import UserError
from video_rs.experiment import build
from video_rs.experiment.config import load_config
from video_rs.experiment.run import options_of
from video_rs.training import recipe


@pytest.fixture(scope="session")
def shards(tiny_videos, tmp_path_factory):
    """(folder of shards, folder of lists of the same files in the same order)"""
    folder, lists = tmp_path_factory.mktemp("packed") / "shards", tmp_path_factory.mktemp("lists")
    splits = {
        split: {file: file.parent.name for file in sorted((tiny_videos / split).rglob("*.mp4"))}
        for split in ("train", "val", "test")
    }
    packed = pack_splits(folder, splits, 45_000)
    for split in splits:
        files = members(shard for shard in packed if shard.split == split).values()
        (lists / f"{split}.csv").write_text("".join(f"{file},{Path(file).parent.name}\n" for file in files))
    assert len(list(folder.glob("train-*.tar"))) > 3
    return folder, lists


@pytest.fixture(scope="module")
def s3(shards):
    """(server of the shards in s3://data/tiny, environment variables that select it)"""
    boto3, server = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    address = f"http://{host}:{port}"
    environment = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=address, **keys)
    client.create_bucket(Bucket="data")
    client.create_bucket(Bucket="top")
    for file in shards[0].iterdir():
        client.upload_file(str(file), "data", f"tiny/{file.name}")
        client.upload_file(str(file), "top", file.name)
    yield running, environment
    running.stop()


@pytest.fixture
def here(s3, monkeypatch):
    """Environment variables that select the server, in this process."""
    for name, value in s3[1].items():
        monkeypatch.setenv(name, value)


def batches(path, workers, *overrides):
    config = load_config(path, overrides)
    records = build.build_records(config, ["train"])["train"]
    stream = BatchStream(len(records), batch_size=8, num_steps=6, seed=3, **recipe.order(options_of(config), records))
    return list(clip_loader(build.train_dataset(config, records), stream, workers=workers))


def test_the_batches_are_those_of_the_files(tiny_config, shards, here):
    path = tiny_config(data__repeats=2)
    files = batches(path, 0, f"data.root={shards[1]}")
    pattern = f"s3://top/train-{{000000..{_last(shards, 'train')}}}.tar"
    for root, workers in ((shards[0], 0), (shards[0], 2), ("s3://data/tiny", 2), ("s3://top", 0)):
        ours = batches(path, workers, f"data.root={root}", *([f"data.train={pattern}"] if root == "s3://top" else []))
        for batch, theirs in zip(ours, files, strict=True):
            assert all(torch.equal(batch[key], theirs[key]) for key in ("clip", "label", "index"))
            assert not batch["broken"]
    blocks = batches(path, 0, f"data.root={shards[0]}", "data.shuffle_block=6")
    assert not all(torch.equal(a["index"], b["index"]) for a, b in zip(blocks, files))


@pytest.mark.slow
def test_commands_end_with_the_same_weights_and_scores(tiny_config, run_tool, shards, s3, tmp_path):
    path, results = tiny_config(data__workers=2), {}
    environment = s3[1]
    for name, root in (("files", shards[1]), ("shards", "s3://data/tiny/{train,val,test}-{000000..000000}.tar")):
        if name == "shards":
            count = len(list(shards[0].glob("train-*.tar")))
            pattern = f"s3://data/tiny/train-{{000000..{count - 1:06d}}}.tar"
            others = [f"data.{s}=s3://data/tiny/{s}-{{000000..{_last(shards, s)}}}.tar" for s in ("val", "test")]
            overrides = ["data.root=", f"data.train={pattern}", *others]
        else:
            overrides = [f"data.root={root}"]
        out = tmp_path / name
        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            done = run_tool("train_net.py", "--cfg", path, f"out={out}", *overrides)
            assert done.returncode == 0 and not done.stderr, done.stderr
            done = run_tool("test_net.py", "--cfg", path, f"out={out}", *overrides)
            assert done.returncode == 0 and "8 of 8 scored" in done.stdout, done.stderr
        metrics = json.loads((out / "test" / "metrics.json").read_text())
        assert str(overrides[-1]).partition("=")[2] in metrics.pop("about")["data"]
        results[name] = checkpoint.load(out / "last.pt"), metrics
    assert same(results["files"][0]["model"], results["shards"][0]["model"])
    assert same(results["files"][0]["ema"], results["shards"][0]["ema"])
    assert results["files"][1] == results["shards"][1]
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        member = _member(shards, "s3://data/tiny")
        done = run_tool("predict.py", "--weights", tmp_path / "shards" / "best.pt", member, f"{member}x")
        assert done.returncode == 2 and f"error: {member}x: no such file in the shard\n" in done.stderr
        assert done.stdout.startswith(member)


def _last(shards, split):
    return f"{len(list(shards[0].glob(f'{split}-*.tar'))) - 1:06d}"


def _member(shards, root):
    """Return the path of a video."""
    return f"{root}/val-000000.tar/{table(shards[0] / 'val-000000.tar.csv')[0]['name']}"


def table(file):
    with open(file, newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.slow
def test_resumed_in_the_middle_of_a_block(tiny_config, shards, tmp_path):
    """24 videos, batches of 8, blocks of about 10."""
    options = {"data__root": str(shards[0]), "data__shuffle_block": 10, "data__workers": 2}
    assert train_here(tiny_config(**options, out=str(tmp_path / "undisturbed"))) == 0
    undisturbed = checkpoint.load(tmp_path / "undisturbed" / "last.pt")
    for step in (1, 4):
        path = tiny_config(**options, out=str(tmp_path / f"interrupted{step}"))
        with pytest.MonkeyPatch.context() as patch:
            interrupt_after(patch, step)
            assert train_here(path) == 130
        assert train_here(path) == 0
        assert_same(checkpoint.load(tmp_path / f"interrupted{step}" / "last.pt"), undisturbed)


def commanded(command, capsys, *arguments):
    """Check exit code and the one line of an error."""
    code = run(command, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.err.count("\n") == (1 if code else 0), captured.err
    return code, captured.err


def test_unreachable_shards_are_an_error(tiny_config, shards, here, capsys, tmp_path):
    from video_rs.cli.train import main

    path = tiny_config()

    def refused(root, code, *messages):
        found, line = commanded(main, capsys, "--cfg", path, f"data.root={root}")
        assert found == code and all(message in line for message in messages), line
        assert not (tmp_path / "run").exists()

    refused("s3://nowhere/tiny", 2, "s3://nowhere/tiny", "no such folder")
    refused("s3://data/nothing", 2, "s3://data/nothing")
    refused("s3://data/tiny/train-{000000..000099}.tar", 2, "no such shard: s3://data/tiny/train-0000")
    refused("s3://No_Such!/k", 2, "s3://No_Such!/k", "check the URL")
    cut = shutil.copytree(shards[0], tmp_path / "cut")
    with open(cut / "train-000001.tar", "r+b") as file:
        file.truncate(20_000)
    refused(cut, 2, f"{cut}/train-000001.tar is truncated: 20000 of the ")


@pytest.mark.slow
def test_a_missing_driver_and_missing_credentials(tiny_config, s3, tmp_path):
    """In separate processes, since fsspec caches its drivers."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in s3[1].items():
            patch.setenv(key, value)
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(key)
        patch.setenv("HOME", str(tmp_path))
        arguments = ("--cfg", tiny_config(), "data.root=s3://data/tiny")
        assert_one_line(process("train_net.py", *arguments), 2, "s3://data/tiny", "check the credentials")
        patch.setenv("AWS_ENDPOINT_URL", "notaurl")
        assert_one_line(process("train_net.py", *arguments), 2, "s3://data/tiny: Invalid endpoint: notaurl")
        (tmp_path / "packages").mkdir()
        (tmp_path / "packages" / "s3fs.py").write_text("raise ImportError('No module named s3fs')")
        patch.setenv("PYTHONPATH", f"{tmp_path / 'packages'}:{os.environ.get('PYTHONPATH', '')}")
        assert_one_line(process("train_net.py", *arguments), 2, "pip install 'video-rs[s3]'")
    assert not (tmp_path / "run").exists()


def test_a_range_behind_the_end_is_empty(here):
    assert storage.read("s3://data/tiny/train-000000.tar", 10**6, 10**6 + 9) == b""


def test_what_is_listed_is_listed_anew(shards, here):
    """Drivers cache listings."""
    import boto3

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.upload_file(str(shards[0] / "val-000000.tar"), "data", "late/a.tar")
    assert list(storage.sizes("s3://data/late")) == ["a.tar"]
    client.upload_file(str(shards[0] / "val-000000.tar"), "data", "late/b.tar")
    client.delete_object(Bucket="data", Key="late/a.tar")
    assert list(storage.sizes("s3://data/late")) == ["b.tar"]


class Ranges(SimpleHTTPRequestHandler):
    """A web server with range requests, which Python's own lacks."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked:
            return super().do_GET()
        data = Path(self.translate_path(self.path)).read_bytes()
        if int(asked[1]) >= len(data):
            return self.send_error(416)
        data = data[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Whole(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("handler", [Ranges, Whole])
def test_web_servers(tiny_config, shards, handler):
    """They list no sizes, and some send whole files, which would be a whole shard per clip."""
    pytest.importorskip("aiohttp")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(shards[0]))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root, path = f"http://127.0.0.1:{server.server_port}", tiny_config()
        try:
            if handler is Whole:
                with pytest.raises(
                    UserError, match=r"train-000000.tar: the server does not support HTTP range requests"
                ):
                    batches(path, 0, f"data.root={root}/train-000000.tar")
                return
            ours = batches(path, 0, f"data.root={root}")
            assert storage.read(f"{root}/train-000000.tar", 10**6, 10**6 + 9) == b""
        finally:
            server.shutdown()
    for batch, theirs in zip(ours, batches(path, 0, f"data.root={shards[0]}"), strict=True):
        assert torch.equal(batch["clip"], theirs["clip"]) and torch.equal(batch["label"], theirs["label"])


@pytest.mark.slow
def test_a_store_that_stops_responding_ends_the_run(tiny_config, run_tool, shards, s3, here, tmp_path):
    """No sample is replaced: a checkpoint is saved, the exit code is 3, and the resumed run has the same weights."""
    from moto.server import ThreadedMotoServer

    server, environment = s3
    settings = {"data__workers": 1, "train__val_every": 0, "train__max_steps": 60}
    path, out = tiny_config(data__root="s3://data/tiny", **settings), tmp_path / "run"
    command = [sys.executable, REPOSITORY / "tools" / "train_net.py", "--cfg", path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = ""
    while "step 2/" not in said:
        said += (line := process.stdout.readline())
        assert line, process.communicate()
    server.stop()
    server._server.server_close()
    rest, error = process.communicate(timeout=60)
    again = ThreadedMotoServer(ip_address="127.0.0.1", port=int(environment["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    server.__dict__.update(again.__dict__)
    server.start()
    assert process.returncode == 3 and error.count("\n") == 1, error
    assert (
        error.startswith("error: s3://data/tiny/train-0000")
        and "the storage does not respond, after 3 retries" in error
    )
    saved = checkpoint.load(out / "last.pt")
    assert 2 <= saved["step"] < 60 and f"checkpoint saved at step {saved['step']}" in rest
    assert not (out / "broken_files.csv").exists()
    done = run_tool("train_net.py", "--cfg", path)
    assert done.returncode == 0, done.stderr
    assert train_here(tiny_config(data__root=str(shards[1]), **settings, out=str(tmp_path / "files"))) == 0
    ended = [checkpoint.load(folder / "last.pt") for folder in (out, tmp_path / "files")]
    assert same(ended[0]["model"], ended[1]["model"])


@pytest.mark.slow
def test_a_damaged_member_is_replaced_and_named(tiny_config, shards, tmp_path, capsys):
    """In training and in the check, like any other file."""
    from video_rs.cli.train import main

    root = shutil.copytree(shards[0], tmp_path / "spoiled")
    row = table(root / "train-000000.tar.csv")[0]
    with open(root / "train-000000.tar", "r+b") as file:
        file.seek(int(row["offset"]))
        file.write(bytes(int(row["size"])))
    path = tiny_config(data__root=str(root), data__max_broken=0.1)
    assert run(main, ["--cfg", str(path)]) == 0
    member = f"{root}/train-000000.tar/{row['name']}"
    assert (tmp_path / "run" / "broken_files.csv").read_text().splitlines()[1].startswith(member)
    code = run(check.main, ["--cfg", str(path), "--workers", "1"])
    assert code == 2 and "1 x broken" in capsys.readouterr().err
    problems = table(tmp_path / "run" / "check" / "problems.csv")
    assert [problem["path"] for problem in problems if problem["kind"] == "broken"] == [member]


@pytest.mark.slow
def test_the_check_of_shards_is_that_of_the_files(tiny_config, shards, tmp_path):
    files = {}
    for name, root in zip(("shards", "files"), shards):
        assert run(check.main, ["--cfg", str(tiny_config()), f"data.root={root}", "--out", str(tmp_path / name)]) == 0
        files[name] = table(tmp_path / name / "files.csv")
    for ours, theirs in zip(files["shards"], files["files"], strict=True):
        assert ours.pop("path").endswith("/".join(theirs.pop("path").split("/")[-2:])) and ours == theirs


@pytest.fixture(scope="module")
def prepared(tiny_videos, tmp_path_factory):
    """Return OUT of ``prepare_dataset --shards``."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    assert (
        run(prepare.main, ["--cfg", "motion_rs.yaml", f"data.root={tiny_videos}", "--out", str(out), "--shards"]) == 0
    )
    return out


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_prepare_packs_what_trains(tiny_videos, prepared, tmp_path, capsys):
    """A second run keeps the files; the printed command finds them; videos/ is not needed any more."""
    out = shutil.copytree(prepared, tmp_path / "out")
    (out / "shards" / "val-000000.tar.csv").unlink()
    (out / "shards" / ".val-000000.tar.a1b2c3d4").write_text("of a process that was killed")
    (out / "shards" / "val-000001.tar").write_text("of another time")
    command = ["--cfg", "motion_rs.yaml", f"data.root={tiny_videos}", "--out", str(out), "--shards"]
    assert run(prepare.main, command) == 0
    assert tree(out) == tree(prepared)
    told = capsys.readouterr().out.splitlines()
    assert any("can be deleted if only the shards are used" in line for line in told)
    overrides = [word for word in told[-1].split() if "=" in word]
    assert f"data.root={out}/shards" in overrides
    shutil.rmtree(out / "videos")
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(yaml.safe_dump({**TINY, "out": str(tmp_path / "run")}))
    assert train_here(tiny, *overrides, "train.epochs=1") == 0
    member = f"{out}/shards/val-000000.tar/{table(out / 'shards' / 'val-000000.tar.csv')[0]['name']}"
    assert run(predict.main, ["--weights", str(tmp_path / "run" / "best.pt"), member]) == 0
    assert capsys.readouterr().out.splitlines()[-6] == member


def test_other_classes_make_other_shards(prepared, tiny_videos, tmp_path):
    """Shards hold class numbers."""
    out = shutil.copytree(prepared, tmp_path / "out")
    names = (out / "class_names.txt").read_text().split()
    (tmp_path / "names.txt").write_text("\n".join(reversed(names)))
    command = ["--cfg", "motion_rs.yaml", f"data.root={tiny_videos}", "--out", str(out), "--shards"]
    assert run(prepare.main, [*command, f"data.class_names={tmp_path / 'names.txt'}"]) == 0
    ours, theirs = tree(out / "shards"), tree(prepared / "shards")
    assert ours["val-000000.tar.csv"] == theirs["val-000000.tar.csv"]
    assert ours["val-000000.tar"] != theirs["val-000000.tar"]


def test_what_prepare_and_index_refuse(tiny_config, run_tool, shards, prepared, tiny_videos, tmp_path, capsys):
    code, line = commanded(
        prepare.main, capsys, "--cfg", tiny_config(), f"data.root={shards[0]}", "--out", tmp_path / "out", "--shards"
    )
    assert code == 2 and "consists of shards" in line
    code, line = commanded(index.main, capsys, "--cfg", tiny_config(), f"data.root={shards[0]}")
    assert code == 2 and "consists of shards" in line and "index is for video files only" in line
    out = shutil.copytree(prepared, tmp_path / "full", ignore=lambda folder, names: {"shards"} & {*names})
    command = ("--cfg", "motion_rs.yaml", f"data.root={tiny_videos}", "--out", out, "--shards")
    with full_disk(60_000):  # more than a video has, less than a shard
        done = run_tool("prepare_dataset.py", *command)
    assert_one_line(done, 3, "shards/t", "cannot be written: File too large")
    assert not list(out.rglob(".*"))


def test_ctrl_c_reaches_a_run_that_reads_from_a_store(tiny_config, here, tmp_path):
    path = tiny_config(data__root="s3://data/tiny", data__workers=2)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 2)
        assert train_here(path) == 130
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
