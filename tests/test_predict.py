import argparse
import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import video_rs
from tests.data import writers
from video_rs import checkpoint
from video_rs.cli import predict as cli
from video_rs.cli.common import run, seconds
from video_rs.data.clip_datasets import ViewDataset
from video_rs.data.clips import TemporalSampling, Timeline
from video_rs.data.loader import ViewLoader
from video_rs.data.sources.records import Records
from video_rs.data.transforms.crops import ViewTransform
from video_rs.data.video.decode import BACKENDS, open_video, read_frames
from video_rs.data.video.decord import DecordReader
from video_rs.data.video.media import Unsuitable
from video_rs.data.video.pyav import PyAVReader
from video_rs.data.windows import window_clips, window_starts
from video_rs.data_config import DataConfig
from video_rs.errors import MediaError, UserError
from video_rs.evaluation.multiview import Forward, score
from video_rs.inference.predict import Classifier
from video_rs.models.registry import create_model
from video_rs.models.weights.load import model_from_checkpoint

NAMES = ("archery", "juggling", "yoga")
FPS = 10
CLIPS = DataConfig(num_frames=4, stride=2, train_size=32, short_side=40, test_size=32, class_names=NAMES)
IMAGES = dataclasses.replace(CLIPS, num_frames=1, stride=1)


def tiny(name, data_config):
    torch.manual_seed(0)
    model = create_model(name, num_classes=len(NAMES), width=0.125, data_config=data_config)
    torch.nn.init.normal_(model.state_dict(keep_vars=True)["head.weight"], std=3.0)  # answers that differ visibly
    return model


def save(path, name, data_config, **changes):
    model = tiny(name, data_config)
    state = {"format": 1, "config": {}, "data_config": data_config.to_dict(), "model": model.state_dict(), "ema": None}
    state["model_args"] = {"name": name, "num_classes": len(NAMES), "width": 0.125}
    checkpoint.save(path, state | changes)
    return str(path)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save(tmp_path_factory.mktemp("clips") / "best.pt", "resnet3d_rs_26", CLIPS)


@pytest.fixture(scope="module")
def image_weights(tmp_path_factory):
    return save(tmp_path_factory.mktemp("images") / "best.pt", "resnet_rs_26", IMAGES)


@pytest.fixture(scope="module")
def video(tmp_path_factory, make_video):
    frames = np.random.default_rng(0).integers(0, 256, (30, 6, 8, 3), dtype=np.uint8)
    frames = frames.repeat(8, axis=1).repeat(8, axis=2)
    return str(make_video(tmp_path_factory.mktemp("video") / "a video.mp4", frames=frames, fps=FPS))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("image") / "a.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
    return str(path)


def by_index(predictions):
    return [p.score for p in sorted(predictions, key=lambda p: p.index)]


def all_frames(path):
    with open_video(path) as opened:
        return opened.read(range(opened.num_frames))


@pytest.mark.parametrize("clips, crops", [(1, 1), (3, 3)])
def test_predict_agrees_with_the_test(weights, video, clips, crops):
    classifier = video_rs.load(weights, "cpu")
    dataset = ViewDataset(
        Records([video], [0], NAMES),
        sampling=TemporalSampling(4, 2),
        clips=clips,
        transform=ViewTransform(40, 32, crops),
    )
    tested = score(classifier.model, ViewLoader(dataset), device=torch.device("cpu"))
    predictions = classifier.predict(video, clips=clips, crops=crops)
    np.testing.assert_allclose(by_index(predictions), tested.probs[0], atol=1e-6)
    assert [p.label for p in predictions] == [NAMES[p.index] for p in predictions]
    assert predictions == sorted(predictions, key=lambda p: -p.score)


TIMED = dataclasses.replace(CLIPS, fps=5.0)  # half the rate of the video
SEGMENTS = dataclasses.replace(CLIPS, sampling="segments")


@pytest.mark.parametrize("data_config", [TIMED, SEGMENTS], ids=["timed", "segments"])
def test_the_temporal_sampling_of_the_data_config_is_obeyed(tmp_path, video, data_config):
    classifier = video_rs.load(save(tmp_path / "a.pt", "resnet3d_rs_26", data_config), "cpu")
    frames = all_frames(video)
    wanted = [7, 11, 15, 19] if data_config.fps else [3, 11, 18, 26]
    plain = video_rs.load(save(tmp_path / "b.pt", "resnet3d_rs_26", dataclasses.replace(CLIPS, stride=1)), "cpu")
    expected = by_index(plain.predict(frames[wanted], clips=1))
    np.testing.assert_allclose(by_index(classifier.predict(video, clips=1)), expected, atol=1e-6)
    np.testing.assert_allclose(by_index(classifier.predict(frames, clips=1, fps=FPS)), expected, atol=1e-6)
    dataset = ViewDataset(
        Records([video], [0], NAMES),
        sampling=TemporalSampling.of(data_config),
        clips=3,
        transform=ViewTransform(40, 32),
    )
    tested = score(classifier.model, ViewLoader(dataset), device=torch.device("cpu"))
    np.testing.assert_allclose(by_index(classifier.predict(video, clips=3)), tested.probs[0], atol=1e-6)


@pytest.mark.parametrize("data_config", [TIMED, SEGMENTS], ids=["timed", "segments"])
def test_windows_obey_the_temporal_sampling(tmp_path, video, data_config):
    classifier = video_rs.load(save(tmp_path / "a.pt", "resnet3d_rs_26", data_config), "cpu")
    frames, windows = all_frames(video), list(classifier.predict_windows(video, 0.5))
    length = 16 if data_config.fps else 5  # 4 frames x stride 2 at 5 frames a second; as long as the step
    assert [round(w.start * FPS) for w in windows] == [*range(0, 30 - length, 5), 30 - length]
    for window in windows:
        first, end = round(window.start * FPS), round(window.end * FPS)
        assert end - first == length
        expected = classifier.predict(frames[first:end], clips=1, fps=FPS)
        np.testing.assert_allclose(by_index(window.predictions), by_index(expected), atol=1e-6)


@given(
    st.builds(
        TemporalSampling,
        st.integers(1, 20),
        st.integers(1, 4),
        st.sampled_from(["dense", "segments"]),
        st.sampled_from([0.0, 7.5, 24.0, 60.0]),
    ),
    st.integers(1, 400),
    st.sampled_from([10.0, 25.0, 30000 / 1001]),
    st.floats(0.05, 20),
)
def test_clips_lie_in_their_windows_in_order(sampling, length, fps, every):
    starts, ends, clips = window_clips(sampling, Timeline(length, np.arange(length) / fps, fps), every)
    starts, ends = np.rint(starts * fps), np.rint(ends * fps)
    assert clips.shape == (len(starts), sampling.num_frames) and clips.min() >= 0 and clips.max() < length
    assert (clips[:, 0] >= starts).all() and (clips.max(1) < ends).all()
    assert all((clip >= clips[:number, :1]).all() for number, clip in enumerate(clips))  # what read_once relies on
    if every * fps <= (ends - starts).max():
        assert ends[-1] == length  # the windows cover the whole video


def test_frames_agree_with_their_file(weights, video):
    classifier = video_rs.load(weights, "cpu")
    frames = all_frames(video)
    np.testing.assert_allclose(by_index(classifier.predict(frames)), by_index(classifier.predict(video)), atol=1e-6)
    assert classifier.predict(frames.numpy(), top_k=1) == classifier.predict(frames, top_k=1)
    fixed = frames.numpy().copy()
    fixed.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classifier.predict(fixed) == classifier.predict(frames)
        assert classifier.predict(fixed[..., ::-1]) == classifier.predict(frames.flip(-1))


def test_the_number_of_views_in_a_forward_does_not_matter(weights, video):
    model = model_from_checkpoint(checkpoint.load(weights))
    one, many = (by_index(Classifier(model, views_per_forward=n).predict(video, crops=3)) for n in (1, 5))
    np.testing.assert_allclose(one, many, atol=1e-6)


def test_a_network_in_training_mode_predicts_as_in_eval_mode(weights, video):
    model = model_from_checkpoint(checkpoint.load(weights))
    dropping = [module for module in model.modules() if hasattr(module, "rate")]
    assert dropping
    for module in dropping:
        module.rate = 0.5
    expected = by_index(Classifier(model).predict(video))
    assert by_index(Classifier(model.train()).predict(video)) == expected


def test_non_finite_output_is_an_error(tmp_path, weights, video, capsys):
    spoilt = checkpoint.load(weights)
    spoilt["model"]["head.bias"][1] = float("nan")
    checkpoint.save(tmp_path / "nan.pt", spoilt)
    for options in ([], ["--every", "1s"]):
        code, out, err = command(capsys, "--weights", tmp_path / "nan.pt", *options, video)
        assert (code, out) == (2, "") and "output is not finite" in err


@pytest.mark.parametrize("crops", [1, 3])
def test_windows_see_the_frames_of_their_time(weights, video, crops):
    classifier = video_rs.load(weights, "cpu")
    frames = all_frames(video)
    windows = list(classifier.predict_windows(video, 0.5, crops=crops))
    assert [round(w.start, 3) for w in windows] == [0, 0.5, 1, 1.5, 2, 2.2]  # a clip spans 8 frames, the video 30
    assert all(w.end - w.start == pytest.approx(0.8) for w in windows)
    for window in windows:
        first = round(window.start * FPS)
        expected = classifier.predict(frames[first : first + 8], clips=1, crops=crops)
        np.testing.assert_allclose(by_index(window.predictions), by_index(expected), atol=1e-6)


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_windows_decode_a_video_once(weights, tmp_path, make_video, monkeypatch, name):
    """In the second file timestamps are unreliable, so frames are counted from the start."""
    path = make_video(tmp_path / name, num_frames=60, fps=FPS)
    classifier = Classifier(model_from_checkpoint(checkpoint.load(weights)), views_per_forward=2)
    frames, decoded = all_frames(path), []
    original = PyAVReader._decode
    monkeypatch.setattr(PyAVReader, "_decode", lambda self, *options: map(tap(decoded), original(self, *options)))
    windows = list(classifier.predict_windows(path, 0.5))
    assert len(decoded) <= len(frames) * (2 if name == "a.ts" else 1)  # one pass is to count
    assert len(windows) == 12
    for window in windows:
        first = round(window.start * FPS)
        expected = classifier.predict(frames[first : first + 8], clips=1)
        np.testing.assert_allclose(by_index(window.predictions), by_index(expected), atol=1e-6)


def write_with_freeze(path):
    """Write 60 frames at 10 per second with a freeze of ten minutes after the first half."""
    times = [i + 6000 * (i >= 30) for i in range(60)]
    writers.encode(path, num_frames=60, size=(48, 64), times=times, rate=FPS)


@pytest.mark.parametrize("fps", [0.0, 10.0])
def test_windows_of_variable_rate_videos(tmp_path, fps, monkeypatch, capsys):
    write_with_freeze(tmp_path / "freeze.mkv")
    path = save(tmp_path / "a.pt", "resnet3d_rs_26", dataclasses.replace(CLIPS, fps=fps))
    scored, original = [], Forward.__call__
    monkeypatch.setattr(Forward, "__call__", lambda self, views: scored.append(len(views)) or original(self, views))
    command = ["--weights", path, "--every", "1s", "--csv", "--device", "cpu", str(tmp_path / "freeze.mkv")]
    assert run(cli.main, command) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    starts, ends = (np.array([float(row[name]) for row in rows]) for name in ("start", "end"))
    assert starts.tolist() == list(range(606)) and (ends[0], ends[-1]) == (0.8, 605.8)  # no extra window at the end
    frozen = [row["score"] for row in rows if 4 <= float(row["start"]) < 599]
    assert len(set(frozen)) == 1 and sum(scored) < 20  # frozen frames are computed once


def tap(seen):
    return lambda item: seen.append(1) or item


def test_a_decoder_that_fails_midway_is_replaced(video, monkeypatch):
    original = DecordReader.frames

    def frames(self, indices, plan):
        yield next(original(self, indices[:3], plan))
        raise Unsuitable("gave up")

    with open_video(video) as opened:
        expected = opened.read(range(2, 20), short_side=40)
    monkeypatch.setattr(DecordReader, "frames", frames)
    with open_video(video, "decord") as opened:
        streamed = torch.stack(list(opened.stream(np.arange(2, 20), short_side=40)))
    assert opened.backend == "pyav" and torch.equal(streamed, expected)


def test_a_video_shorter_than_a_clip_is_looped(weights, tmp_path, make_video):
    path = make_video(tmp_path / "short.mp4", num_frames=3, fps=FPS)
    classifier = video_rs.load(weights, "cpu")
    (window,) = classifier.predict_windows(path, 0.1)
    assert (window.start, window.end) == (0, pytest.approx(0.3))
    np.testing.assert_allclose(by_index(window.predictions), by_index(classifier.predict(path)), atol=1e-6)


def test_an_image_network_takes_images_and_videos(image_weights, image, video):
    classifier = video_rs.load(image_weights, "cpu")
    pixels = all_frames(image)
    assert by_index(classifier.predict(image)) == by_index(classifier.predict(pixels[0]))
    frames = all_frames(video)
    each = [by_index(classifier.predict(frames[i])) for i in (0, 9, 19, 29)]  # evenly spaced
    np.testing.assert_allclose(by_index(classifier.predict(video, clips=4)), np.mean(each, axis=0), atol=1e-6)


def test_a_list_and_a_folder_of_videos(weights, video, tmp_path):
    classifier = video_rs.load(weights, "cpu")
    one, frames = classifier.predict(video), all_frames(video)
    assert classifier.predict([video, Path(video), frames[:8]]) == [one, one, classifier.predict(frames[:8])]
    assert classifier.predict([]) == []
    for name in ("b.mp4", "below/a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(video, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no video")
    expected = [str(tmp_path / name) for name in ("b.mp4", "below/a.mp4")]
    found = classifier.predict(tmp_path, top_k=1)
    assert found == dict.fromkeys(expected, one[:1]) and list(found) == expected
    assert classifier.embed(tmp_path).shape == (2, classifier.model.num_features)


def test_the_python_of_the_docs_runs(weights, video, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "inference.md").read_text().partition("## Predict")[2]
    for name in ("clip.mp4", "a.mp4", "b.mp4", "more_videos/c.mp4", "long_video.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(video, tmp_path / name)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    shutil.copy(weights, tmp_path / "runs" / "mine" / "best.pt")
    monkeypatch.chdir(tmp_path)
    names = {"video_rs": video_rs, "frames": all_frames(video)}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    assert names["clf"].class_names == NAMES


def test_a_folder_of_images_is_one_video_or_many_images(weights, image_weights, image, tmp_path):
    for name in ("img_1.png", "img_2.png"):
        shutil.copy(image, tmp_path / name)
        (tmp_path / "thumbs").mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / "thumbs" / name)
    one = video_rs.load(weights, "cpu").predict(f"{tmp_path}/thumbs/..")
    assert [p.index for p in sorted(one, key=lambda p: p.index)] == [0, 1, 2]
    classifier = video_rs.load(image_weights, "cpu")
    each = classifier.predict(image)
    files = [tmp_path / folder / name for folder in (".", "thumbs") for name in ("img_1.png", "img_2.png")]
    assert classifier.predict(tmp_path) == {str(file): each for file in files}


def test_pil_images(image_weights, weights, image):
    from PIL import Image

    classifier = video_rs.load(image_weights, "cpu")
    with Image.open(image) as opened:
        assert classifier.predict(opened) == classifier.predict(image)
        assert classifier.predict([opened.convert("RGBA")]) == [classifier.predict(image)]
        turned = opened.transpose(Image.Transpose.ROTATE_90)
        turned.getexif()[0x0112] = 6  # upright after a turn by 270 degrees
        assert classifier.predict(turned) == classifier.predict(image)
        deep = Image.fromarray(257 * np.asarray(opened.convert("L")).astype(np.uint16))
        assert classifier.predict(deep) == classifier.predict(opened.convert("L"))
        with pytest.raises(MediaError, match="PIL image is an image, but this network takes clips of 4 frames"):
            video_rs.load(weights, "cpu").predict(opened)


def test_embeddings_are_the_input_of_the_head(weights, image_weights, video, image):
    vit = create_model("timm/test_vit", num_classes=3, data_config=dataclasses.replace(IMAGES, train_size=32))
    ours = (video_rs.load(path, "cpu") for path in (weights, image_weights))
    for classifier, source in zip([*ours, Classifier(vit)], (video, image, image), strict=True):
        features = classifier.embed([source, source], clips=3, crops=3)
        assert features.dtype == np.float32 and features.shape == (2, classifier.model.num_features)
        logits: list[torch.Tensor] = []
        handle = classifier.model.register_forward_hook(lambda *call, seen=logits: seen.append(call[-1]))
        classifier.predict(source, clips=3, crops=3)
        handle.remove()
        with torch.no_grad():
            head = classifier.model.get_classifier()(torch.from_numpy(features))
        torch.testing.assert_close(head, torch.cat(logits).mean(dim=0).expand(2, -1), atol=1e-5, rtol=1e-5)
        alone = classifier.embed(source, clips=3, crops=3)  # in other batches
        np.testing.assert_allclose(alone, features[:1], atol=1e-5)
        assert classifier.embed([]).shape == (0, classifier.model.num_features)


def test_a_folder_in_a_list_is_each_of_its_files(image_weights, image, tmp_path):
    classifier = video_rs.load(image_weights, "cpu")
    for name in ("a.png", "b.png"):
        shutil.copy(image, tmp_path / name)
    assert len(classifier.predict([tmp_path])[0]) == 2
    assert np.array_equal(classifier.embed([tmp_path, image]), classifier.embed([image] * 3))


def test_the_classifier_follows_its_network(weights, video):
    classifier = video_rs.load(weights, "cpu")
    classifier.model.reset_classifier(5)
    assert classifier.class_names == ("0", "1", "2", "3", "4") and len(classifier.predict(video)) == 5
    classifier.model.reset_classifier(0)
    with pytest.raises(UserError, match="the network has no classes; use embed"):
        classifier.predict(video)
    assert classifier.embed(video).shape == (1, classifier.model.num_features)


def test_the_batch_that_fits_is_learned_once(weights, video, monkeypatch, capsys):
    from video_rs.evaluation import multiview

    def forward(model, views, *args):
        if len(views) > 2:
            raise MemoryError
        return original(model, views, *args)

    original = multiview._forward
    monkeypatch.setattr(multiview, "_forward", forward)
    classifier = video_rs.load(weights, "cpu")
    classifier.predict(video)
    classifier.embed(video)
    assert capsys.readouterr().err.count("not enough memory for 4 views") == 1


def test_a_run_folder_stands_for_its_best_weights(tmp_path, weights, video):
    shutil.copy(weights, tmp_path / "best.pt")
    assert video_rs.load(tmp_path, "cpu").predict(video) == video_rs.load(weights, "cpu").predict(video)
    (tmp_path / "best.pt").unlink()
    with pytest.raises(UserError, match="is a folder without best.pt; name a file"):
        video_rs.load(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("notes.txt", "notes.txt: a text file, not a video"),
        ("list.csv", "list.csv: a text file, not a video"),
        ("empty", "empty: no videos in this folder"),
        ("gone.mp4", "gone.mp4: no such file"),
        (None, "cannot classify NoneType: give a path, uint8 frames, a PIL image, or a list"),
        ({"a.mp4": 1}, "cannot classify dict"),
        (np.zeros((0, 40, 40, 3), np.uint8), "no frames"),
        (np.zeros((4, 40, 40, 3), np.uint16), r"frames must be uint8 \[T, H, W, 3\].*got uint16"),
    ],
)
def test_unsupported_inputs_are_one_line(weights, tmp_path, source, words):
    (tmp_path / "notes.txt").write_text("no video\n" * 100)
    (tmp_path / "list.csv").write_text("a.mp4,0\n")
    (tmp_path / "empty").mkdir()
    source = tmp_path / source if isinstance(source, str) else source
    classifier = video_rs.load(weights, "cpu")
    for call in (classifier.predict, classifier.embed):
        with pytest.raises((MediaError, UserError), match=words) as error:
            call(source)
        assert "\n" not in str(error.value) and len(str(error.value)) < 150 + len(str(tmp_path))


def test_wrong_views_are_one_line(weights, video):
    for views in ({"clips": 0}, {"clips": 1.5}, {"crops": 2}):
        with pytest.raises(UserError, match=f"^{next(iter(views))}=.*: must be"):
            video_rs.load(weights, "cpu").predict(video, **views)


def test_a_video_network_refuses_images(weights, image):
    classifier = video_rs.load(weights, "cpu")
    with pytest.raises(MediaError, match=r"a\.png: is an image, but this network takes clips of 4 frames"):
        classifier.predict(image)
    with pytest.raises(MediaError, match=r"the array \[40, 40, 3\] is an image"):
        classifier.predict(torch.zeros(40, 40, 3, dtype=torch.uint8))


@pytest.mark.parametrize("frames", [torch.zeros(4, 40, 40, 3), torch.zeros(4, 3, 40, 40, dtype=torch.uint8)])
def test_frames_of_another_type_or_order_are_refused(weights, frames):
    with pytest.raises(UserError, match=r"uint8 \[T, H, W, 3\].*got"):
        video_rs.load(weights, "cpu").predict(frames)


def test_the_ema_weights_are_used(tmp_path, weights, video):
    ema = checkpoint.load(weights)["model"]
    ema["head.weight"] = ema["head.weight"] / 2
    averaged = save(tmp_path / "ema.pt", "resnet3d_rs_26", CLIPS, ema=ema)
    assert torch.equal(video_rs.load(averaged, "cpu").model.head.weight, ema["head.weight"])


def test_a_model_without_class_names_has_numbers(tmp_path, video):
    path = save(tmp_path / "best.pt", "resnet3d_rs_26", dataclasses.replace(CLIPS, class_names=()))
    assert {p.label for p in video_rs.load(path, "cpu").predict(video)} == {"0", "1", "2"}


def test_checkpoints_that_are_refused(tmp_path, weights):
    wrong = {"name": "resnet3d_rs_26", "num_classes": 4, "width": 0.125}
    with pytest.raises(UserError, match="wrong.pt: as resnet3d_rs_26 it does not fit"):
        video_rs.load(save(tmp_path / "wrong.pt", "resnet3d_rs_26", CLIPS, model_args=wrong))
    newer = {
        "fields ['audio']": {"data_config": {**CLIPS.to_dict(), "audio": 1}},
        "model_args ['heads']": {"model_args": {**wrong, "heads": 2}},
    }
    for words, changes in newer.items():
        checkpoint.save(tmp_path / "new.pt", checkpoint.load(weights) | changes)
        with pytest.raises(UserError, match=f"new.pt.* has .*{re.escape(words)}.*upgrade"):
            video_rs.load(tmp_path / "new.pt")
    checkpoint.save(tmp_path / "bare.pt", checkpoint.load(weights)["model"])
    with pytest.raises(UserError, match="bare weights"):
        video_rs.load(tmp_path / "bare.pt")


@given(length=st.integers(1, 400), span=st.integers(1, 80), step=st.floats(0.05, 100))
def test_window_starts(length, span, step):
    starts = window_starts(length, span, step)
    assert starts[0] == 0 and (np.diff(starts) > 0).all()
    assert starts[-1] == 0 or starts[-1] + span <= length
    if step <= span:
        covered = {frame for start in starts for frame in range(start, start + span)}
        assert set(range(length)) <= covered


def test_window_step_must_be_positive():
    with pytest.raises(UserError, match="above 0"):
        window_starts(10, 2, 0)


@pytest.mark.parametrize("text, value", [("1s", 1), ("0.5s", 0.5), ("500ms", 0.5), ("2", 2), (".25", 0.25)])
def test_times(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["0s", "-1s", "1m", "s", "1..5", ""])
def test_invalid_times(text):
    with pytest.raises(argparse.ArgumentTypeError, match="not a time"):
        seconds(text)


def command(capsys, *arguments):
    code = run(cli.main, ["--device", "cpu", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_command_prints_text(weights, video, capsys):
    code, out, err = command(capsys, "--weights", weights, video)
    top = video_rs.load(weights, "cpu").predict(video)[0]
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == video and len(out.splitlines()) == 4
    assert out.splitlines()[1].split() == [top.label, f"{100 * top.score:.1f}", "%"]


def test_command_prints_json_and_csv(weights, video, capsys):
    code, out, _ = command(capsys, "--weights", weights, "--json", "--top-k", 2, video)
    (line,) = map(json.loads, out.splitlines())
    expected = video_rs.load(weights, "cpu").predict(video, top_k=2)
    assert code == 0 and line["path"] == video
    assert [p["label"] for p in line["predictions"]] == [p.label for p in expected]
    code, out, _ = command(capsys, "--weights", weights, "--csv", "--top-k", 1, video)
    assert out.splitlines()[0] == "path,rank,label,index,score" and out.splitlines()[1].startswith(f"{video},1,")


def test_command_every(weights, video, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "video_rs.evaluation.plots", None)  # a slow import, for --timeline only
    _, out, _ = command(capsys, "--weights", weights, "--every", "500ms", "--json", video)
    assert [json.loads(line)["start"] for line in out.splitlines()] == [0, 0.5, 1, 1.5, 2, 2.2]
    _, out, _ = command(capsys, "--weights", weights, "--every", "1s", video)
    assert len(out.splitlines()) == 4 and out.splitlines()[2].startswith("    0:01.000 -   0:01.800  ")
    _, out, _ = command(capsys, "--weights", weights, "--every", "1s", "--csv", video)
    assert out.splitlines()[0] == "path,start,end,rank,label,index,score"


@pytest.mark.parametrize(
    "every, sampling, num_frames, missed",
    [
        ("1s", {}, 30, 20),  # windows of 8 frames at 0, 10 and 20
        ("800ms", {}, 30, None),
        ("801ms", {}, 30, 20),  # no window at the end
        ("0.9", {}, 30, 20),  # windows at 0, 9 and 18
        ("5s", {}, 30, 73.3),  # a single window
        ("5s", {}, 8, None),  # the video is one window
        ("5s", {}, 5, None),  # and is looped
        ("1s", {"sampling": "segments"}, 30, None),  # a window is as long as its step
        ("1s", {"fps": 5.0}, 30, None),  # a clip of 4 x 2 frames at 5 per second: 1.6 s
        ("2s", {"fps": 5.0}, 30, 46.7),
    ],
)
def test_windows_that_leave_gaps_are_a_warning(
    tmp_path, weights, make_video, capsys, every, sampling, num_frames, missed
):
    video = make_video(tmp_path / "v.mp4", num_frames=num_frames, fps=FPS)
    saved = checkpoint.load(weights)
    checkpoint.save(tmp_path / "w.pt", saved | {"data_config": saved["data_config"] | sampling})
    options = ["--weights", tmp_path / "w.pt", "--every", every, "--json", "--batch-size", 1]  # windows come in parts
    code, out, err = command(capsys, *options, video)
    assert code == 0 and all(map(json.loads, out.splitlines()))
    assert bool(err) == (missed is not None), err
    if missed:
        assert err.startswith(f"warning: {video}: windows of ") and err.count("\n") == 1
        assert f"leave gaps: {missed} % of the video is in no window; use at most " in err
        longest = re.search(r"at most (\S+) s", err)[1]
        assert command(capsys, "--weights", tmp_path / "w.pt", "--every", longest, "--json", video)[::2] == (0, "")


@given(
    st.builds(
        TemporalSampling,
        st.integers(1, 8),
        st.integers(1, 3),
        st.sampled_from(["dense", "segments"]),
        st.sampled_from([0.0, 7.5, 24.0]),
    ),
    st.lists(st.sampled_from([0.02, 0.04, 0.5]), min_size=1, max_size=40),
    st.floats(0.05, 4),
)
def test_gaps_are_frames_in_no_window(sampling, intervals, every):
    timeline = Timeline(len(intervals) + 1, np.cumsum([0.0, *intervals]))
    windows = window_clips(sampling, timeline, every)
    places = np.arange(timeline.length) if timeline.starts is None else timeline.starts
    edges = np.append(places, timeline.length) / timeline.rate
    covered = [
        any(first < end - 1e-6 and stop > start + 1e-6 for start, end, _ in zip(*windows))
        for first, stop in zip(edges, edges[1:])
    ]
    text = windows.describe_gaps(timeline)
    assert bool(text) != all(covered)
    if text:
        assert f"leave gaps: {100 * (1 - np.mean(covered)):.3g} % of the video" in text


def test_gaps_are_reported_once_and_in_python(weights, video, tmp_path, capsys):
    shutil.copy(video, tmp_path / "a.mp4")
    code, _, err = command(capsys, "--weights", weights, "--every", "2s", "--csv", video, tmp_path)
    assert code == 0 and err.count("\n") == 1 and err.endswith(" (2 files have gaps)\n")
    with pytest.warns(UserWarning, match="leave gaps"):
        list(video_rs.load(weights, "cpu").predict_windows(video, 2.0))


def test_missing_files_and_patterns_are_noticed_before_weights_are_loaded(
    weights, video, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.mp4", "b/1.mp4", "b/c/3.mp4", "[x].mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(video)
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    for name, reason in (
        ("gone.mp4", "no such file"),
        ("gone/", "no such file"),
        ("[x].mp4/a.mp4", "no file matches this pattern"),
        ("dangling.mp4", "no such file"),
        ("*.avi", "no file matches this pattern"),
        ("b/**/*.mkv", "no file matches this pattern"),
        ("b/[3-9].mp4", "no file matches this pattern"),
    ):
        code, out, err = command(capsys, "--weights", "no_weights.pt", name)
        assert (code, out, err) == (2, "", f"error: {name}: {reason}\n")
    words = ["--weights", weights, "--csv", "--top-k", 1]
    for name, paths in (
        ("b/*.mp4", ["b/1.mp4", "b/2.mp4"]),
        ("b/**/*.mp4", ["b/1.mp4", "b/2.mp4", "b/c/3.mp4"]),
        ("[x].mp4", ["[x].mp4"]),  # it exists
        ("?/c", ["b/c/3.mp4"]),
    ):
        code, out, err = command(capsys, *words, name)
        assert (code, err) == (0, "") and [line.split(",")[0] for line in out.splitlines()[1:]] == paths
    code, out, err = command(capsys, *words, "gone.mp4", "*.avi", "[x].mp4")
    assert code == 2 and out.splitlines()[1].startswith("[x].mp4,") and err.endswith("2 of 3 could not be predicted\n")


@pytest.mark.parametrize("every", ["1ms", "0.000000001s", "90ms"])
def test_windows_are_a_frame_apart_at_least(weights, video, capsys, every):
    _, out, _ = command(capsys, "--weights", weights, "--every", every, "--json", video)
    starts = [json.loads(line)["start"] for line in out.splitlines()]
    assert starts == [round(frame / FPS, 3) for frame in range(30 - 8 + 1)]
    _, out, _ = command(capsys, "--weights", weights, "--every", every, video)
    shown = [line.split(" - ")[0] for line in out.splitlines()[1:]]
    assert len(set(shown)) == len(shown) == len(starts)


def test_every_and_clips_exclude_each_other(weights, video, capsys):
    code, out, err = command(capsys, "--weights", weights, "--every", "1s", "--clips", 2, video)
    assert code == 2 and not out and len(err.splitlines()) == 1 and "--clips" in err and "--every" in err


@pytest.mark.slow
def test_names_that_are_not_utf8(weights, video, tmp_path):
    """Run the command in a process: pytest's stderr, unlike a real one, refuses such names."""
    odd = tmp_path / os.fsdecode(b"odd\xff.mp4")
    shutil.copy(video, odd)
    tool = [sys.executable, "tools/predict.py", "--device", "cpu", "--weights", weights]
    options = {"cwd": Path(__file__).parents[1], "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    done = subprocess.run([*tool, odd, video], capture_output=True, text=True, **options)
    assert (done.returncode, done.stderr) == (0, "") and video in done.stdout and "odd\\udcff.mp4" in done.stdout
    assert torch.equal(*(read_frames(odd, [0, 9], backend=backend) for backend in BACKENDS))


def test_home_is_expanded_by_load_and_predict(monkeypatch, tmp_path, weights):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(weights, tmp_path / "mine.pt")
    assert video_rs.load("~/mine.pt", "cpu").class_names == NAMES
    with pytest.raises(UserError, match=f"{tmp_path}/none: no such folder"):
        video_rs.VideoDataset("$HOME/none", "train", video_rs.create_transform(**CLIPS.to_dict()))


def test_unreadable_files_are_reported_and_other_files_predicted(weights, video, tmp_path, capsys):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video at all")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    code, out, err = command(capsys, "--weights", weights, "--json", bad, empty, tmp_path / "gone.mp4", video)
    assert code == 2 and [json.loads(line)["path"] for line in out.splitlines()] == [video]
    assert all(f"error: {tmp_path / name}" in err for name in ("bad.mp4", "empty.mp4", "gone.mp4"))
    assert "3 of 4" in err and "Traceback" not in err


def test_an_empty_path_is_no_folder_and_two_dashes_precede_paths(weights, video, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").symlink_to(video)
    (tmp_path / "-3B32lodo2M.mp4").symlink_to(video)
    code, out, err = command(capsys, "--weights", weights, "")
    assert (code, out) == (2, "") and "a path is empty" in err
    code, out, _ = command(capsys, "--csv", "--weights", weights, "--top-k", 1, "--", "-3B32lodo2M.mp4", "a.mp4")
    assert code == 0 and [line.split(",")[0] for line in out.splitlines()] == ["path", "./-3B32lodo2M.mp4", "a.mp4"]


def test_folders_are_searched(weights, video, tmp_path, capsys, make_video):
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "still.png").touch()  # a video network leaves images alone
    for name in ("b/two.mp4", "a/one.MKV"):
        make_video(tmp_path / name, num_frames=6)
    for name in ("@eaDir/one.mp4", "a/._one.MKV", "__MACOSX/b/two.mp4"):  # of systems and tools
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no video")
    code, out, err = command(capsys, "--weights", weights, "--json", tmp_path)
    paths = [json.loads(line)["path"] for line in out.splitlines()]
    assert code == 0 and paths == [str(tmp_path / "a/one.MKV"), str(tmp_path / "b/two.mp4")]
    assert err.startswith("note: 2 files or folders are left out") and err.endswith("notes.txt\n")
    (tmp_path / "none").mkdir()
    code, out, err = command(capsys, "--weights", weights, tmp_path / "none")
    assert code == 2 and "none: no videos in this folder" in err


def test_folders_of_frames(weights, image_weights, video, tmp_path, capsys):
    from PIL import Image

    folders = [tmp_path / "clips" / name for name in ("b", "a/deeper")]
    for folder in folders:
        folder.mkdir(parents=True)
        for number, frame in enumerate(all_frames(video)):
            Image.fromarray(frame.numpy()).save(folder / f"img_{number:05d}.png")
    classifier = video_rs.load(weights, "cpu")
    assert classifier.predict(folders[0], clips=3, crops=3) == classifier.predict(video, clips=3, crops=3)
    for source in (tmp_path / "clips", *folders):
        code, out, err = command(capsys, "--weights", weights, "--json", source)
        paths = [json.loads(line)["path"] for line in out.splitlines()]
        expected = [str(folders[1]), str(folders[0])] if source == tmp_path / "clips" else [str(source)]
        assert (code, err, paths) == (0, "", expected)
    shutil.copytree(folders[0], tmp_path / "mixed" / "b.avi")
    shutil.copy(video, tmp_path / "mixed" / "c.mp4")
    code, out, err = command(capsys, "--weights", weights, "--json", tmp_path / "mixed")
    paths = sorted(json.loads(line)["path"] for line in out.splitlines())
    assert (code, err, paths) == (0, "", [str(tmp_path / "mixed" / name) for name in ("b.avi", "c.mp4")])
    code, out, _ = command(capsys, "--weights", image_weights, "--json", tmp_path / "mixed")
    assert code == 0 and len(out.splitlines()) == 31  # each image of b.avi/
    code, out, _ = command(capsys, "--weights", image_weights, "--json", folders[0])
    assert code == 0 and len(out.splitlines()) == 30  # an image network sees images
    code, out, err = command(capsys, "--weights", weights, "--every", "1s", folders[0])
    assert code == 2 and out == "" and err.count("\n") == 1 and "has no frame rate" in err
    (folders[0] / "img_00003.png").unlink()
    code, out, err = command(capsys, "--weights", weights, folders[0])
    assert code == 2 and err.count("\n") == 1 and "b: img_00003.png is missing" in err


def test_recorded_videos(assets, weights, capsys):
    names = ["arm_wrestling.mp4", "av1.mkv", "rotated_90.mov", "corrupted.mp4"]
    code, out, err = command(capsys, "--weights", weights, "--json", *(assets / "videos" / name for name in names))
    assert code == 2 and len(out.splitlines()) == 3
    assert len(err.splitlines()) == 2 and "corrupted.mp4" in err


def test_bad_weights_are_one_line(tmp_path, video, capsys):
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut short")
    for name in ("cut.pt", "gone.pt"):
        code, _, err = command(capsys, "--weights", tmp_path / name, video)
        assert code == 2 and err.startswith("error: ") and name in err and len(err.splitlines()) == 1
