"""Re-encode videos for fast reading: small H.264, short closed GOPs, no B-frames, upright, no sound.

To read a clip from such a file, at most ``gop`` - 1 unused frames are decoded. Features of H.264 that are slow to
decode are turned off (x264's "fastdecode": no CABAC, no deblocking, no weighted prediction).
"""

import errno
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from video_rs.data.tools.pool import Beat
from video_rs.data.video.media import media_errors
from video_rs.data.video.stream_index import (
    best_stream,
    filter_graph,
    header_seconds,
    open_container,
    read_stream_index,
    upright_shape,
)
from video_rs.data.video.times import MAX_INTERVAL, frame_times
from video_rs.errors import STORAGE_ERRNOS, MachineError, MediaError, UserError
from video_rs.files import atomic_write

_FULL_RANGE, _RGB, _UNKNOWN = 2, 0, 2  # FFmpeg's numbers of a colour range and two colour spaces
# FFmpeg filters by the number of quarter turns counter-clockwise
_TURNS = ([], [("transpose", "cclock")], [("hflip", ""), ("vflip", "")], [("transpose", "clock")])


@dataclass(frozen=True)
class Settings:
    """Settings of the encoder.

    Attributes:
        short_side: short side of the frames in pixels, an even number. Smaller sources keep their size.
        crf: x264's constant rate factor, 0 (lossless) to 51 (worst).
        gop: number of frames from one keyframe to the next.

    Raises:
        UserError: a value is out of range.
    """

    short_side: int = 256
    crf: int = 20
    gop: int = 16

    def __post_init__(self) -> None:
        if self.short_side < 2 or self.short_side % 2:
            raise UserError(f"a short side of {self.short_side} pixels is invalid; use a positive even number")
        if not 0 <= self.crf <= 51 or self.gop < 1:
            raise UserError(f"crf {self.crf}, gop {self.gop} is invalid; crf must be 0 to 51, gop at least 1")


def even_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return height and width of the copy of an upright ``height`` x ``width`` source, both even and at least 2."""
    short = min(height, width)
    if short <= short_side:
        return max(2, height // 2 * 2), max(2, width // 2 * 2)
    long = max(2, round(max(height, width) * short_side / short / 2) * 2)
    return (short_side, long) if height <= width else (long, short_side)


def encode_video(
    source: str | Path,
    target: str | Path,
    settings: Settings | None = None,
    comment: str = "",
    beat: Beat = lambda: None,
) -> int:
    """Write an mp4 file with the frames of a video, atomically.

    The copy has the frames of a full sequential decode of the source's best video stream, in the same order and with
    the same times from the first frame on, as in ``Video.times``. The bytes depend only on the source, the settings,
    the comment and the versions of FFmpeg and x264.

    Args:
        source: path of a video.
        target: file to write; missing folders are created.
        settings: settings of the encoder (default: ``Settings()``).
        comment: metadata to write into the file, see :func:`read_header`.
        beat: called after each frame.

    Returns:
        The number of frames.

    Raises:
        MediaError: the source is damaged, or cannot be read or encoded.
        MachineError: the disk is full or fails.
        UserError: ``target`` cannot be a file.
    """
    index, settings = read_stream_index(source), settings or Settings()

    def write(interval: Fraction | None = None) -> tuple[list[int | None], Fraction]:
        with closing(_frames(source, index.num_frames)) as frames:
            return _write(source, frames, handle.name, settings, comment, beat, interval)

    with atomic_write(target) as handle:
        pts, base = write()
        times, fps = (index.times, index.fps) if index.num_frames else frame_times(pts, base, index.fps)
        # if the timestamps of the source are wrong, `times` has the corrected ones
        if not _has_times(handle.name, source, len(pts), times):
            with media_errors(source, action="encoded"):
                interval = 1 / Fraction(fps).limit_denominator(10**5)
            write(interval)
            if not _has_times(handle.name, source, len(pts), times):
                raise MediaError(f"{source}: cannot be encoded (its timestamps do not fit an mp4 file)")
    return len(pts)


def _has_times(copy: str, source: str | Path, count: int, times: np.ndarray | None) -> bool:
    """Return True if the frames of a copy have the given times. Raise an error if there are not `count` frames."""
    try:
        written = read_stream_index(copy)
    except MediaError as error:  # after a write error that FFmpeg did not report
        raise MachineError(f"the copy of {source} cannot be read ({error}); check the disk") from error
    if written.num_frames != count:
        raise MediaError(
            f"{source}: cannot be encoded (only {written.num_frames} of its {count} frames fit an mp4 file)"
        )
    return times is None or np.allclose(written.times, times, rtol=0, atol=1e-6)


def read_header(path: str | Path) -> tuple[float, str]:
    """Return the duration of a video in seconds, 0 if its header has none, and its comment. Raise ``MediaError``."""
    with media_errors(path), open_container(path) as container:
        stream = best_stream(container, path)
        return header_seconds(container, stream), container.metadata.get("comment", "")


def _frames(source: str | Path, expected: int) -> Iterator[av.VideoFrame]:
    """Yield all frames, from the start. Raise ``MediaError`` if there are not as many as `expected`; 0 if unknown."""
    count = 0
    with media_errors(source), open_container(source) as container:
        for frame in container.decode(best_stream(container, source)):
            count += 1
            yield frame
    if expected and count != expected:
        raise MediaError(f"{source}: {count} of its {expected} frames can be decoded")


@contextmanager
def h264_writer(
    file: str, height: int, width: int, rate: int | Fraction, x264: dict[str, str], **options: Any
) -> Iterator[tuple[av.container.OutputContainer, av.VideoStream]]:
    """Open an mp4 file for one H.264 stream, and flush the encoder at the end of the block.

    Args:
        file: path to write.
        height, width: size of the frames, in pixels.
        rate: frames per second.
        x264: options of the encoder.
        options: options of ``av.open``.
    """
    with av.open(file, "w", format="mp4", **options) as container:
        stream = container.add_stream("libx264", rate=rate, options=x264)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1  # x264's threads would change the bytes
        yield container, stream
        container.mux(stream.encode())


def _write(
    source: str | Path,
    frames: Iterator[av.VideoFrame],
    file: str,
    settings: Settings,
    comment: str,
    beat: Beat,
    interval: Fraction | None,
) -> tuple[list[int | None], Fraction]:
    """Encode the frames into a file, with their timestamps or evenly spaced by an interval in seconds.

    Returns:
        The timestamps of the frames and their unit in seconds.
    """
    first = next(frames, None)
    if first is None:
        raise MediaError(f"{source}: no frame can be decoded")
    upright = _UprightConverter(first, settings.short_side)
    unit, step = first.time_base or Fraction(1, 90000), max(1, first.duration or 1)
    base, step = (interval, 1) if interval else (unit, step)
    shift, time, longest, pts = max(0, -(first.pts or 0)), -step, MAX_INTERVAL / base, []
    x264 = {
        "crf": str(settings.crf),
        "tune": "fastdecode",
        "g": str(settings.gop),
        "keyint_min": str(settings.gop),
        "sc_threshold": "0",  # no keyframes at scene cuts, which would make GOPs uneven
        "bf": "0",
        "flags": "+cgop",
        "x264-params": "mbtree=0:rc-lookahead=0",  # with mbtree, one encode in a hundred differs
    }
    rate, faststart = Fraction(1 / (base * step)).limit_denominator(1001), {"movflags": "+faststart"}
    try:
        with h264_writer(file, *upright.size, rate, x264, options=faststart) as (container, stream):
            container.metadata["comment"] = comment
            context = stream.codec_context
            stream.time_base = context.time_base = base
            context.color_range = 1  # limited, see _UprightConverter
            for name, unknown in (("colorspace", _RGB), ("color_primaries", 0), ("color_trc", 0)):
                value = int(getattr(first, name))
                setattr(context, name, _UNKNOWN if value == unknown else value)
            for frame in chain([first], frames):
                image = upright(frame)
                pts.append(frame.pts)
                due = time + step if interval or frame.pts is None else frame.pts + shift
                time = due if time < due <= max(time, 0) + longest else time + step
                image.pts, image.time_base, image.duration = time, base, step
                image.pict_type = 0  # let the encoder choose
                container.mux(stream.encode(image))
                beat()
    except Exception as error:
        number = getattr(error, "errno", None) if os.path.exists(file) else errno.ENOENT
        if number in {*STORAGE_ERRNOS, errno.ENOENT}:
            raise OSError(number, os.strerror(number)) from error  # for `atomic_write`
        with media_errors(source, action="encoded"):
            raise
    return pts, unit


class _UprightConverter:
    """Rotate, scale and convert frames. All frames are scaled to the size of the first frame, as in decode.py.

    Attributes:
        size: height and width of the converted frames.
    """

    def __init__(self, first: av.VideoFrame, short_side: int) -> None:
        rotation, *upright = upright_shape(first)
        self._turns = rotation // 90 % 4
        self._stored, self.size = (first.height, first.width), even_size(*upright, short_side)
        self._graphs: dict[tuple, av.filter.Graph] = {}

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        kind = frame.format.name, frame.height, frame.width, int(frame.color_range)
        if kind not in self._graphs:
            self._graphs = {kind: filter_graph(frame, self._filters(frame))}  # keep one: streams rarely change
        graph = self._graphs[kind]
        graph.push(frame)
        return graph.pull()

    def _filters(self, frame: av.VideoFrame) -> list[tuple[str, str]]:
        height, width = self.size if self._turns % 2 == 0 else self.size[::-1]  # before the rotation
        filters = []
        cut = all(0 <= old - new < 2 for old, new in zip(self._stored, (height, width)))
        if cut and (frame.height, frame.width) == self._stored:  # sharper than scaling by one pixel
            filters.append(("crop", f"{width}:{height}:0:0:exact=1"))
        full = frame.format.name.startswith("yuvj") or int(frame.color_range) == _FULL_RANGE
        source = "auto" if frame.format.is_rgb else "pc" if full else "tv"
        scale = f"{width}:{height}:flags=bicubic+accurate_rnd:in_range={source}:out_range=tv"
        # the same matrix for input and output leaves colours unchanged; the copy gets the tags of the source
        filters.append(("scale", f"{scale}:in_color_matrix=bt601:out_color_matrix=bt601"))
        return [*filters, ("format", "yuv420p"), *_TURNS[self._turns]]
