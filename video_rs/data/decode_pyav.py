"""Frames through PyAV (FFmpeg), and what the packets of a file tell without decoding."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from video_rs.errors import MediaError


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds: frames, frames per second, upright size in pixels, seconds, codec, and the rotation in degrees
    (counter-clockwise) that makes its stored frames upright."""

    num_frames: int
    fps: float
    height: int
    width: int
    duration: float
    codec: str
    rotation: int


@dataclass(frozen=True)
class Keyframe:
    """A keyframe from which decoding is right: nothing behind it is shown before it. Times in the stream's units."""

    pts: int
    dts: int | None


@dataclass(frozen=True)
class Scan:
    """The packets of a file's best video stream.

    Attributes:
        codec: its name.
        pts: timestamps of the shown frames, ascending; None where they do not tell which frames will be shown.
        keyframes: the safe ones, ascending.
        decord_problem: why decord would not deliver the frames asked for; empty where it does.
        frame_bytes: of a decoded frame.
        num_frames: 0 where only decoding can tell.
    """

    codec: str
    pts: np.ndarray | None
    keyframes: list[Keyframe] = field(default_factory=list)
    decord_problem: str = ""
    frame_bytes: int = 0

    @property
    def num_frames(self) -> int:
        return 0 if self.pts is None else len(self.pts)


def scan(path: str | Path) -> Scan:
    """Read the packets, decode nothing. Raises ``MediaError`` for a file without video or with damaged packets."""
    with _open(path) as container:
        stream = _best_stream(container, path)
        # what is needed of each, for a list of packets would keep the whole file in memory
        packets = [(p.pts, p.dts, p.is_keyframe, p.is_discard, p.is_corrupt) for p in container.demux(stream) if p.size]
        codec, has_b_frames = stream.codec_context.codec.canonical_name, stream.codec_context.has_b_frames
        frame_bytes = 3 * stream.codec_context.width * stream.codec_context.height
        mov, avi = "mov" in container.format.name, container.format.name == "avi"
        indexed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if any(packet[4] for packet in packets) or (mov and indexed > container.size):
            raise MediaError(f"{path}: damaged or cut off")
        # elsewhere timestamps are reconstructed, and VP8 has packets that are never shown
        reliable = (mov or "matroska" in container.format.name or (avi and not has_b_frames)) and codec != "vp8"
    if not packets:
        raise MediaError(f"{path}: the video stream is empty")
    times, dts, is_key, hidden, _ = zip(*packets)
    if not reliable or None in times:
        return Scan(codec, None, decord_problem="its timestamps are no guide")

    pts, is_key = np.array(times), np.array(is_key)
    earliest_after = np.minimum.accumulate(pts[::-1])[::-1]  # of this packet and all behind it
    safe = is_key & (pts == earliest_after)
    shown = np.sort(pts[~np.array(hidden)])
    if not len(shown) or len(np.unique(shown)) < len(shown) or not safe[0]:
        return Scan(codec, None, decord_problem="its timestamps are no guide")
    keyframes = [Keyframe(times[i], dts[i]) for i in np.flatnonzero(safe)]
    problem = ""
    if codec == "av1":
        problem = "no AV1"
    elif len(shown) < len(pts) or shown[0] < 0:
        problem = "an edit list hides packets"
    elif (is_key & ~safe).any():
        problem = "open GOP"
    return Scan(codec, shown, keyframes, problem, frame_bytes)


def probe_video(path: str | Path) -> VideoInfo:
    """See ``decode.probe``."""
    reader = PyAVReader(path, scan(path))
    try:
        frame = next(reader.decoded(), None)
        if frame is None:
            raise MediaError(f"{path}: no frame can be decoded")
        height, width = frame.height, frame.width
        rotation = round(frame.rotation / 90) * 90
        if rotation % 180:
            height, width = width, height
        fps = _rate(reader.stream)
        duration = reader.num_frames / fps if fps else 0.0
        return VideoInfo(reader.num_frames, fps, height, width, duration, reader.scan.codec, rotation)
    finally:
        reader.close()


def header_rate(path: str | Path) -> float:
    """See ``decode.frame_rate``."""
    with _open(path) as container:
        return _rate(_best_stream(container, path))


class PyAVReader:
    """Seeks to safe keyframes only, and counts: when frames do not come as the packets promised, it goes back to the
    start and numbers them as they come."""

    def __init__(self, path: str | Path, scan: Scan) -> None:
        self.path, self.scan = path, scan
        self._open()
        self.num_frames = scan.num_frames or self._count()

    def frames(self, indices: np.ndarray) -> Iterator[Tensor]:
        done = 0
        if self.scan.pts is not None:
            for frame in self._seeking(indices):
                yield self._rgb(frame)
                done += 1
        if done < len(indices):
            yield from map(self._rgb, self._counting(indices[done:]))

    def decoded(self) -> Iterator[av.VideoFrame]:
        """All frames, from the start."""
        if self._used:
            self.close()
            self._open()
        self._used = True
        return self._decode(self._container.demux(self.stream))

    def close(self) -> None:
        self._container.close()

    def _counting(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        wanted = set(indices.tolist())
        for i, frame in enumerate(self.decoded()):
            if i in wanted:
                yield frame
            if i >= indices[-1]:
                return

    def _seeking(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        """The frames at `indices`, as long as their timestamps are the ones expected."""
        times, keys = self.scan.pts, [key.pts for key in self.scan.keyframes]
        upcoming, frames = 0, self.decoded()
        for index in indices:
            key = np.searchsorted(keys, times[index], side="right") - 1
            start = np.searchsorted(times, keys[key]) if key >= 0 else 0
            if start > upcoming:
                upcoming, frames = start, self._decode_from(self.scan.keyframes[key])
            while upcoming <= index:
                frame = next(frames, None)
                if frame is None or frame.pts != times[upcoming]:
                    return
                upcoming += 1
            yield frame

    def _decode_from(self, key: Keyframe) -> Iterator[av.VideoFrame]:
        """The frames from a keyframe on; none if seeking does not lead to it."""
        for time in (key.pts, key.dts):  # some containers are indexed by the one, some by the other
            if time is None:
                continue
            self._container.seek(time, stream=self.stream)
            packets = self._container.demux(self.stream)
            first = next(packets)
            if first.pts == key.pts:
                return self._decode(chain([first], packets))
        return iter(())

    @staticmethod
    def _decode(packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
        for packet in packets:
            yield from packet.decode()

    def _count(self) -> int:
        count = sum(1 for _ in self.decoded())
        if not count:
            raise MediaError(f"{self.path}: no frame can be decoded")
        return count

    def _rgb(self, frame: av.VideoFrame) -> Tensor:
        self._size = self._size or (frame.width, frame.height)  # a stream may change its size on the way
        pixels = frame.to_ndarray(format="rgb24", width=self._size[0], height=self._size[1])
        return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90))))[None]

    def _open(self) -> None:
        self._container = _open(self.path)
        self.stream = _best_stream(self._container, self.path)
        self.stream.codec_context.thread_count = 1  # automatic slice threads can hang under load
        self._used, self._size = False, None


def _open(path: str | Path) -> av.container.InputContainer:
    return av.open(os.path.abspath(path))  # FFmpeg takes a relative "10:30.mp4" for a URL


def _rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 0)


def _best_stream(container: av.container.InputContainer, path: str | Path) -> av.VideoStream:
    stream = container.streams.best("video")
    if stream is None:
        raise MediaError(f"{path}: no video stream in it")
    return stream
