"""Read frames with PyAV (FFmpeg), the default decoder. It is correct for every file.

Only the requested part of each requested frame is converted to RGB, in one FFmpeg filter graph per clip. H.264 frames
that are neither requested nor used as a reference are not decoded.
"""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import av
import numpy as np
import torch
from av.video.frame import PictureType
from torch import Tensor

from video_rs.data import limits
from video_rs.data.shards import File
from video_rs.data.transforms.crops import Box
from video_rs.data.video.damage import decoding_errors
from video_rs.data.video.media import too_large
from video_rs.data.video.stream_index import (
    PLAIN_FORMATS,
    Keyframe,
    StreamIndex,
    best_stream,
    decoder_options,
    filter_graph,
    index_stream,
    open_container,
    upright_shape,
)
from video_rs.data.video.times import frame_times
from video_rs.errors import MediaError, VideoRSError

_INTER = (PictureType.P, PictureType.B)
PIECE_BYTES = 16 * 2**20  # maximum size of the frames decoded at a time, before they are resized
_KEPT_FRAMES = 6  # more than a conversion to RGB holds


class PyAVReader:
    """Read frames of a video with PyAV. See ``decode.FrameReader``.

    The reader seeks only to safe keyframes. If the decoded timestamps do not match the stream index, it decodes from
    the beginning of the file and counts frames.

    Args:
        path: path of the file, or the file in memory.
        index: the stream index of the file, if already known.

    Attributes:
        damage: what is wrong with the frames read so far; "" if nothing.
    """

    def __init__(self, path: File, index: StreamIndex | None = None) -> None:
        self.path, self._fresh, self.damage = path, index is not None, ""
        self._container = open_container(path)
        try:
            self._set_up()
            self.index = index or index_stream(self._container, path)
            self.num_frames, self.fps, self.times = self.index.num_frames, self.index.fps, self.index.times
            if self.index.pts is None:
                self._count()
        except BaseException:
            self.close()  # PyAV's objects form a cycle, so the file would stay open until a garbage collection
            raise

    def _count(self) -> None:
        """Decode all frames to find their number and their times."""
        pts = [frame.pts for frame in self._decoded()]
        if not pts:
            raise MediaError(f"{self.path}: no frame can be decoded")
        self.num_frames = len(pts)
        self.times, self.fps = frame_times(pts, self.stream.time_base, self.index.fps)

    def frames(self, indices: np.ndarray, crop: Callable[[int, int], Box]) -> Iterator[Tensor]:
        convert, piece, filled, left, max_pixels = None, None, 0, len(indices), limits.max_pixels()
        for frame in self._chosen(indices):
            if frame.width * frame.height > max_pixels:  # the size of a stream can change
                raise MediaError(too_large(self.path, frame.width, frame.height))
            if frame.is_corrupt:
                self.damage = self.damage or f"FFmpeg reports damage in frame {int(indices[-left])}"
            elif convert is None and indices[0] == 0 and (frame.width, frame.height) != self._size:
                self.damage = self.damage or "its first frame does not have the size in its header"
            convert = convert or _CropConverter(self._with_first_size(frame), crop)
            if piece is None:
                height, width = convert.size
                count = min(left, max(1, PIECE_BYTES // (3 * height * width)))
                needed = count * height * width * 3
                # one size for all pieces, because blocks of varying size fragment the heap of a worker
                memory = torch.empty(max(needed, PIECE_BYTES), dtype=torch.uint8)
                piece = memory[:needed].view(count, height, width, 3)
                pixels = piece.numpy()
            convert(frame, pixels[filled])
            filled, left = filled + 1, left - 1
            if filled == len(piece):
                yield piece
                piece, filled = None, 0
        if filled:
            yield piece[:filled]

    def _with_first_size(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Return a frame scaled to the size of the first one. The size of a stream can change."""
        if (frame.width, frame.height) == self._size:
            return frame
        with open_container(self.path) as container:
            return next(container.decode(best_stream(container, self.path)), frame)

    def first_frame(self) -> tuple[str, int, int, int]:
        """See ``decode.FrameReader``. Raise ``MediaError`` if FFmpeg decodes none."""
        frame = next(self._decoded(), None)
        if frame is None:
            raise MediaError(f"{self.path}: no frame can be decoded")
        return self.index.codec, *upright_shape(frame)

    def close(self) -> None:
        self._container.close()

    def _chosen(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        done = 0
        if self.index.pts is not None:
            for frame in self._seeking(indices):
                yield frame
                done += 1
        if done < len(indices):  # count frames from the start
            wanted = set(indices[done:].tolist())
            last = None
            for number, frame in enumerate(islice(self._decoded(), max(wanted) + 1)):
                if self.index.pts is not None and None not in (last, frame.pts) and frame.pts < last:
                    self.damage = self.damage or "its frames are not in the order of their timestamps"
                last = frame.pts
                if number in wanted:
                    yield frame

    def _seeking(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        """Yield the frames at `indices`. Stop at the first unexpected timestamp."""
        times, keys = self.index.pts, [key.pts for key in self.index.keyframes]
        number = {time: i for i, time in enumerate(times.tolist())}
        # FFmpeg skips unreferenced frames reliably for H.264 only
        steady = len(times) < 3 or np.diff(times).max() < 1.5 * np.diff(times).min()
        # a gap may be a lost packet, which FFmpeg conceals using earlier frames
        wanted = set(times[indices].tolist()) if self.index.codec == "h264" and steady else None
        upcoming, frames, sought = 0, None, False
        for index in indices.tolist():
            key = np.searchsorted(keys, times[index], side="right") - 1
            start = int(np.searchsorted(times, keys[key])) if key >= 0 else 0
            if frames is None or start > upcoming:
                upcoming, frames = start, self._decoded_from(self.index.keyframes[key] if key >= 0 else None, wanted)
                sought = start > 0
            while True:
                try:
                    frame = next(frames, None)
                except Exception as error:
                    if isinstance(error, VideoRSError):
                        raise
                    return  # the caller decodes from the beginning
                # FFmpeg conceals damage using earlier frames
                found = None if frame is None or frame.is_corrupt else number.get(frame.pts)
                if found is None or not upcoming <= found <= index or (wanted is None and found > upcoming):
                    return
                if sought and frame.pict_type in _INTER:  # without an index all packets are marked as keyframes
                    return
                sought = False
                upcoming = found + 1
                if found == index:
                    break
            yield frame

    def _decoded(self, wanted: set[int] | None = None) -> Iterator[av.VideoFrame]:
        """Yield all frames, from the start, or at least those with the `wanted` timestamps."""
        if not self._fresh:
            self.close()
            self._container = open_container(self.path)
            self._set_up()
        self._fresh = False
        return self._decode(self._container.demux(self.stream), wanted)

    def _decoded_from(self, key: Keyframe | None, wanted: set[int] | None) -> Iterator[av.VideoFrame]:
        """Yield frames from a keyframe (None: the beginning) on, including all `wanted` timestamps.

        Yield nothing if seeking fails.
        """
        if key is None or (self._fresh and key is self.index.keyframes[0]):
            return self._decoded(wanted)
        self._fresh = False
        times = [key.pts] if key.dts is None else [key.pts, key.dts]  # some containers are indexed by pts, some by dts
        for time in times:
            with contextlib.suppress(av.FFmpegError):
                self._container.seek(time, stream=self.stream)
                packets = self._container.demux(self.stream)
                first = next(packets)
                if first.pts == key.pts:
                    return self._decode(chain([first], packets), wanted)
        return iter(())

    def _decode(self, packets: Iterable[av.Packet], wanted: set[int] | None = None) -> Iterator[av.VideoFrame]:
        context = self.stream.codec_context
        context.skip_frame = "DEFAULT"
        # FFmpeg does not overwrite damaged blocks of VP8: they keep the content of the reused buffer. Hold the latest
        # frames, so that buffers are reused in the same order whichever frames are converted
        kept = deque(maxlen=_KEPT_FRAMES if context.codec.canonical_name == "vp8" else 0)
        for packet in packets:
            if wanted is not None:
                context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self._require_size(packet)
                raise
            kept.extend(frames)
            yield from frames

    def _require_size(self, packet: av.Packet) -> None:
        """Raise ``MediaError`` if a packet cannot be decoded because its frame is larger than the limit."""
        failed = self.stream.codec_context
        context = av.CodecContext.create(failed.codec, "r")  # the state of the failed decoder is undefined
        context.extradata, context.options = failed.extradata, decoder_options()
        with decoding_errors() as errors, contextlib.suppress(Exception):
            context.decode(packet)
        for error in errors:
            if found := re.search(r"(\d+)x(\d+) exceeds specified max pixel count", error):
                raise MediaError(too_large(self.path, *map(int, found.groups())))

    def _set_up(self) -> None:
        self.stream = best_stream(self._container, self.path)
        self._size = self.stream.codec_context.width, self.stream.codec_context.height


class _CropConverter:
    """Convert one box of each frame to upright RGB.

    Args:
        frame: the first frame. Frames of another size are scaled to its size.
        crop: called with the upright height and width; returns the box.

    Attributes:
        size: upright height and width of the box.
    """

    def __init__(self, frame: av.VideoFrame, crop: Callable[[int, int], Box]) -> None:
        self._kind = frame.format.name, frame.width, frame.height
        rotation, *upright = upright_shape(frame)
        self._turns = rotation // 90 % 4
        top, left, height, width = crop(*upright)
        self.size = height, width
        for _ in range(self._turns):  # the same box in the stored frame
            top, left, height, width = left, upright[0] - top - height, width, height
            upright.reverse()
        self._place = slice(top, top + height), slice(left, left + width)
        self._graph = None
        if frame.format.name in PLAIN_FORMATS and frame.height % 2 == 0:
            # convert whole 2 x 2 blocks, which share their chroma, then cut off the rest
            outer_top, outer_left = top // 2 * 2, left // 2 * 2
            outer_height = (top + height + 1) // 2 * 2 - outer_top
            outer_width = min(frame.width, (left + width + 1) // 2 * 2) - outer_left
            outer = f"{outer_width}:{outer_height}:{outer_left}:{outer_top}:exact=1"
            self._graph = filter_graph(frame, [("crop", outer), ("format", "rgb24")])
            top, left = top - outer_top, left - outer_left
            self._place_in_graph = slice(top, top + height), slice(left, left + width)

    def __call__(self, frame: av.VideoFrame, out_HWC: np.ndarray) -> None:
        _, width, height = self._kind
        if self._graph is not None and (frame.format.name, frame.width, frame.height) == self._kind:
            self._graph.push(frame)
            converted = self._graph.pull()
            rows = np.frombuffer(converted.planes[0], np.uint8).reshape(-1, converted.planes[0].line_size)
            pixels = rows[:, : 3 * converted.width].reshape(len(rows), converted.width, 3)[self._place_in_graph]
        else:
            pixels = frame.to_ndarray(format="rgb24", width=width, height=height)[self._place]
        np.copyto(out_HWC, np.rot90(pixels, self._turns))
