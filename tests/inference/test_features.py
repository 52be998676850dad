"""Features of a dataset do not depend on workers, batches and processes, and equal ``embed``."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

import video_rs
from tests import commands
from video_rs import checkpoint
from video_rs.data.sources.records import Records
from video_rs.data_config import DataConfig
from video_rs.inference.features import extract_features
from video_rs.inference.features_file import read_features
from video_rs.inference.predict import Classifier

CLIPS = DataConfig(num_frames=4, stride=2, train_size=32, short_side=36, test_size=32)
NETWORKS = {"resnet3d_rs_26": 4, "resnet_rs_26": 1}  # frames of a clip
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def files(make_video, tmp_path):
    """Seven videos of different lengths. The fourth one is damaged."""
    paths = [make_video(tmp_path / f"{i}.mp4", 5 + 3 * i, 48, 64, first_number=100 * i) for i in range(7)]
    paths[3].write_bytes(b"no video")
    return [*map(str, paths)]


def save_network(name, path):
    arguments = {"name": name, "num_classes": 3, "width": 0.125}
    model = video_rs.create_model(**arguments, data_config=dataclasses.replace(CLIPS, num_frames=NETWORKS[name]))
    checkpoint.save(path, checkpoint.from_weights(arguments, model.data_config, model.state_dict()))
    return video_rs.load(path, "cpu")


def check(found, classifier, files):
    """Every file has its row, in order."""
    assert [*found.paths] == files and found.scored.tolist() == [i != 3 for i in range(7)] and found.reason[3]
    expected = classifier.embed([path for i, path in enumerate(files) if i != 3])
    np.testing.assert_allclose(found.features[found.scored], expected, atol=1e-5)
    assert np.abs(np.diff(expected, axis=0)).max(axis=1).min() > 1e-4  # two rows in each other's place would be seen


@pytest.mark.parametrize("name", NETWORKS)
def test_workers_and_batches_change_nothing(files, tmp_path, name):
    torch.manual_seed(0)
    classifier, records = save_network(name, tmp_path / "best.pt"), Records(files, [0] * len(files), ["a"])
    for workers, batch_size in ((0, 1), (1, 8), (3, 3)):
        out = tmp_path / f"{workers}_{batch_size}.npz"
        classifier = Classifier(classifier.model, views_per_forward=batch_size)
        found = extract_features(classifier, records, out, workers=workers)
        check(found, classifier, files)


@pytest.mark.slow
def test_two_processes_change_nothing(files, tmp_path):
    torch.manual_seed(1)
    classifier, out = save_network("resnet3d_rs_26", tmp_path / "best.pt"), tmp_path / "f.npz"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [commands.REPOSITORY / "tools/extract_features.py", "--weights", tmp_path / "best.pt", "--out", out]
    command += ["--data", *files, "--workers", "1", "--batch-size", "3", "--device", "cpu"]
    done = commands.start(command, stderr=subprocess.STDOUT)
    text, _ = done.communicate(timeout=300)
    assert done.returncode == 0, text
    check(read_features(out), classifier, files)
