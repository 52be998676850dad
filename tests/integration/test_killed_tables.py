"""``predict --out`` and ``features`` killed at random moments: no file is lost, and none is in the table twice."""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import video_rs
from tests import commands
from video_rs import checkpoint
from video_rs.cli.common import SCRIPTS
from video_rs.data_config import DataConfig
from video_rs.inference.features_file import read_features

SLOW_COMMAND = """
import os, sys, time
sys.path.insert(0, {repository!r})
from video_rs.inference import parts

def add(self, rows):
    time.sleep(0.03)
    original(self, rows)

original, parts.Parts.add, parts.FLUSH_SECONDS = parts.Parts.add, add, 0.0
with open("pid" + os.environ.get("RANK", "0"), "w") as file:
    file.write(str(os.getpid()))
if __name__ == "__main__":
    from video_rs.cli.main import main
    main()
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    arguments = {"name": "resnet3d_rs_26", "num_classes": 8, "width": 0.125}
    config = DataConfig(num_frames=4, stride=2, train_size=32, short_side=36, test_size=32)
    model = video_rs.create_model(**arguments, data_config=config)
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    checkpoint.save(path, checkpoint.from_weights(arguments, model.data_config, model.state_dict()))
    return path


@pytest.fixture
def files(tiny_videos, tmp_path):
    """120 videos, more than ten starts can finish, and one that is damaged."""
    videos = [*sorted(tiny_videos.rglob("*.mp4"))] * 3
    paths = [tmp_path / f"{number:03d}.mp4" for number in range(len(videos))]
    for video, path in zip(videos, paths):
        shutil.copy(video, path)
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    return [*paths, tmp_path / "damaged.mp4"]


def arguments_of(command, weights, files, out):
    data = ["--data"] if command == "features" else ["--top-k", 8]
    return [command, "--weights", weights, "--out", out, "--workers", 1, *data, *files]


def rows_of(command, path):
    """Return the path, reason and values of each row."""
    if command == "features":
        found = read_features(path)
        return [*found.paths], [*found.reason], found.features
    rows = list(csv.DictReader(path.open()))
    scores = [float(row["score"] or 0) for row in sorted(rows, key=lambda row: (row["path"], row["index"]))]
    return [row["path"] for row in rows], [row["reason"] for row in rows], np.array(scores)


def start(script, arguments, folder, processes):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    options = {"cwd": folder, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stderr": subprocess.STDOUT}
    return commands.start([sys.executable, *launcher, script, *arguments], **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "processes", "kills"),
    [
        ("predict", 2, 1),
        pytest.param("predict", 1, 10, marks=pytest.mark.exhaustive),
        pytest.param("predict", 2, 10, marks=pytest.mark.exhaustive),
        pytest.param("features", 1, 10, marks=pytest.mark.exhaustive),
        pytest.param("features", 2, 10, marks=pytest.mark.exhaustive),
    ],
)
def test_a_killed_command_resumes_without_a_lost_or_doubled_row(weights, files, tmp_path, command, processes, kills):
    """One rank of two is killed; the last start has another number of ranks."""
    suffix = ".npz" if command == "features" else ".csv"
    out, whole, script = tmp_path / f"killed{suffix}", tmp_path / f"whole{suffix}", tmp_path / "slow.py"
    script.write_text(SLOW_COMMAND.format(repository=str(commands.REPOSITORY)))
    arguments, draw = arguments_of(command, weights, files, out), random.Random(processes)
    folder, done = tmp_path / f"{out.name}.parts", []
    for _ in range(kills):
        before = len(list(folder.glob("rows-*.npz")))
        process = start(script, arguments, tmp_path, processes)
        limit = time.monotonic() + 100
        while len(list(folder.glob("rows-*.npz"))) <= before + draw.randrange(3) and process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.05))
        if process.poll() is None:
            os.kill(int((tmp_path / f"pid{processes - 1}").read_text()), signal.SIGKILL)
        text, _ = process.communicate(timeout=100)
        done.append(len(list(folder.glob("rows-*.npz"))))
        assert process.returncode and not out.exists(), text
    assert done == sorted(done) and done[0] > 0 and done[-1] < len(files)  # each start was killed in the middle
    for path in (out, whole):
        _, *words = arguments_of(command, weights, files, path)
        ended = commands.script(f"tools/{SCRIPTS[command]}", *words)
        assert ended.returncode == (2 if command == "predict" else 0), ended.stderr
        assert not path.with_name(f"{path.name}.parts").exists()
    (paths, reasons, values), expected = rows_of(command, out), rows_of(command, whole)
    assert (paths, reasons) == expected[:2] and list(dict.fromkeys(paths)) == [*map(str, files)]
    assert [path for path, reason in zip(paths, reasons) if reason] == [str(files[-1])]
    np.testing.assert_allclose(values, expected[2], atol=1e-5)
