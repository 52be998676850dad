"""Decode one file of a dataset completely and collect its properties."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import av
import numpy as np
from torch import Tensor

from video_rs.data import storage
from video_rs.data.shards import Blob, Member, in_memory
from video_rs.data.tools.content import packet_digest
from video_rs.data.video.damage import decoding_errors
from video_rs.data.video.decode import open_video
from video_rs.data.video.images import frame_files
from video_rs.data.video.stream_index import best_stream, open_container, read_stream_index
from video_rs.errors import MediaError, StorageError, VideoRSError, first_line

ANNOUNCED_PART = 0.9  # minimum part of the header's duration; AVI and Matroska headers can be slightly wrong
_CHUNK = 2**20  # bytes


@dataclass(frozen=True, slots=True)
class Facts:
    """The properties of one file.

    Attributes:
        frames: number of decoded frames; all frames unless there is a `problem`.
        fps: mean frames per second; 0 if unknown, as for an image.
        seconds: the duration; 0 if unknown.
        height, width: size of the first frame after rotation, in pixels.
        rotation: counter-clockwise rotation in degrees that makes the stored frames upright.
        codec: FFmpeg's name of the codec; for a folder of frames, the codec of the first image.
        decoder: the decoder that ``data.decoder=decord`` selects: "decord", "pyav" or "pil".
        bytes: size of the file, or of all images in a folder.
        sha1: SHA-1 digest of the content, 20 bytes; empty if it cannot be read.
        pixels: 64 bits of a digest of all decoded frames; equal for the same frames in different containers.
        packets: 64 bits of a digest of the video packets, see :func:`packet_digest`; 0 for images.
        problem: the reason why the file is broken, or "".
    """

    frames: int = 0
    fps: float = 0.0
    seconds: float = 0.0
    height: int = 0
    width: int = 0
    rotation: int = 0
    codec: str = ""
    decoder: str = ""
    bytes: int = 0
    sha1: bytes = b""
    pixels: int = 0
    packets: int = 0
    problem: str = ""

    @property
    def content(self) -> dict[str, int | bytes]:
        """The known digests by kind. Files have the same content if one of their digests is equal."""
        digests = {"frames": 0 if self.problem else self.pixels, "video packets": self.packets}
        digests = {kind: digest for kind, digest in digests.items() if digest} or {"bytes": self.sha1}
        return digests if self.bytes and self.sha1 else {}


def check_file(path: str | Member, beat: Callable[[], None] = lambda: None) -> Facts:
    """Decode every frame of a video, an image or a folder of frames, in one thread.

    A file is broken if it cannot be opened, if FFmpeg reports damage in a frame, or if it has fewer frames than its
    packets or its header indicate. ``Facts.problem`` is then the reason.

    Args:
        path: path of the file or folder, or its position in a shard.
        beat: called after each frame and each MiB.

    Raises:
        StorageError: the file cannot be opened or read.
        UserError, MachineError: access to the storage of a shard is denied or fails.
    """
    facts: dict[str, Any] = {"frames": 0}
    pixels = hashlib.sha1()
    try:
        file = in_memory(path)
        images = frame_files(file)
        facts["bytes"], facts["sha1"] = _digest(images or [file], beat)
        if not images:
            with suppress(MediaError):  # decoding reports the reason
                facts["packets"] = packet_digest(file, beat)
        for frame in _frames(file, facts):
            facts["frames"] += 1
            pixels.update(repr(frame.shape).encode())
            pixels.update(frame.numpy())
            beat()
    except Exception as error:  # damaged files can raise any error, and one file must not stop the check
        if isinstance(error, StorageError) or (isinstance(error, VideoRSError) and not isinstance(error, MediaError)):
            raise
        facts["problem"] = first_line(error, 1000, prefix=f"{path}: ")
    return Facts(**facts, pixels=int.from_bytes(pixels.digest()[:8], "little"))


def _digest(files: Iterable[str | Blob], beat: Callable[[], None]) -> tuple[int, bytes]:
    """Return the total size and the digest of the concatenated files."""
    digest, size = hashlib.sha1(), 0
    for file in files:
        with file.open() if isinstance(file, Blob) else storage.open_file(file) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                beat()
    return size, digest.digest()


def _frames(file: str | Blob, facts: dict[str, Any]) -> Iterator[Tensor]:
    """Yield all frames as training reads them, and update the properties, except the number of frames."""
    with open_video(file) as video:
        info = video.info()
        facts |= {name: getattr(info, name) for name in ("fps", "height", "width", "rotation", "codec")}
        facts |= {"seconds": info.duration, "decoder": video.backend}
        if video.backend == "pyav" and find_spec("decord") and not read_stream_index(file).decord_problem:
            facts["decoder"] = "decord"
        with decoding_errors(info.codec) as errors:
            yield from video.stream(np.arange(video.num_frames))
        if video.damage:
            facts["problem"] = video.damage
        elif errors:
            facts["problem"] = f"FFmpeg reports damage ({errors[0]})"
    if video.backend == "pyav" and "problem" not in facts:
        _find_missing_end(file, facts)


def _find_missing_end(file: str | Blob, facts: dict[str, Any]) -> None:
    """Set the problem if the packets end long before the time in the header. mp4 and mov files need no such check."""
    with open_container(file) as container:
        stream = best_stream(container, file)
        announced = _announced_end(container, stream)
        if not announced or not facts["fps"]:
            return
        times = (packet.dts if packet.pts is None else packet.pts for packet in container.demux(stream) if packet.size)
        end = float(max((time for time in times if time is not None), default=0) * stream.time_base)
    if end + 2 / facts["fps"] < ANNOUNCED_PART * announced:
        facts["problem"] = f"it ends at {end:.2f} s, but its header indicates {announced:.2f} s"


def _announced_end(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Return the end time in seconds from the header, for formats whose packets do not reveal truncation; else 0."""
    if container.format.name == "avi" and stream.duration:
        return float(stream.duration * stream.time_base)
    if "matroska" not in container.format.name:
        return 0.0
    hours, minutes, seconds = (stream.metadata.get("DURATION", "") + "::").split(":")[:3]
    try:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except (ValueError, OverflowError):
        return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0
