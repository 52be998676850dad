"""Calls with one file, in a process with limited time and memory."""

from __future__ import annotations

import hashlib
import math
import resource
import time
import traceback
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from video_rs import load
from video_rs.data.clip_datasets import ClipDataset, ViewDataset
from video_rs.data.clips import TemporalSampling
from video_rs.data.sampler import SampleKey
from video_rs.data.sources import dataset_index
from video_rs.data.sources.names_file import read_class_names
from video_rs.data.sources.records import Records
from video_rs.data.sources.splits import load_splits
from video_rs.data.tools.check_file import check_file
from video_rs.data.tools.encode import Settings, encode_video
from video_rs.data.transforms.crops import TrainTransform, ViewTransform
from video_rs.data.video.decode import open_video, probe
from video_rs.data.video.stream_index import read_stream_index
from video_rs.data.video_dataset import VideoDataset
from video_rs.errors import MediaError, UserError
from video_rs.experiment.config import load_config

MAX_SECONDS, MAX_BYTES = 30, 3 * 2**30
MOST_FRAMES, MAX_MESSAGE = 64, 500
Beat = Callable[[], None]


class Outcome(NamedTuple):
    """The result of one call.

    Attributes:
        value: result of the call; None if the file was refused or the call failed.
        refused: the message of the ``MediaError``, or "".
        failed: the traceback of any other exception, or "".
        seconds: processor time.
        bytes: peak memory of the call, in addition to that of the process before it.
    """

    value: Any
    refused: str
    failed: str
    seconds: float
    bytes: int


def call(item: tuple[str, str], beat: Beat) -> Outcome:
    """Call a function of ``VIDEOS`` or ``OTHERS``. `item` has the name of the function, and the path."""
    name, path = item
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + MAX_SECONDS)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _memory("VmRSS")
    _limit(resource.RLIMIT_AS, _memory("VmSize") + MAX_BYTES)
    value, refused, failed, start = None, "", "", time.process_time()
    try:
        value = (VIDEOS | OTHERS)[name](path, beat)
    except MediaError if name in VIDEOS else UserError as error:  # noqa: B030
        refused = str(error)
        failed = f"a long message: {refused[:1000]}" if len(refused) > MAX_MESSAGE else ""
    except Exception:
        failed = traceback.format_exc()
    return Outcome(value, refused, failed, time.process_time() - start, _memory("VmHWM") - before)


def _limit(kind: int, soft: int) -> None:
    resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def _probe(path: str, beat: Beat) -> tuple:
    info = probe(path)
    assert info.num_frames > 0 and 0 <= info.fps < math.inf and info.rotation % 90 == 0, info
    return info.num_frames, info.height, info.width


def _read(path: str, beat: Beat, backend: str = "pyav") -> tuple[int, bytes]:
    """Return the number of frames and a digest of clips of the start, the middle and the end."""
    digest = hashlib.sha1()
    with open_video(path, backend) as video:
        count = video.num_frames
        for first in sorted({0, count // 2, max(0, count - 8)}):
            indices = [min(count - 1, first + i) for i in (0, 0, 2, 4, 6, 1)]
            digest.update(
                video.read(indices, crop=lambda h, w: (h // 4, w // 4, h - h // 2, w - w // 2), size=24).numpy()
            )
    return count, digest.digest()


def _frames(path: str, beat: Beat) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of frames, and the frames that differ if they are read separately."""
    with open_video(path) as video:
        count = video.num_frames
        head = np.arange(min(count, MOST_FRAMES))
        every = [zlib.crc32(frame.numpy()) for frame in video.read(head, short_side=32)]
    wrong = []
    for number in np.unique(np.linspace(0, len(head) - 1, 5).astype(int)).tolist():
        beat()
        with open_video(path) as video:
            single = zlib.crc32(video.read([number], short_side=32)[0].numpy())
        if single != every[number]:
            wrong.append((number, every.index(single) if single in every else -1))
    return count, wrong


def _sample(path: str, beat: Beat) -> tuple[list, bytes]:
    """Return what a training sample reports as broken, and a digest of its clip."""
    good = str(Path(path).with_name("good.mp4"))
    records = Records([path, good], np.array([0, 0], np.int32), ("a", "b"))
    sampling = TemporalSampling(4, 2, fps=12.5)
    dataset = ClipDataset(records, sampling=sampling, transform=TrainTransform(24), seed=3)
    batch = dataset.__getitems__([SampleKey(0, 0), SampleKey(1, 0), SampleKey(1, 1)])
    views = ViewDataset(records, sampling=TemporalSampling(4, 2), clips=2, transform=ViewTransform(28, 24, 3))[0]
    return batch["broken"] or views["error"], hashlib.sha1(batch["clip"].numpy()).digest()


def _check(path: str, beat: Beat) -> tuple[int, str, int]:
    facts = check_file(path, beat)
    return facts.frames, facts.problem, facts.packets


def _index(path: str, beat: Beat) -> MediaError | None:
    try:
        read_stream_index(path)
    except MediaError as error:
        return error


def _prepare(path: str, beat: Beat) -> int:
    copy = Path(path).parent / "copies" / (Path(path).name + ".mp4")
    copy.parent.mkdir(exist_ok=True)
    encode_video(path, str(copy), Settings(short_side=32), "", beat)
    with open_video(str(copy)) as video:
        count = video.num_frames
    copy.unlink()
    return count


def _list(path: str, beat: Beat) -> list[str]:
    """Read a list by ``load_splits``, with one and with several labels per file, and by ``VideoDataset``."""
    root, lines = str(Path(path).parent), []
    for options in ({}, {"multi_label": True}):
        with suppress(UserError):
            records = load_splits(root, path, path, max_missing=1.0, splits=("train",), **options)["train"]
            lines += [f"{records.path(i)} {records.label_names(i)}" for i in range(len(records))]
            lines.append(str(records.describe()))
    dataset = VideoDataset(path, "val")
    dataset[0]
    return lines


def _names(path: str, beat: Beat) -> int:
    names = read_class_names(path)
    records = load_splits(str(Path(path).parent), class_names=path, splits=("train",))["train"]
    assert records.class_names == names
    return len(names)


def _config(path: str, beat: Beat) -> str:
    return load_config(path).out


def _weights(path: str, beat: Beat) -> str:
    return load(path, "cpu").predict(np.zeros((4, 32, 32, 3), np.uint8))[0].label


def _index_file(path: str, beat: Beat) -> int:
    index = dataset_index.load(Path(path))
    for number in range(min(len(index), MOST_FRAMES)):
        index.stream_index(number, str(Path(path).with_name("good.mp4")))
    return len(index)


VIDEOS: Mapping[str, Callable[[str, Beat], Any]] = {
    "probe": _probe,
    "read": _read,
    "read again": _read,
    "decord": lambda path, beat: _read(path, beat, "decord"),
    "frames": _frames,
    "sample": _sample,
    "check": _check,
    "index": _index,
    "prepare": _prepare,
}
OTHERS: Mapping[str, Callable[[str, Beat], Any]] = {
    "list": _list,
    "names": _names,
    "config": _config,
    "weights": _weights,
    "index file": _index_file,
}
