"""Read the packets of a video stream without decoding.

A :class:`StreamIndex` contains the timestamps of the frames, the keyframes from which decoding can start, and the
reason if decord would return wrong frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
from av.stream import Disposition

from video_rs.data import limits, storage
from video_rs.data.shards import Blob, File, in_memory
from video_rs.data.video.contents import content_problem
from video_rs.data.video.headers import NAL_CODECS, is_b_frame, is_idr, packet_headers, unit_length
from video_rs.data.video.media import media_errors, require_file, too_large
from video_rs.data.video.times import frame_times
from video_rs.errors import MediaError, VideoRSError

# For these formats, all decoders convert each 2 x 2 block independently if the height is even. For all other formats,
# chroma is interpolated across blocks, differently in each decoder.
PLAIN_FORMATS = ("yuv420p", "yuvj420p")
ODD_COLORS = (8, 10, 11, 12, 13, 14)  # YCgCo, BT.2020 with constant luminance, ICtCp, ...: unknown to decord
_CHUNK_HEADER = 8  # bytes before a packet in an AVI file
_SENT_ONCE = ("palette", "new_extradata", "param_change")  # side data of packets, lost by seeking
_IMAGE_BRANDS = ("avif", "heic", "heix", "heim", "heis", "mif1")
_PICTURE = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
FORMATS = (  # no text, playlists, images, or formats that open other files or devices
    "mov,matroska,webm,avi,asf,flv,mpegts,mpeg,mpegvideo,gif,apng,ogg,rm,mxf,nut,dv,wtv,gxf,nsv,nuv,pva,ty,"
    "m4v,h261,h263,h264,hevc,vvc,vc1,vc1test,obu,av1,ivf,dirac,cavsvideo,mjpeg,yuv4mpegpipe,dnxhd,live_flv,kux,amv"
)
BUFFER_BYTES = 64 * 1024  # of one read; larger ones are not faster
RULES = 2  # version of the rules below; increment it when an index changes, to invalidate saved indexes


@dataclass(frozen=True)
class Keyframe:
    """A keyframe from which decoding can start: no later packet is shown before it. Times are in stream units."""

    pts: int
    dts: int | None = None


@dataclass(frozen=True)
class StreamIndex:
    """The frames of a file's best video stream, derived from its packets.

    Attributes:
        codec: FFmpeg's name of the codec.
        pts: ascending int64 timestamps of the shown frames; None if they are unreliable.
        keyframes: keyframes from which decoding can start, ascending; empty if it must start at the beginning.
        decord_problem: the reason why decord would return wrong frames, or "".
        frame_bytes: size of a decoded RGB frame.
        fps: mean frames per second; 0 if unknown.
        times: times of the shown frames in seconds, see ``times.frame_times``; None without `pts`.
        num_frames: number of shown frames; 0 if unknown without decoding.
    """

    codec: str
    pts: np.ndarray | None
    keyframes: list[Keyframe] = field(default_factory=list)
    decord_problem: str = ""
    frame_bytes: int = 0
    fps: float = 0.0
    times: np.ndarray | None = None

    @property
    def num_frames(self) -> int:
        return 0 if self.pts is None else len(self.pts)


class Container(AbstractContextManager):
    """A file opened by FFmpeg. It has the attributes of PyAV's container. Closing it also closes the file."""

    def __init__(self, path: File, options: dict[str, str]) -> None:
        self._file = path.open() if isinstance(path, Blob) else storage.open_file(path)
        try:
            # tags of a file may be in any encoding
            self._container = av.open(self._file, options=options, buffer_size=BUFFER_BYTES, metadata_errors="replace")
        except BaseException:
            self._file.close()
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def close(self) -> None:
        self._container.close()
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def open_container(path: File, **options: str) -> Container:
    """Open a file in one of the ``FORMATS`` with FFmpeg.

    Raises:
        MediaError, av.FFmpegError: the file is not a video, or damaged.
        StorageError: the file cannot be opened or read. Calls of the container that read raise it too.
    """
    # no protocol: a file cannot open another one
    options |= {"format_whitelist": FORMATS, "protocol_whitelist": "none", **decoder_options()}
    try:
        return Container(path, options)
    except VideoRSError:
        raise
    except Exception as error:
        reason = content_problem(path)
        if not reason and isinstance(error, av.ArgumentError):
            reason = "not a video, or in an unsupported format"
        if reason:
            raise MediaError(f"{path}: {reason}") from error
        raise


def best_stream(container: Container, path: File) -> av.VideoStream:
    """Return the default video stream, as chosen by FFmpeg, but no cover image or thumbnails.

    Raises:
        MediaError: there is none; its frames are larger than ``limits.max_pixels()``.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise MediaError(f"{path}: no video stream")
    if container.metadata.get("major_brand") in _IMAGE_BRANDS:
        raise MediaError(f"{path}: an AVIF or HEIF image, not a video")
    if stream.disposition & _PICTURE:
        videos = [each for each in container.streams.video if not each.disposition & _PICTURE]
        if not videos:
            raise MediaError(f"{path}: no video stream, only a cover image")
        stream = max(videos, key=lambda each: (bool(each.disposition & Disposition.default), -each.index))
    context = stream.codec_context
    if context is None:
        raise MediaError(f"{path}: FFmpeg has no decoder for its video stream")
    if context.width * context.height > limits.max_pixels():
        raise MediaError(too_large(path, context.width, context.height))
    context.options = decoder_options()
    context.thread_count = 1  # automatic slice threads can hang under load
    return stream


def header_seconds(container: Container, stream: av.VideoStream) -> float:
    """Return the duration of a stream according to the header; 0 if it has none."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def decoder_options() -> dict[str, str]:
    """Return the options of a decoder, which limit the memory for one frame."""
    return {"max_pixels": str(min(2 * limits.max_pixels(), 2**31 - 1))}  # decoders add a margin to a frame


def upright_shape(frame: av.VideoFrame) -> tuple[int, int, int]:
    """Return the rotation that makes a frame upright, and the rotated height and width.

    The rotation is counter-clockwise in degrees, a multiple of 90. Rotations by other angles count as none.
    """
    rotation = round(frame.rotation / 90) * 90
    # not for a matrix of zeros, or one that rotates by 45 degrees
    if abs(rotation) > 180 or abs(frame.rotation - rotation) > 1:
        rotation = 0
    return (rotation, frame.width, frame.height) if rotation % 180 else (rotation, frame.height, frame.width)


def filter_graph(frame: av.VideoFrame, filters: Iterable[tuple[str, str]]) -> av.filter.Graph:
    """Return an FFmpeg graph of filters (name, arguments) for frames of the size and format of `frame`."""
    graph = av.filter.Graph()
    graph.threads = 1  # more threads do not help for such small frames
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base or Fraction(1)
    )
    nodes = [graph.add(name, arguments or None) for name, arguments in filters]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    return graph


def read_stream_index(path: File) -> StreamIndex:
    """Read the packets of a video file without decoding.

    Raises:
        MediaError: the file is missing or empty, has no video stream, or has damaged packets.
    """
    file = in_memory(path)
    require_file(file)
    with media_errors(path), open_container(file) as container:
        return index_stream(container, file)


def _packets(container: Container, stream: av.VideoStream, path: File) -> Iterator[av.Packet]:
    """Yield the packets of a stream to the end of the file."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except IndexError as error:
        raise MediaError(f"{path}: damaged: it has packets of a stream that its header does not declare") from error


def _require_packets(path: File, count: int) -> None:
    """Raise ``MediaError`` if a file has fewer than `count` packets, including those that its edit list hides."""
    with open_container(path, ignore_editlist="1") as container:
        found = sum(1 for _ in _packets(container, best_stream(container, path), path))
    if found < count:
        raise MediaError(f"{path}: damaged: it has only {found} of {count} frames")


def index_stream(container: Container, path: File) -> StreamIndex:
    """Read an open file to its end and return the index. Raise ``MediaError`` as :func:`read_stream_index`."""
    stream = best_stream(container, path)
    context, format_name = stream.codec_context, container.format.name
    codec, extradata, starts_anywhere = context.codec.canonical_name, context.extradata or b"", True
    # keep only these fields; a list of packets would keep the whole file in memory
    packets, headers, brought, side_data, b_frames = [], set(), {}, set(), False
    has_units, length = codec in NAL_CODECS, unit_length(codec, extradata)
    for p in _packets(container, stream, path):
        is_key = p.is_keyframe
        if is_key or has_units:
            own, picture = packet_headers(codec, p, extradata, length)
            headers |= own
            b_frames = b_frames or (codec == "h264" and is_b_frame(picture))
            if is_key:
                brought[len(packets)] = own
                starts_anywhere &= codec != "h264" or is_idr(picture)
        for side in p.iter_sidedata():
            side_data.add(side.data_type)
        packets.append((p.pts, p.dts, is_key, p.is_discard, p.is_corrupt, p.pos))
    if "encryption_info" in side_data or "enc_key_id" in stream.metadata:
        raise MediaError(f"{path}: encrypted; decrypt it first")
    mov, avi, changes = "mov" in format_name, format_name == "avi", not side_data.isdisjoint(_SENT_ONCE)
    indexed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if any(packet[4] for packet in packets) or (mov and indexed > container.size):
        raise MediaError(f"{path}: damaged or truncated")
    if mov and stream.frames > len(packets):
        _require_packets(path, stream.frames)
    if not packets:
        raise MediaError(f"{path}: the video stream is empty")
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    times, dts, is_key, hidden, _, positions = zip(*packets)
    # timestamps of other containers are reconstructed, and VP8 has packets that are never shown
    reliable = (mov or "matroska" in format_name or (avi and not context.has_b_frames)) and codec != "vp8"
    unreliable = StreamIndex(codec, None, decord_problem="unreliable timestamps", fps=rate)
    if not reliable or None in times:
        return unreliable
    if avi:
        places = {entry.timestamp: entry.pos + _CHUNK_HEADER for entry in stream.index_entries}
        if any(places.get(time, pos) != pos for time, pos in zip(dts, positions)):  # its index leads to other packets
            return unreliable

    pts, is_key = np.array(times), np.array(is_key)
    earliest_after = np.minimum.accumulate(pts[::-1])[::-1]  # minimum over this packet and all later ones
    safe = is_key & (pts == earliest_after)
    shown = np.sort(pts[~np.array(hidden)])
    if not len(shown) or len(np.unique(shown)) < len(shown) or not safe[0]:
        return unreliable
    late = np.arange(len(pts)) - np.argsort(np.argsort(pts))  # positions by which frames are delayed
    if late.max() > context.reorder_depth:  # the decoder would drop the first frames
        return unreliable
    # no display times; or packed: two frames in one packet
    if not late.any() and (b_frames or (codec in ("hevc", "mpeg4") and context.reorder_depth)):
        return unreliable
    seconds, rate = frame_times(shown.tolist(), stream.time_base, rate)
    starts = [i for i in np.flatnonzero(safe).tolist() if brought[i] >= headers and not changes]
    keyframes = [Keyframe(times[i], dts[i]) for i in starts]
    indexed_keyframes = sum(entry.is_keyframe for entry in stream.index_entries)
    decord_problems = {
        "an edit list hides packets": len(shown) < len(pts) or shown[0] < 0,
        "open GOP": (is_key & ~safe).any(),
        "its index is wrong about keyframes": (mov or avi) and indexed_keyframes != is_key.sum(),
        "no timestamps in the file": avi and times != dts,
        "decord gives other pixels for damaged MJPEG": codec == "mjpeg",
        "the stream changes midway": bool(headers) or changes,
        "keyframes that are not IDR frames": not starts_anywhere,
        "decord does not support AV1": codec == "av1",
        "its header gives another number of frames": stream.frames not in (0, len(pts)),
        f"decord converts {context.pix_fmt} differently": context.pix_fmt not in PLAIN_FORMATS,
        "its keyframes are unknown": is_key.all() and not (context.codec.intra_only or codec in NAL_CODECS),
        "decord does not support the colour space": context.colorspace in ODD_COLORS,
        "decord converts odd sizes differently": context.width % 2 or context.height % 2,
        "several video streams": len(container.streams.video) > 1,  # decord may choose another one
    }
    problem = next((problem for problem, is_true in decord_problems.items() if is_true), "")
    return StreamIndex(codec, shown, keyframes, problem, 3 * context.width * context.height, rate, seconds)
