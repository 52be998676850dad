"""Datasets as torch users know them: ``dataset[i] -> (clip, label)``, with torch's own DataLoader."""

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import video_rs
from video_rs.data.clips import TemporalSampling
from video_rs.data.sampler import SampleKey
from video_rs.data.transforms.crops import TrainTransform, ViewTransform, normalize
from video_rs.data.video.decode import read_frames
from video_rs.data.video_dataset import VideoDataset
from video_rs.data_config import DataConfig
from video_rs.errors import MediaError, UserError

SMALL = DataConfig(num_frames=4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), train_size=16, short_side=24, test_size=20)
EVALUATION = video_rs.create_transform(**SMALL)
TRAINING = video_rs.create_transform(**SMALL, is_training=True)


@pytest.fixture(scope="module")
def root(make_video, tmp_path_factory):
    """Two classes of five videos each."""
    root = tmp_path_factory.mktemp("dataset")
    for number in range(10):
        make_video(root / "train" / "ab"[number // 5] / f"{number}.mp4", 20 + number, 32, 48, first_number=100 * number)
    return root


@pytest.mark.parametrize("kind", ["folder", "split", "names", "numbers", "one file", "val"])
def test_one_class_is_a_dataset(make_video, tmp_path, kind):
    folder = tmp_path / {"split": "train", "val": "val"}.get(kind, "") / "only"
    files = [make_video(folder / f"{i}.mp4", 20 + i, 32, 48) for i in range(1 if kind == "one file" else 3)]
    place, split = tmp_path, "val" if kind == "val" else "train"
    if kind in ("names", "numbers", "one file"):
        place = tmp_path / "list.csv"
        label = "0" if kind == "numbers" else "only"
        place.write_text("path,label\n" + "".join(f"{file},{label}\n" for file in files))
    sources = {"class_names": str(tmp_path / "names.txt")} if kind == "val" else {}
    (tmp_path / "names.txt").write_text("only\n")
    dataset = VideoDataset(place, split, EVALUATION, **sources)
    assert dataset.classes == (("0",) if kind == "numbers" else ("only",))
    assert {label for _, label in DataLoader(dataset, batch_size=None)} == {0} and len(dataset) >= 1


def test_a_transform_of_a_data_config():
    assert isinstance(TRAINING.spatial, TrainTransform) and isinstance(EVALUATION.spatial, ViewTransform)
    assert TRAINING.sampling == EVALUATION.sampling == TemporalSampling(4, 2)
    assert (TRAINING.is_training, EVALUATION.is_training) == (True, False)
    frames = torch.randint(256, (4, 30, 40, 3), dtype=torch.uint8)
    clips = [transform(frames) for transform in (TRAINING, EVALUATION)]
    assert [clip.shape for clip in clips] == [(3, 4, 16, 16), (3, 4, 20, 20)]
    assert {clip.dtype for clip in clips} == {torch.float32}
    assert torch.equal(EVALUATION(frames.numpy()), clips[1])


@pytest.mark.parametrize(
    "wrong", [{"train_size": "48"}, {"test_size": 0}, {"filter": "lanczos"}, {"flip": 2}, {"stride": None}]
)
def test_a_wrong_argument_of_a_transform_is_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}="):
        video_rs.create_transform(**wrong)


def test_wrong_splits_and_indices_are_one_line(root):
    with pytest.raises(UserError, match="^split 'valid': must be train, val or test"):
        VideoDataset(root, "valid")
    dataset = VideoDataset(root, "train", EVALUATION)
    assert dataset[-1][1] == 1
    for index, error in ((slice(2), TypeError), (["a"], TypeError), (100, IndexError)):
        with pytest.raises(error, match="index"):
            dataset[index]


def test_an_evaluation_clip_is_the_centre_view_normalized(root):
    dataset = VideoDataset(root, "train", EVALUATION)
    assert (len(dataset), dataset.classes, dataset[7][1]) == (8, ("a", "b"), 1)
    views = dataset.views(clips=1, crops=1)
    for index, (clip, label) in enumerate(dataset):
        item = views[index]
        assert torch.equal(clip, normalize(item["views"], SMALL.mean, SMALL.std)[0]) and label == item["label"]
        assert torch.equal(clip, EVALUATION(read_frames(dataset.records.path(index), item["frames"][0])))
    assert len(VideoDataset(root, "val", EVALUATION)) == 2  # what the training split does without
    assert dataset.views(clips=3, crops=3)[0]["views"].shape == (9, 4, 20, 20, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffled_loader_draws_from_torchs_generator(root, workers):
    dataset = VideoDataset(root, "train", TRAINING)

    def epoch(seed):
        torch.manual_seed(seed)
        return list(DataLoader(dataset, batch_size=4, shuffle=True, num_workers=workers))

    first, again, other = epoch(0), epoch(0), epoch(1)
    assert [clips.shape for clips, _ in first] == [(4, 3, 4, 16, 16)] * 2
    assert sorted(torch.cat([labels for _, labels in first]).tolist()) == [0] * 4 + [1] * 4
    for (clips, labels), (same_clips, same_labels) in zip(first, again, strict=True):
        assert torch.equal(clips, same_clips) and torch.equal(labels, same_labels)
    assert not torch.equal(first[0][0], other[0][0])
    assert not torch.equal(dataset[0][0], dataset[0][0])


def test_a_training_clip_is_a_crop_of_consecutive_frames(root, frame_numbers):
    whole = {"area": (1, 1), "aspect": (1.5, 1.5), "flip": 0.0}
    transform = video_rs.create_transform(num_frames=4, stride=3, train_size=32, is_training=True, **whole)
    dataset = VideoDataset(root, "train", transform)
    numbers = frame_numbers((dataset[3][0] * 255).round().permute(1, 2, 3, 0))
    assert [number - numbers[0] for number in numbers] == [0, 3, 6, 9]
    assert dataset.records.path(3).endswith(f"/{numbers[0] // 100}.mp4")


def test_the_samples_of_the_trainer(root):
    dataset = VideoDataset(root, "train", TRAINING)
    samples = dataset.training_samples(seed=3, phases=[(2, 12)])
    assert samples[SampleKey(0, 1)]["clip"].shape == (4, 16, 16, 3)
    assert samples[SampleKey(0, 1, phase=1)]["clip"].shape == (2, 12, 12, 3)
    with pytest.raises(ValueError, match="is_training=False"):
        dataset.views()
    with pytest.raises(ValueError, match="is_training=True"):
        VideoDataset(root, "train", EVALUATION).training_samples()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_file_is_named(root, tmp_path, workers):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "list.csv").write_text(f"empty.mp4,a\n{root}/train/b/5.mp4,b\n")
    dataset = VideoDataset(tmp_path / "list.csv", "train", EVALUATION)
    with pytest.raises(MediaError, match=str(tmp_path / "empty.mp4")):
        list(DataLoader(dataset, num_workers=workers))


def test_several_labels_are_a_vector(root, tmp_path):
    (tmp_path / "list.csv").write_text(f"{root}/train/a/0.mp4,b;c\n{root}/train/a/1.mp4,a\n")
    several = video_rs.create_transform(**dict(SMALL, multi_label=True))
    for dataset in (
        VideoDataset(tmp_path / "list.csv", "val", several),
        VideoDataset(tmp_path / "list.csv", "val", EVALUATION, multi_label=True),
    ):
        (_, labels) = next(iter(DataLoader(dataset, batch_size=2)))
        assert labels.dtype == torch.float32 and labels.tolist() == [[0, 1, 1], [1, 0, 0]]


def test_a_transform_of_another_kind_is_refused(root):
    with pytest.raises(TypeError, match="made by video_rs.create_transform, got function"):
        VideoDataset(root, "train", lambda clip: clip)


def test_images(tmp_path):
    for name in "abcd":
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), (10, 20, 30)).save(tmp_path / "val" / name / "x.png")
    clip, label = VideoDataset(tmp_path, "val", video_rs.create_transform(**dict(SMALL, num_frames=1)))[2]
    assert clip.shape == (3, 1, 20, 20) and label == 2
    with pytest.raises(UserError, match=r"the data are images \(.*\), and data.num_frames=\d+ is for videos"):
        VideoDataset(tmp_path, "val", EVALUATION)
