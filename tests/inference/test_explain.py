"""Activation maps: the formula, the frames that they belong to, the files and lines of the command."""

import dataclasses
import shutil
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.commands import script
from tests.test_predict import CLIPS, IMAGES, NAMES, save, tiny
from video_rs.data.transforms.crops import normalize
from video_rs.data.video.decode import open_video
from video_rs.data_config import DataConfig
from video_rs.errors import MachineError, MediaError, StorageError, UserError
from video_rs.files import write_csv
from video_rs.inference.explain import activation_maps, explain
from video_rs.inference.explain_mistakes import explain_mistakes
from video_rs.inference.inputs import output_files
from video_rs.inference.overlay import BAND, MIN_SIDE, SUFFIXES, draw, write
from video_rs.inference.predict import Classifier
from video_rs.models.registry import create_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    """A network whose blocks are not the identity: gammas that start at 0 are random."""
    model = tiny("resnet3d_rs_26", CLIPS).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("conv3.norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def classifier(model):
    return Classifier(model)


@pytest.fixture(scope="module")
def video(tmp_path_factory, make_video):
    frames = np.random.default_rng(0).integers(0, 256, (19, 6, 8, 3), dtype=np.uint8)
    frames = frames.repeat(8, axis=1).repeat(8, axis=2)
    return str(make_video(tmp_path_factory.mktemp("video") / "clip.mp4", frames=frames, fps=10))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save(tmp_path_factory.mktemp("weights") / "best.pt", "resnet3d_rs_26", CLIPS)


def views_of(count=2, frames=4, size=64):
    return torch.randint(0, 256, (count, frames, size, size, 3), dtype=torch.uint8)


def test_maps_of_the_last_stage_are_cam(model):
    """After global pooling and a linear layer, the weights of the maps are those of the classifier (CAM)."""
    views = views_of()
    with torch.no_grad():
        maps = model.forward_features(normalize(views, CLIPS.mean, CLIPS.std))
    cams = torch.einsum("kc,ncthw->nkthw", model.head.weight.detach(), maps).relu() / maps[0, 0].numel()
    found = activation_maps(model, views, range(len(NAMES)), "stage4")
    assert cams.any() and not cams.all()
    for index in range(len(NAMES)):
        torch.testing.assert_close(found[:, index], cams[:, index])


def test_maps_of_an_earlier_stage_are_grad_cam(model):
    """The gradients are those of the rest of the network, computed by hand."""
    views = views_of(3)
    x = model.stem(normalize(views, CLIPS.mean, CLIPS.std))
    maps = model.stages[1](model.stages[0](x)).detach().requires_grad_()
    logits = model.head(model.stages[3](model.stages[2](maps)).mean(dim=(2, 3, 4)))
    found = activation_maps(model, views, [2, 0], "stage2")
    for position, index in enumerate([2, 0]):
        (gradients,) = torch.autograd.grad(logits[:, index].sum(), maps, retain_graph=True)
        cam = (gradients.mean(dim=(2, 3, 4))[:, :, None, None, None] * maps).sum(dim=1).relu()
        torch.testing.assert_close(found[:, position], cam.detach())


def test_layers_before_the_maps_keep_no_activations(model):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        activation_maps(model, views_of(1), [0], "stage4")
    assert saved and sum(tensor.numel() for tensor in saved) < 2 * model.num_features * len(NAMES)


def test_frames_maps_and_times(classifier, video):
    """Three clips cover 19 frames. A frame is the test crop of the frame at its time, and frame 11 is in two clips."""
    (found,) = explain(classifier, video, NAMES[1], layer="stem")
    clips = [[0, 2, 4, 6], [5, 7, 9, 11], [11, 13, 15, 17]]
    numbers = sorted({*np.ravel(clips)})
    with open_video(video) as opened:
        frames = opened.read(numbers, short_side=CLIPS.short_side, filter=CLIPS.filter)
        assert np.array_equal(found.times, opened.times[numbers])
    _, height, width, _ = frames.shape
    top, left, size = (height - CLIPS.test_size) // 2, (width - CLIPS.test_size) // 2, CLIPS.test_size
    assert np.array_equal(found.frames, frames[:, top : top + size, left : left + size].numpy())

    views = torch.from_numpy(found.frames)[torch.from_numpy(np.searchsorted(numbers, clips))]
    maps = F.interpolate(activation_maps(classifier.model, views, [1], "stem"), views.shape[1:4], mode="trilinear")
    maps = maps[:, 0].numpy()
    expected = np.stack([np.mean([m[c.index(n)] for m, c in zip(maps, clips) if n in c], axis=0) for n in numbers])
    np.testing.assert_allclose(found.maps, expected / expected.max(), atol=1e-6)
    assert (found.label, found.index, found.layer) == (NAMES[1], 1, "stem")


@pytest.mark.parametrize("frames", [1, 3])
def test_a_video_shorter_than_a_clip(classifier, frames):
    (found,) = explain(classifier, views_of(1, frames, 48)[0].numpy())
    assert found.frames.shape == (frames, 32, 32, 3) and found.times is None


def test_classes_and_scores(classifier, video):
    several = explain(classifier, video, top_k=3)
    expected = classifier.predict(video, clips=3)
    assert [(each.label, each.score) for each in several] == [(p.label, pytest.approx(p.score)) for p in expected]
    named = explain(classifier, video, [NAMES[2], NAMES[0]])
    assert [each.label for each in named] == [NAMES[2], NAMES[0]]
    same = next(each for each in several if each.label == NAMES[2])
    assert np.allclose(named[0].maps, same.maps, atol=1e-6)


def test_the_network_is_as_before(model, classifier, video):
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)  # as in a service that only predicts
    try:
        with torch.inference_mode():
            found = explain(classifier, video)[0]
    finally:
        for parameter in frozen:
            parameter.requires_grad_()
    assert np.array_equal(found.maps, explain(classifier, video)[0].maps)
    with pytest.raises(UserError, match="after the pooling"):
        explain(classifier, video, layer="head")
    assert not any(module._forward_hooks for module in model.modules()) and not model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "size", "frames", "layer"),
    [
        ("resnet3d_rs_26", 56, 4, "stage2"),  # 14, 7, 4 and 2 cells
        ("resnet3d_rs_26", 224, 2, "stage4"),
        ("resnet3d_rs_26", 32, 2, "stage1"),  # 8, 4, 2 and 1 cells, and the stem 8
        ("timm/vit_tiny_patch16_224", 112, 1, "stage11"),  # no logit depends on the tokens after the last block
    ],
)
def test_default_layer(name, size, frames, layer):
    data_config = DataConfig(num_frames=frames, train_size=size, short_side=size, test_size=size)
    width = {} if name.startswith("timm/") else {"width": 0.125}
    network = create_model(name, num_classes=2, data_config=data_config, **width).eval()
    assert explain(Classifier(network), views_of(1, frames, size)[0])[0].layer == layer


def test_half_precision_and_several_labels(video):
    config = DataConfig(**{**CLIPS, "multi_label": True})
    classifier = Classifier(tiny("resnet3d_rs_26", config).bfloat16())
    found = explain(classifier, video, top_k=3)
    assert all(0 < each.score < 1 and np.isfinite(each.maps).all() for each in found)
    assert {each.label for each in found} == {*NAMES} and abs(sum(each.score for each in found) - 1) > 1e-3


def test_images(tmp_path):
    classifier = Classifier(tiny("resnet_rs_26", IMAGES))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (file,), (memory,) = explain(classifier, tmp_path / "a.png"), explain(classifier, Image.fromarray(pixels))
    assert file.frames.shape == (1, 32, 32, 3) and np.array_equal(file.maps, memory.maps)
    with pytest.raises(MediaError, match=r"a\.png: is an image, but this network takes clips of 4 frames"):
        explain(Classifier(tiny("resnet3d_rs_26", CLIPS)), tmp_path / "a.png")


def test_drawn_panels(classifier, video, tmp_path):
    found = explain(classifier, video, NAMES[:2], layer="stage1")
    panels = draw(found)
    half, none = ([dataclasses.replace(each, maps=np.zeros_like(each.maps)) for each in found] for _ in range(2))
    half[0].maps[:, :, :16] = 1
    plain, marked = draw(none), draw(half)
    assert panels.shape == (2, len(found[0].frames), MIN_SIDE + BAND, MIN_SIDE, 3) and panels.dtype == np.uint8
    assert np.array_equal(plain[0, :, BAND:], plain[1, :, BAND:])  # the same frames
    assert (plain[0, :, :BAND] != plain[1, :, :BAND]).any()  # other names
    changed = (marked != plain)[0, :, BAND:].any(axis=3)
    assert changed[:, :, :100].all() and not changed[:, :, 125:].any()  # of 224 pixels

    for name in ("cam.mp4", "cam.webp", "cam.png"):
        write(tmp_path / name, panels, fps=12.5)
    with open_video(tmp_path / "cam.mp4") as written:
        assert (written.num_frames, written.fps) == (len(panels[0]), 12.5)
        assert written.read([0]).shape[1:] == (MIN_SIDE + BAND, 2 * MIN_SIDE, 3)
    with Image.open(tmp_path / "cam.webp") as image:
        assert (image.n_frames, image.info["loop"], image.size) == (len(panels[0]), 0, (2 * MIN_SIDE, MIN_SIDE + BAND))
    with Image.open(tmp_path / "cam.png") as image:
        assert image.size == (8 * MIN_SIDE, 2 * (MIN_SIDE + BAND))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cam.mp4", "cam.png", "cam.webp"]


def test_names_of_the_files(tmp_path):
    new = tmp_path / "new"
    files = ["x/a.mp4", "y/a-2.mp4", "y/a.mp4", "y/a.jpg", "y/b.webm"]

    def names(out, files, **options):
        return [str(path.relative_to(tmp_path)) for path in output_files(tmp_path / out, files, SUFFIXES, **options)]

    assert names("new", files) == ["new/a.mp4", "new/a-2.mp4", "new/a-3.mp4", "new/a.png", "new/b.mp4"]
    assert names("c.webp", files[:1]) == ["c.webp"]
    new.mkdir()
    (new / "b.mp4").touch()
    for out, inputs, match in (
        ("c.gif", files, r"c\.gif: cannot write \.gif; use \.mp4, \.webp, \.png, or a folder"),
        ("c.mp4", files, r"c\.mp4: 5 files need a folder"),
        ("new", files, r"b\.mp4 exists; .* --overwrite"),
        ("new", [str(new / "b.mp4")], "b.mp4 is one of the inputs"),
    ):
        with pytest.raises(UserError, match=match):
            names(out, inputs)
    assert len(names("new", files, overwrite=True)) == 5


def command(*arguments):
    done = script("tools/explain.py", "--device", "cpu", *arguments)
    return done.returncode, done.stdout, done.stderr


def test_command(weights, video, tmp_path, monkeypatch):
    code, out, error = command("--weights", weights, video, "--out", tmp_path / "cam.webp", "--class", NAMES[0])
    assert (code, error) == (0, "") and out.startswith(f"{tmp_path / 'cam.webp'}: {NAMES[0]} ")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    shutil.copy(video, tmp_path / "videos" / "fine.mp4")
    code, out, error = command("--weights", weights, tmp_path / "videos", "missing.mp4", "--out", tmp_path / "cams")
    assert code == 2 and "missing.mp4: no such file" in error and "broken.mp4: " in error
    assert [path.name for path in (tmp_path / "cams").iterdir()] == ["fine.mp4"] and len(error.splitlines()) == 2

    def fails(path, *arguments, **options):
        if "broken" in str(path):
            raise StorageError(str(path), "Input/output error")
        return open_video(path, *arguments, **options)

    monkeypatch.setattr("video_rs.inference.explain.open_video", fails)
    again = ["--weights", weights, "--out", tmp_path / "cams", "--overwrite", tmp_path / "videos"]
    assert command(*again)[::2] == (2, f"error: {tmp_path / 'videos' / 'broken.mp4'}: Input/output error\n")
    (tmp_path / "videos" / "fine.mp4").unlink()
    assert command(*again)[0] == 3  # the storage has failed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--layer", "stage9"], "the network has no layer 'stage9'; did you mean stage4?"),
        (["--layer", "head"], "the layer head comes after the pooling and has no maps; choose an earlier one"),
        (["--class", "jugling"], "the network has no class 'jugling'; did you mean juggling?"),
        (["--class", "?" * 200], "the network has no class '????"),
        (["--worst", "3"], "--worst takes files and classes from a test and writes to its report"),
        (["--split", "val"], "--split needs --worst"),
        (["--top-k", "13"], "at most 12 classes fit side by side"),
    ],
)
def test_bad_input_is_one_line(weights, video, tmp_path, arguments, line):
    code, out, error = command("--weights", weights, video, "--out", tmp_path / "cam.mp4", *arguments)
    assert code == 2 and error.startswith(f"error: {line}") and len(error.splitlines()) == 1 and not out
    assert not list(tmp_path.iterdir())


def test_mistakes_of_classes_with_a_separator_or_a_formula_as_name(tmp_path, video):
    classifier = Classifier(tiny("resnet3d_rs_26", DataConfig(**{**CLIPS, "class_names": ("a;b", "=c", "d")})))
    (tmp_path / "report.html").write_text("<!-- explain:0 -->")
    rows = [(video, "a;b", "=c", 0, 1)]
    write_csv(tmp_path / "predictions.csv", ("path", "label", "predicted", "correct", "scored"), rows)
    assert explain_mistakes(classifier, tmp_path, 1) == 1


def test_without_memory_or_classes(classifier, video, monkeypatch):
    monkeypatch.setattr("video_rs.inference.explain.activation_maps", MagicMock(side_effect=MemoryError))
    with pytest.raises(MachineError, match="not enough memory for activation maps: take fewer clips"):
        explain(classifier, video)
    model = create_model("resnet3d_rs_26", num_classes=0, width=0.125, data_config=CLIPS)
    with pytest.raises(UserError, match="the network has no classes"):
        explain(Classifier(model), video)


def test_class_names_of_other_scripts(classifier, video):
    """A name without a font has a panel, and control characters are not drawn as such."""
    (found,) = explain(classifier, video, clips=1)
    for label in ("\u8df3\u8df3", "a\nb\u202e", "x" * 500):
        assert draw([dataclasses.replace(found, label=label)]).shape[2] == MIN_SIDE + BAND
