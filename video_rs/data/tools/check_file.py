"""What one file of a dataset holds, found by decoding all of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import av
import numpy as np

from video_rs.data.shards import Blob, Member, in_memory
from video_rs.data.video.images import ImageReader, frame_paths, image_codec
from video_rs.data.video.media import is_image
from video_rs.data.video.stream_index import best_stream, open_container, read_stream_index, upright_shape
from video_rs.errors import MediaError, VideoRSError, first_line

ANNOUNCED_PART = 0.9  # of the time that a header announces; headers of AVI and Matroska are a little off in good files
_CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class Facts:
    """What one file holds.

    Attributes:
        frames: that were decoded, all of them unless there is a `problem`.
        fps: mean frames per second; 0 for an image, and where nothing tells.
        height, width: upright, of the first frame, in pixels.
        rotation: degrees counter-clockwise that make the stored frames upright.
        codec: its name; of an image the extension, of a folder of frames that of its first image.
        decoder: that ``data.decoder=decord`` takes: "decord", "pyav" or "pil".
        bytes, sha1: of the file, or of all images of a folder one after the other; 20 bytes, or none where it cannot
            be read.
        pixels: 8 bytes of a digest of all decoded frames: equal for equal frames in another container.
        problem: why the file is broken; "" where it is not.
    """

    frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    rotation: int = 0
    codec: str = ""
    decoder: str = ""
    bytes: int = 0
    sha1: bytes = b""
    pixels: int = 0
    problem: str = ""


def check_file(path: str | Member, beat: Callable[[], None] = lambda: None) -> Facts:
    """Decode every frame of a video, an image or a folder of frames, in one thread.

    A file is broken where it cannot be opened, where FFmpeg reports damage in a frame, or where fewer frames come than
    the packets or the header announce. Nothing is raised for that.
    Where the storage of a shard fails, ``MachineError`` is raised, and ``UserError`` where it refuses.

    Args:
        path: of the file, or where it lies in a shard.
        beat: called after each frame and each mebibyte.
    """
    found: dict[str, object] = {}
    pixels = hashlib.sha1()
    try:
        file = in_memory(path)
        if not isinstance(file, Blob) and os.path.isdir(file):
            paths = frame_paths(file)
            found["codec"] = image_codec(paths[0])
            found["bytes"], found["sha1"] = _digest(paths, beat)
            _decode_images(paths, pixels, found, beat)
        else:
            found["bytes"], found["sha1"] = _digest([file], beat)
            if is_image(path):
                found["codec"] = os.path.splitext(str(file))[1][1:].lower()
                _decode_images([file], pixels, found, beat)
            else:
                _decode_video(file, pixels, found, beat)
    except Exception as error:  # decoders raise anything on damaged files, and one file must not end the check
        if isinstance(error, VideoRSError) and not isinstance(error, MediaError):
            raise  # of the storage of shards: the file is not to blame
        found["problem"] = first_line(error, 1000).removeprefix(f"{path}: ")
    return Facts(**found, pixels=int.from_bytes(pixels.digest()[:8], "little"))


def _digest(files: Iterable[str | Blob], beat: Callable[[], None]) -> tuple[int, bytes]:
    """Return the number of bytes and the digest of files, one after the other."""
    digest, size = hashlib.sha1(), 0
    for file in files:
        if not isinstance(file, Blob) and not os.path.isfile(file):  # a pipe would keep the reader for ever
            raise OSError("not a file" if os.path.exists(file) else "no such file")
        with file.open() if isinstance(file, Blob) else open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                beat()
    return size, digest.digest()


def _decode_images(
    paths: Sequence[str | Blob], pixels: hashlib._Hash, found: dict[str, object], beat: Callable[[], None]
) -> None:
    found["decoder"] = "pil"
    frames = ImageReader(paths).frames(np.arange(len(paths)), lambda *size: (0, 0, *size))
    for count, frame in enumerate(frames, 1):
        found |= {"frames": count, "height": frame.shape[1], "width": frame.shape[2]}
        pixels.update(repr(frame.shape[1:]).encode() + frame.numpy().tobytes())
        beat()


def _decode_video(path: str | Blob, pixels: hashlib._Hash, found: dict[str, object], beat: Callable[[], None]) -> None:
    index = read_stream_index(path)
    beat()
    found |= {"codec": index.codec, "fps": index.fps}
    found["decoder"] = "pyav" if index.decord_problem or find_spec("decord") is None else "decord"
    count, damaged, end = 0, 0, 0.0
    with open_container(path) as container:
        stream = best_stream(container, path)
        announced = _announced_end(container, stream)
        for frame in container.decode(stream):
            if not count:
                found["rotation"], found["height"], found["width"] = upright_shape(frame)
            _update(pixels, frame)
            damaged += frame.is_corrupt
            end = max(end, frame.time or 0.0)
            count += 1
            found["frames"] = count
            beat()
    if not count:
        found["problem"] = "no frame can be decoded"
    elif count < index.num_frames:
        found["problem"] = f"{count} of {index.num_frames} frames can be decoded"
    elif damaged:
        found["problem"] = f"FFmpeg reports damage in {damaged} of {count} frames"
    elif index.fps and end + 2 / index.fps < ANNOUNCED_PART * announced:
        found["problem"] = f"it ends at {end:.2f} s, its header announces {announced:.2f} s"


def _announced_end(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Seconds, in the header of a file whose packets cannot tell that it was cut off; 0 elsewhere."""
    if container.format.name == "avi" and stream.duration:
        return float(stream.duration * stream.time_base)
    if "matroska" not in container.format.name:
        return 0.0
    hours, minutes, seconds = (stream.metadata.get("DURATION", "") + "::").split(":")[:3]
    try:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0


def _update(pixels: hashlib._Hash, frame: av.VideoFrame) -> None:
    try:
        values = frame.to_ndarray()
    except (ValueError, AssertionError):  # a format or an odd size that PyAV has no array for
        values = frame.to_ndarray(format="rgb24")
    pixels.update(repr(values.shape).encode())
    pixels.update(np.ascontiguousarray(values))
