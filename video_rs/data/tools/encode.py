"""Videos made fast to read: H.264 of a small size, short closed GOPs, no B-frames, stored upright, without sound.

A clip from anywhere in such a file costs at most ``gop`` - 1 frames that are decoded but not used, each without the
parts of H.264 that take the most time to decode (x264's "fastdecode": no CABAC, no deblocking, no weighted prediction).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av

from video_rs.data.video.media import media_errors, require_file
from video_rs.data.video.stream_index import best_stream, filter_graph, open_container, read_stream_index, upright_shape
from video_rs.errors import STORAGE_ERRNOS, MachineError, MediaError, UserError
from video_rs.files import atomic_write

_FULL_RANGE, _RGB, _UNKNOWN = 2, 0, 2  # a colour range and two colour spaces, as FFmpeg numbers them
# filters by the number of quarter turns counter-clockwise
_TURNS = ([], [("transpose", "cclock")], [("hflip", ""), ("vflip", "")], [("transpose", "clock")])


@dataclass(frozen=True)
class Settings:
    """How videos are re-encoded.

    Attributes:
        short_side: of the frames, in pixels, even; smaller sources keep their size.
        crf: x264's constant rate factor, 0 (lossless) to 51 (worst).
        gop: frames from one keyframe to the next.
    """

    short_side: int = 256
    crf: int = 20
    gop: int = 16

    def __post_init__(self) -> None:
        if self.short_side < 2 or self.short_side % 2:
            raise UserError(f"a short side of {self.short_side} pixels is not possible: give an even number above 0")
        if not 0 <= self.crf <= 51 or self.gop < 1:
            raise UserError(f"crf {self.crf}, gop {self.gop} is not possible: crf is 0 to 51, gop at least 1")


def even_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of the copy of an upright ``height`` x ``width`` source: both even, at least 2."""
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
    beat: Callable[[], None] = lambda: None,
) -> int:
    """Writes an mp4 file with the frames of a video, whole or not at all.

    It has as many frames as a full sequential decode of the source's best video stream, in that order and with those
    times; but they start at 0 where the source starts before it, and a frame that does not come after the one before
    it does so by one unit of the source's clock. The bytes depend on the source, the settings and the versions of
    FFmpeg and x264 alone, and on the comment that is kept in the file.

    Args:
        source: a video.
        target: the file to write; missing folders are made.
        settings: by default ``Settings()``.
        comment: kept in the file, see :func:`header`.
        beat: called after each frame.

    Returns:
        The number of frames.

    Raises:
        MediaError: the source is damaged, or cannot be read or encoded; it names the source.
        MachineError: the disk refuses.
        UserError: no file can be at ``target``.
    """
    settings = settings or Settings()
    frames = _frames(source)
    try:
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{source}: no frame can be decoded")
        with atomic_write(target) as handle:
            count = _write(source, chain([first], frames), first, handle.name, settings, comment, beat)
            _check(source, handle.name, count)
    finally:
        frames.close()
    return count


def header(path: str | Path) -> tuple[float, str]:
    """How many seconds of video there are, 0 where the header does not tell, and the comment. Raises ``MediaError``."""
    with media_errors(path), open_container(path) as container:
        stream = best_stream(container, path)
        comment = container.metadata.get("comment", "")
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base), comment
        return (container.duration or 0) / av.time_base, comment


def _frames(source: str | Path) -> Iterator[av.VideoFrame]:
    """All frames, from the start. Raises ``MediaError`` where the file breaks off."""
    require_file(source)
    with media_errors(source):
        promised, count = read_stream_index(source).num_frames, 0
        with open_container(source) as container:
            for frame in container.decode(best_stream(container, source)):
                count += 1
                yield frame
    if promised and count != promised:
        raise MediaError(f"{source}: {count} of its {promised} frames can be decoded")


@contextmanager
def h264_writer(
    file: str, height: int, width: int, rate: int | Fraction, x264: dict[str, str], **options: Any
) -> Iterator[tuple[av.container.OutputContainer, av.VideoStream]]:
    """Open an mp4 file for one H.264 stream; the end of the block writes the frames that the encoder still holds.

    Args:
        file: to write.
        height, width: of the frames, in pixels.
        rate: frames per second.
        x264: options of the encoder.
        options: of ``av.open``.
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
    first: av.VideoFrame,
    file: str,
    settings: Settings,
    comment: str,
    beat: Callable[[], None],
) -> int:
    """Returns the number of frames."""
    upright, clock = _Upright(first, settings.short_side), _Clock(first)
    rate = Fraction(1 / (clock.base * clock.step)).limit_denominator(1001)
    faststart, count = {"movflags": "+faststart"}, 0
    try:
        with h264_writer(file, *upright.size, rate, _x264(settings), options=faststart) as (container, stream):
            container.metadata["comment"] = comment
            stream.time_base = stream.codec_context.time_base = clock.base
            _tag_colors(stream.codec_context, first)
            for frame in frames:
                image = upright(frame)
                image.pts, image.time_base, image.duration = clock.time(frame), clock.base, clock.step
                image.pict_type = 0  # the encoder chooses
                container.mux(stream.encode(image))
                beat()
                count += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        if getattr(error, "errno", None) in STORAGE_ERRNOS:
            raise OSError(error.errno, os.strerror(error.errno)) from error  # for `atomic_write`
        with media_errors(source, action="encoded"):
            raise
    return count


def _check(source: str | Path, file: str, count: int) -> None:
    """Packets are cheap to read: what a full disk or a muxer left out must not become a file of the dataset."""
    try:
        written = read_stream_index(file).num_frames
    except (MediaError, av.FFmpegError, OSError, ValueError) as error:
        raise MachineError(f"what was written of {source} cannot be read again ({error}): is the disk full?") from error
    if written != count:
        raise MediaError(f"{source}: cannot be encoded (only {written} of its {count} frames arrive in an mp4 file)")


class _Clock:
    """The times of the frames, in units of ``base``, never before 0 and each after the one before."""

    def __init__(self, first: av.VideoFrame) -> None:
        self.base = first.time_base or Fraction(1, 90000)
        self.step = max(1, first.duration or 1)
        self._shift = max(0, -(first.pts or 0))
        self._last: int | None = None

    def time(self, frame: av.VideoFrame) -> int:
        """Of the next frame."""
        least = 0 if self._last is None else self._last + 1
        usual = 0 if self._last is None else self._last + self.step
        self._last = usual if frame.pts is None else max(least, frame.pts + self._shift)
        return self._last


def _x264(settings: Settings) -> dict[str, str]:
    gop = str(settings.gop)
    return {
        "crf": str(settings.crf),
        "tune": "fastdecode",
        "g": gop,
        "keyint_min": gop,
        "sc_threshold": "0",  # a keyframe at every scene cut would make GOPs uneven
        "bf": "0",
        "flags": "+cgop",
        "x264-params": "mbtree=0:rc-lookahead=0",  # with mbtree, one encode in a hundred has other bytes
    }


def _tag_colors(context: av.VideoCodecContext, first: av.VideoFrame) -> None:
    context.color_range = 1  # the limited one, see _Upright
    for name, unknown in (("colorspace", _RGB), ("color_primaries", 0), ("color_trc", 0)):
        value = int(getattr(first, name))
        setattr(context, name, _UNKNOWN if value == unknown else value)


class _Upright:
    """Turns, scales and converts frames; those of another size than the first's are scaled to that, as readers do.

    Attributes:
        size: height and width of what comes out.
    """

    def __init__(self, first: av.VideoFrame, short_side: int) -> None:
        rotation, *upright = upright_shape(first)
        self._turns = rotation // 90 % 4
        self._stored, self.size = (first.height, first.width), even_size(*upright, short_side)
        self._graphs: dict[tuple, av.filter.Graph] = {}

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        kind = frame.format.name, frame.height, frame.width, int(frame.color_range)
        if kind not in self._graphs:
            self._graphs = {kind: filter_graph(frame, self._filters(frame))}  # streams that change do so seldom
        graph = self._graphs[kind]
        graph.push(frame)
        return graph.pull()

    def _filters(self, frame: av.VideoFrame) -> list[tuple[str, str]]:
        height, width = self.size if self._turns % 2 == 0 else self.size[::-1]  # as it is stored
        filters = []
        cut = all(0 <= old - new < 2 for old, new in zip(self._stored, (height, width)))
        if cut and (frame.height, frame.width) == self._stored:  # sharper than scaling an odd side by one pixel
            filters.append(("crop", f"{width}:{height}:0:0:exact=1"))
        full = frame.format.name.startswith("yuvj") or int(frame.color_range) == _FULL_RANGE
        source = "auto" if frame.format.is_rgb else "pc" if full else "tv"
        scale = f"{width}:{height}:flags=bicubic+accurate_rnd:in_range={source}:out_range=tv"
        # one matrix before and after is none at all: the tag that goes with the copy says what the pixels are
        filters.append(("scale", f"{scale}:in_color_matrix=bt601:out_color_matrix=bt601"))
        return [*filters, ("format", "yuv420p"), *_TURNS[self._turns]]
