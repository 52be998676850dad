"""``video-rs features``: datasets, lists and files, and one line for each mistake."""

import csv
import dataclasses
import shutil

import numpy as np
import pytest
import torch

import video_rs
from video_rs import checkpoint
from video_rs.data_config import DataConfig
from video_rs.inference.features_file import read_features

CLIPS = DataConfig(num_frames=4, stride=2, train_size=32, short_side=36, test_size=32)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Checkpoints of a video network and an image network."""
    found = []
    for name, frames in (("resnet3d_rs_26", 4), ("resnet_rs_26", 1)):
        torch.manual_seed(0)
        arguments = {"name": name, "num_classes": 3, "width": 0.125}
        model = video_rs.create_model(**arguments, data_config=dataclasses.replace(CLIPS, num_frames=frames))
        found.append(tmp_path_factory.mktemp(name) / "best.pt")
        checkpoint.save(found[-1], checkpoint.from_weights(arguments, model.data_config, model.state_dict()))
    return found


@pytest.fixture
def features(run_tool, tmp_path):
    def run(*arguments, out="f.npz"):
        result = run_tool("extract_features.py", *arguments, "--workers", 0, "--out", tmp_path / out)
        return result, (read_features(tmp_path / out) if result.returncode == 0 else None)

    return run


def test_features_of_a_split_equal_embed(features, networks, tiny_videos):
    for weights in networks:
        result, found = features("--weights", weights, "--data", tiny_videos, "--split", "test", "--overwrite")
        paths = [f"{tiny_videos}/test/{name}/00000.mp4" for name in found.class_names]
        assert [*found.paths] == paths and found.labels.tolist() == [*range(8)], result.stderr
        assert found.scored.all() and found.about["weights"] == str(weights) and len(set(found.sources)) == 8
        expected = video_rs.load(weights, "cpu").embed(paths)
        np.testing.assert_allclose(found.features, expected, atol=1e-5)
        assert expected.std() > 1e-4


def test_features_of_every_frame_and_of_windows(features, networks, tiny_videos):
    """An image network takes every frame, and a window has the frames of its time."""
    path = sorted((tiny_videos / "test").glob("*/*.mp4"))[0]
    classifier = video_rs.load(networks[1], "cpu")
    frames = np.concatenate([classifier.embed(frame.numpy()) for frame in all_frames(path)])
    for pool, expected in (
        ("mean", frames.mean(0)),
        ("max", frames.max(0)),
        ("mean+std", np.r_[frames.mean(0), frames.std(0)]),
    ):
        _, found = features("--weights", networks[1], "--data", path, "--pool", pool, "--overwrite")
        np.testing.assert_allclose(found.features[0], expected, atol=1e-5)
    _, found = features("--weights", networks[1], "--data", path, "--per-window", "500ms", "--overwrite")
    assert (found.start.tolist(), found.end.tolist()) == ([0.0, 0.5], [0.5, 1.0])  # 12 frames at 12 per second
    np.testing.assert_allclose(found.features, [frames[:6].mean(0), frames[6:].mean(0)], atol=1e-5)
    times, values = classifier.embed_windows(path, 0.5)
    np.testing.assert_array_equal(times, np.stack([found.start, found.end], axis=1))
    np.testing.assert_allclose(values, found.features, atol=1e-5)


def all_frames(path):
    from video_rs.data.video.decode import open_video

    with open_video(path) as video:
        return video.read(range(video.num_frames))


def test_windows_that_leave_out_frames_are_a_warning(features, networks, tiny_videos):
    path = sorted((tiny_videos / "test").glob("*/*.mp4"))[0]
    result, _ = features("--weights", networks[0], "--data", path, "--per-window", "800ms")
    assert result.stderr.startswith(f"warning: {path}: windows of 0.667 s leave gaps"), result.stderr


def test_features_of_a_layer(features, networks, tiny_videos):
    arguments = ("--weights", networks[0], "--data", tiny_videos / "test", "--overwrite")
    _, last = features(*arguments, "--layer", "stage4")
    _, default = features(*arguments)
    np.testing.assert_allclose(last.features, default.features, atol=1e-5)
    _, head = features(*arguments, "--layer", "head")
    weights = video_rs.load(networks[0], "cpu").model.state_dict()
    logits = default.features @ weights["head.weight"].numpy().T + weights["head.bias"].numpy()
    np.testing.assert_allclose(head.features, logits, atol=1e-5)
    _, third = features(*arguments, "--layer", "stage3", out="f.parquet")
    assert third.features.shape[1] == default.features.shape[1] // 2


def test_features_of_a_list_with_segments_and_an_unreadable_file(features, networks, tiny_videos, tmp_path):
    source = sorted((tiny_videos / "test").glob("*/*.mp4"))[0]
    (tmp_path / "broken.mp4").write_bytes(source.read_bytes()[:900])
    with open(tmp_path / "list.csv", "w", newline="") as file:
        rows = [(source, "a", 0, 0.5), (source, "a", 0.5, 1), (tmp_path / "broken.mp4", "b", 0, 0.5)]
        csv.writer(file).writerows([("path", "label", "start", "end"), *rows])
    result, found = features("--weights", networks[0], "--data", tmp_path / "list.csv")
    assert found.start.tolist() == [0, 0.5, 0] and found.end.tolist() == [0.5, 1, 0.5]
    assert found.scored.tolist() == [True, True, False] and not found.features[2].any()
    assert found.sources[0] == found.sources[1] != found.sources[2]
    assert found.reason[2] and f"no features: {tmp_path}/broken.mp4: {found.reason[2]}" in result.stdout
    assert np.abs(found.features[0] - found.features[1]).max() > 1e-4


def test_features_of_files_without_labels(features, networks, tiny_videos, tmp_path):
    for number, path in enumerate(sorted((tiny_videos / "test").glob("*/*.mp4"))[:2]):
        shutil.copy(path, tmp_path / f"{number}.mp4")
    for data in ([tmp_path], [tmp_path / "0.mp4", tmp_path / "1.mp4"]):
        _, found = features("--weights", networks[0], "--data", *data, "data.retries=1", "--overwrite")
        assert found.paths == [f"{tmp_path}/0.mp4", f"{tmp_path}/1.mp4"]
        assert found.labels.tolist() == [-1, -1] and found.class_names == ()


def test_features_of_a_dataset_with_one_split(features, networks, tiny_videos, tmp_path):
    (tmp_path / "test").symlink_to(tiny_videos / "test")
    for split in ([], ["--split", "test"]):
        _, found = features("--weights", networks[0], "--data", tmp_path, *split, "--views", 1, "--overwrite")
        assert len(found.paths) == len(found.class_names) == 8


def test_features_of_a_network_by_name(features, tiny_videos):
    settings = ("data.test_size=32", "data.short_side=32", "data.train_size=32")
    result, found = features("--model", "timm/test_resnet", "--data", tiny_videos / "test", "--views", 2, *settings)
    assert found.about["model"] == "timm/test_resnet" and found.about["views"] == 2 and found.features.std() > 0.001
    assert "random weights" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "DATA"], "DATA has the splits train, val, test; choose one with --split"),
        (["--data", "DATA/test", "--split", "val"], "--split val: DATA/test has no such split; leave it out"),
        (["--data", "VIDEO", "--split", "val"], "--split val: VIDEO has no splits; leave it out"),
        (["--data", "none"], "none: no such file"),
        (["--data", "empty"], "empty: an empty folder; check the path"),
        (["--data", "mixed"], "mixed/loose.mp4: is beside class folders such as a; move it"),
        (["--weights", "IMAGES", "--data", "flat"], "images and videos are mixed"),
        (["--data", "VIDEO", "--layer", "stge3"], "has no layer 'stge3'; did you mean stage3?"),
        (["--data", "VIDEO", "--pool", "median"], "--pool: invalid choice: 'median'"),
        (["--data", "VIDEO", "--views", "2", "--per-window", "1s"], "--views and --per-window cannot be combined"),
        (["--data", "VIDEO", "data.num_frames=8"], "data.num_frames: is fixed by WEIGHTS; leave it out"),
        (["--data", "VIDEO", "data.wrokers=8"], "did you mean data.workers?"),
        (["--data", "VIDEO", "data.root=mixed"], "data.root: give --data instead"),
        (["--data", "VIDEO", "data.workers=2"], "data.workers: give --workers instead"),
        (["--data", "VIDEO", "optim.lr=1"], "optim.lr: has no effect here; leave it out"),
        (["--data", "broken.mp4"], "none of the 1 files can be used; the first, broken.mp4:"),
        (
            ["--data", "VIDEO", "--out", "f.txt"],
            "f.txt: unknown kind of file; use a name that ends in .npz or .parquet",
        ),
        (["--data", "VIDEO", "--out", "/proc/f.npz"], "/proc/f.npz.parts cannot be written"),
        (["--data", "VIDEO", "--out", "there.npz"], "there.npz exists; give another --out, or add --overwrite"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_mistakes_are_one_line(run_tool, networks, tiny_videos, tmp_path, arguments, message):
    video = sorted((tiny_videos / "test").glob("*/*.mp4"))[0]
    for name in ("empty", "mixed/a", "flat"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("mixed/loose.mp4", "mixed/a/1.mp4", "flat/1.mp4", "there.npz"):
        shutil.copy(video, tmp_path / name)
    (tmp_path / "flat/2.png").write_bytes(b"")
    (tmp_path / "broken.mp4").write_bytes(b"text")
    words = {"DATA": tiny_videos, "VIDEO": video, "WEIGHTS": networks[0], "IMAGES": networks[1]}
    for word, value in words.items():
        arguments = [each.replace(word, str(value)) for each in arguments]
        message = message.replace(word, str(value))
    out = [] if "--out" in arguments else ["--out", "f.npz"]
    network = [] if "--weights" in arguments else ["--weights", networks[0]]
    result = run_tool("extract_features.py", *network, *arguments, *out, "--workers", 0, cwd=tmp_path)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert message in result.stderr
    assert not (tmp_path / "f.npz").exists() and not list(tmp_path.glob("*.parts"))
