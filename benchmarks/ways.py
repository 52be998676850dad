"""The ways to read training clips that data_loading.py compares: each turns a :class:`Task` into batches."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from video_rs.data.clip_datasets import ClipDataset
from video_rs.data.clips import TemporalSampling
from video_rs.data.loader import clip_loader
from video_rs.data.sampler import BatchStream, SampleKey
from video_rs.data.sources.dataset_index import file_version, pack
from video_rs.data.sources.records import Records
from video_rs.data.transforms.crops import TrainTransform
from video_rs.data.video.decode import probe
from video_rs.data.video.stream_index import read_stream_index
from video_rs.errors import MediaError

SEED = 0
BARE = "bare decode"


@dataclass(frozen=True)
class Task:
    """The clips to read, the same for all ways.

    Attributes:
        paths: path of each record.
        num_frames, stride, size: of a clip.
        batch: clips per batch.
        workers: number of loader processes.
        window: number of timed batches.
        frames: frame numbers of each clip.
    """

    paths: list[str]
    num_frames: int
    stride: int
    size: int
    batch: int
    workers: int
    window: int
    frames: dict[SampleKey, np.ndarray]

    @property
    def steps(self) -> int:
        """The number of batches: warm-up, timed ones, memory sampling, and four per worker to keep all of them busy."""
        return self.window + 6 * self.workers

    def stream(self, steps: int = 0) -> BatchStream:
        return BatchStream(len(self.paths), batch_size=self.batch, num_steps=steps or self.steps, seed=SEED)

    def dataset(self, decoder: str, *, indexed: bool = False) -> ClipDataset:
        records = Records(self.paths, [0] * len(self.paths), ["video"])
        if indexed:
            indexes = ((i, file_version(path), read_stream_index(path)) for i, path in enumerate(self.paths))
            records.index = pack(indexes, len(self.paths))
        sampling = TemporalSampling(self.num_frames, self.stride)
        return ClipDataset(records, sampling=sampling, transform=TrainTransform(self.size), seed=SEED, decoder=decoder)

    def with_frames(self) -> Task:
        """Return the task with the frame numbers that ``ClipDataset`` draws for each clip."""
        dataset = self.dataset("pyav")
        keys = itertools.chain.from_iterable(self.stream())
        return replace(self, frames={key: dataset[key]["frames"] for key in keys})


def ours(decoder: str, task: Task, *, indexed: bool = False, steps: int = 0) -> Iterable[dict[str, Any]]:
    return clip_loader(task.dataset(decoder, indexed=indexed), task.stream(steps), workers=task.workers)


class Peer(Dataset):
    """Another way to read the clips of a task. ``read(path, frames)`` returns what a DataLoader can collate."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __getitem__(self, key: SampleKey) -> Any:
        return self.read(self.task.paths[key.index], self.task.frames[key])

    def loader(self) -> DataLoader:
        return DataLoader(self, batch_sampler=self.task.stream(), num_workers=self.task.workers)


class BareDecode(Peer):
    """Decode from the keyframe before the clip to its last frame. Keyframes are located beforehand."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.times = {path: self._times(path) for path in dict.fromkeys(task.paths)}

    @staticmethod
    def _times(path: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the timestamps of the frames and of the keyframes, ascending."""
        with av.open(path) as container:
            packets = [packet for packet in container.demux(container.streams.best("video")) if packet.size]
        return np.sort([p.pts for p in packets]), np.sort([p.pts for p in packets if p.is_keyframe])

    def read(self, path: str, frames: np.ndarray) -> int:
        times, keys = self.times[path]
        first, last = times[frames[0]], times[frames[-1]]
        with av.open(path) as container:
            stream = container.streams.best("video")
            stream.codec_context.thread_count = 1
            key = keys[np.searchsorted(keys, first, side="right") - 1]
            if key > keys[0]:
                container.seek(int(key), stream=stream)
            decoded = itertools.takewhile(lambda frame: frame.pts < last, container.decode(stream))
            count = 1 + sum(frame.pts >= first for frame in decoded)  # takewhile also consumes the last one
        if count != frames[-1] - frames[0] + 1:
            raise MediaError(f"{path}: bare decoding finds {count} frames in frames {frames[0]} to {frames[-1]}")
        return count


class WholeFrames(Peer):
    def read(self, path: str, frames: np.ndarray) -> int:
        import decord

        return len(decord.VideoReader(path, num_threads=1).get_batch(frames.tolist()).asnumpy())


class PyTorchVideo(Peer):
    """PyTorchVideo at its fastest settings: no audio, ``close()`` after each clip, only the seconds of the clip."""

    def __init__(self, decoder: str, task: Task) -> None:
        super().__init__(task)
        self.decoder = decoder
        self.rates = {path: probe(path).fps for path in dict.fromkeys(task.paths)}
        shim_torchvision()
        from pytorchvideo import transforms as T
        from torchvision.transforms import Compose, RandomCrop, RandomHorizontalFlip

        steps = [T.UniformTemporalSubsample(task.num_frames), T.Div255(), T.Normalize((0.45,) * 3, (0.225,) * 3)]
        short_side = [round(task.size * 256 / 224), round(task.size * 320 / 224)]
        self.transform = Compose(
            [*steps, T.RandomShortSideScale(*short_side), RandomCrop(task.size), RandomHorizontalFlip()]
        )

    def read(self, path: str, frames: np.ndarray) -> torch.Tensor:
        from pytorchvideo.data.encoded_video import EncodedVideo

        video = EncodedVideo.from_path(path, decode_audio=False, decoder=self.decoder)
        start = frames[0] / self.rates[path]
        clip = video.get_clip(start, start + self.task.num_frames * self.task.stride / self.rates[path])["video"]
        video.close()
        return self.transform(clip)


def shim_torchvision() -> None:
    """Provide the old name of a torchvision module that PyTorchVideo 0.1.5 imports."""
    from torchvision.transforms import _functional_tensor

    sys.modules.setdefault("torchvision.transforms.functional_tensor", _functional_tensor)
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch.jit warns at import


WAYS: dict[str, Callable[[Task], Iterable[Any]]] = {
    BARE: lambda task: BareDecode(task).loader(),
    "video_rs, pyav": partial(ours, "pyav"),
    "video_rs, decord": partial(ours, "decord"),
    "video_rs, pyav, index": partial(ours, "pyav", indexed=True),
    "video_rs, decord, index": partial(ours, "decord", indexed=True),
    "decord, whole frames": lambda task: WholeFrames(task).loader(),
    "PyTorchVideo, pyav": lambda task: PyTorchVideo("pyav", task).loader(),
    "PyTorchVideo, decord": lambda task: PyTorchVideo("decord", task).loader(),
}
