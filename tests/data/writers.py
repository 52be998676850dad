"""Write small video files with PyAV, and edit their packets and headers."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import product
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType

FRAMES, HEIGHT, WIDTH = 40, 80, 112
PYRAMID = "bframes=5:b-adapt=0:b-pyramid=normal:ref=4"  # of x264


@cache
def picture(number: int, height: int, width: int) -> np.ndarray:
    """Return a moving texture and disc, uint8 ``[height, width, 3]``; no two are equal."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin((x * (1 + c) + y * (2 - c) + 7 * number) / (5 + 3 * c) + c) for c in range(3)]
    disc = (x - width / 2 - 20 * np.sin(number / 5)) ** 2 + (y - height / 2 - 15 * np.cos(number / 3)) ** 2 < 150
    rgb = np.stack([128 + 90 * wave for wave in waves], -1)
    rgb[disc] = [(number * 29) % 256, (number * 53) % 256, (number * 101) % 256]
    grain = np.random.default_rng(number).normal(0, 4, (height, width, 1))
    return np.clip(rgb + grain, 0, 255).astype(np.uint8)


def encode(
    path: Path,
    codec: str = "libx264",
    params: str = "",
    *,
    num_frames: int = FRAMES,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    options: dict[str, str] | None = None,
    movie: dict[str, str] | None = None,
    times: list[int] | None = None,
    rate: int = 25,
    rotation: int = 0,
    first: int = 0,
    context: dict | None = None,
    frame: dict | None = None,
    types: str = "",
) -> None:
    """Encode pictures `first`, `first` + 1, ...

    Args:
        params: x264's or x265's own, "key=value:key=value".
        movie: options of the container.
        times: of the frames, in 1 / `rate` s; 0, 1, 2, ... by default.
        context, frame: attributes of the codec context and of each frame.
        types: of the first frames: "I", "P" or "B".
    """
    options = dict(options or {})
    if codec in ("libx264", "libx265"):
        options[codec.removeprefix("lib") + "-params"] = "log-level=none:" * (codec == "libx265") + params or "ref=1"
        options.setdefault("preset", "veryfast")
    with av.open(str(path), "w", options=movie or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.gop_size, stream.codec_context.thread_count = gop, 1
        stream.options = options
        for key, value in (context or {}).items():
            setattr(stream.codec_context, key, value)
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(num_frames):
            image = av.VideoFrame.from_ndarray(picture(first + i, *size), format="rgb24").reformat(format=pix_fmt)
            image.pts, image.time_base = i if times is None else times[i], Fraction(1, rate)
            for key, value in (frame or {}).items():
                setattr(image, key, value)
            if i < len(types):
                image.pict_type = PictureType[types[i]]
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def encoded(path: Path, *args, suffix: str = ".mp4", **kwargs) -> bytes:
    """Return the file that `encode` writes, under another name than `path`."""
    source = path.with_name(f"{path.stem}.source{suffix}")
    encode(source, *args, **kwargs)
    data = source.read_bytes()
    source.unlink()
    return data


def remux(
    path: Path,
    change: Callable[[int, av.Packet], None | bool],
    *args,
    movie: dict[str, str] | None = None,
    bsf: str = "",
    suffix: str = ".mp4",
    **kwargs,
) -> None:
    """Encode, then copy the packets after `change(i, packet)`, which drops one by returning False."""
    copy(encoded(path, *args, suffix=suffix, **kwargs), path, change, movie, bsf)


def copy(
    data: bytes,
    path: Path,
    change: Callable[[int, av.Packet], None | bool] = lambda i, packet: None,
    movie: dict[str, str] | None = None,
    bsf: str = "",
) -> None:
    with av.open(io.BytesIO(data)) as source, av.open(str(path), "w", options=movie or {}) as out:
        stream = source.streams.video[0]
        target = out.add_stream_from_template(stream)
        chain = av.BitStreamFilterContext(bsf, stream) if bsf else None
        i = 0
        for whole in source.demux(stream):
            for packet in chain.filter(whole) if chain and whole.size else [whole]:
                if packet.size and change(i, packet) is not False:
                    packet.stream = target
                    out.mux(packet)
                i += 1


def renamed(path: Path, old: bytes, new: bytes, *args, **kwargs) -> None:
    """Encode, then rename a box or chunk of the container, which readers then ignore."""
    data = encoded(path, *args, suffix=path.suffix, **kwargs)
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def wrong_index(path: Path, *args, **kwargs) -> None:
    """Encode an AVI file, then exchange the places of two packets in its index."""
    encode(path, *args, **kwargs)
    data = bytearray(path.read_bytes())
    entries = data.index(b"idx1") + 8
    first, second = (slice(entries + 16 * i + 8, entries + 16 * i + 12) for i in (5, 9))
    data[first], data[second] = data[second], data[first]
    path.write_bytes(data)


def moved(by: int, i: int, packet: av.Packet) -> None:
    """Shift the times by a number of frames of 1/25 s."""
    step = round(Fraction(by, 25) / packet.time_base)
    packet.pts, packet.dts = packet.pts + step, packet.dts + step


def without_times(every: int, i: int, packet: av.Packet) -> None:
    if i % every:
        packet.pts = packet.dts = None


def twice(i: int, packet: av.Packet) -> None:
    """Give every second frame the time of the one before it."""
    step = round(Fraction(1, 25) / packet.time_base)
    packet.pts = packet.dts = packet.pts - packet.pts % (2 * step)


def false_keyframes(i: int, packet: av.Packet) -> None:
    packet.is_keyframe = i % 5 == 0


def no_keyframes(i: int, packet: av.Packet) -> None:
    packet.is_keyframe = i == 0


def beheaded(drop: int, i: int, packet: av.Packet) -> bool:
    return i >= drop


def with_holes(i: int, packet: av.Packet) -> bool:
    return i % 12 != 7


def nothing(i: int, packet: av.Packet) -> None:
    pass


def edited(path: Path, *edits: tuple[int, int | None], gop: int = 12, params: str = PYRAMID) -> None:
    """Write an mp4 file with an edit list of (frames, first frame) pieces; a first frame of None is an empty edit."""
    data = encoded(path, "libx264", params, gop=gop)
    at = data.index(b"elst") - 4
    old = int.from_bytes(data[at : at + 4], "big")
    _, zero = struct.unpack(">II", data[at + 16 : at + 24])  # of the only edit: the delay of the first frame
    entries = b"".join(
        struct.pack(">IiHH", count * 40, -1 if first is None else zero + first * 512, 1, 0) for count, first in edits
    )
    box = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    data = bytearray(data[:at] + box + data[at + old :])
    for parent in (b"edts", b"trak", b"moov"):  # the header is at the end: no chunk moves
        size = data.rindex(parent, 0, at) - 4
        data[size : size + 4] = (int.from_bytes(data[size : size + 4], "big") + len(box) - old).to_bytes(4, "big")
    path.write_bytes(data)


def without_reordering_hint(path: Path, **kwargs) -> None:
    """Write H.264 without its number of delayed frames, as old cameras do; decoders have to guess."""
    data = encoded(path, **kwargs)
    start = data.index(b"avcC") + 4 + 8
    size = int.from_bytes(data[start - 2 : start], "big")
    sps = data[start : start + size]
    bits = "".join(f"{byte:08b}" for byte in sps).rstrip("0")[:-1]

    def ue(value: int) -> str:
        return "0" * ((value + 1).bit_length() - 1) + f"{value + 1:b}"

    for h, v, late, buffered in product(range(17), range(17), range(5), range(17)):
        tail = "1111" + ue(h) + ue(v) + ue(late) + ue(buffered)
        if h > 5 and v > 5 and bits.endswith(tail):
            bits = (bits[: -len(tail)] + "01").ljust(8 * size, "0")
            break
    else:
        raise AssertionError("x264 writes another header")
    sps = int(bits, 2).to_bytes(size, "big")
    data = data[:start] + sps + data[start + size :]
    if path.suffix == ".mp4":
        path.write_bytes(data)
    else:
        copy(data, path)


def joined(
    path: Path,
    *sizes: tuple[int, int],
    suffix: str = ".ts",
    codec: str = "libx264",
    params: str = PYRAMID,
    glued: bool = False,
) -> None:
    """Write streams of several sizes one after the other in one; `glued`: concatenate the files."""
    parts = []
    for k, size in enumerate(sizes):
        parts.append(
            encoded(
                path,
                codec,
                params,
                suffix=suffix,
                num_frames=20,
                first=20 * k,
                size=size,
                times=range(40 * k, 40 * k + 20),
            )
        )
    if glued:
        path.write_bytes(b"".join(parts))
        return
    with av.open(str(path), "w") as out:
        copy = None
        for part in parts:
            with av.open(io.BytesIO(part)) as source:
                copy = copy or out.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream = copy
                        out.mux(packet)


def two_streams(path: Path, *streams: tuple[int, int, int], sound: bool = False) -> None:
    """Write several video streams of (frames, height, width); an audio stream comes first."""
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=8000) if sound else None
        videos = []
        for _, height, width in streams:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt, stream.options = (
                height,
                width,
                "yuv420p",
                {"preset": "veryfast"},
            )
            stream.codec_context.gop_size, stream.codec_context.thread_count = 12, 1
            videos.append(stream)
        for i in range(FRAMES):
            for k, (count, height, width) in enumerate(streams):
                if i < count:
                    frame = av.VideoFrame.from_ndarray(picture(100 * k + i, height, width), format="rgb24")
                    container.mux(videos[k].encode(frame))
            if audio:
                container.mux(audio.encode(tone(i)))
        for stream in [*videos, *([audio] if audio else [])]:
            container.mux(stream.encode())


def tone(i: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.full((1, 320), 0.1 * (i % 2), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 8000, 320 * i, Fraction(1, 8000)
    return frame


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for i in range(20):
            container.mux(stream.encode(tone(i)))
        container.mux(stream.encode())


def packed(path: Path) -> None:
    """Write packed MPEG-4, as DivX does: a B-frame in the packet of the next frame, and an empty frame in its place."""
    data = encoded(path, "mpeg4", suffix=".avi", options={"bf": "1", "b_strategy": "0"}, gop=12)
    with av.open(io.BytesIO(data)) as source:
        template = source.streams.video[0]
        parts = [bytes(packet) for packet in source.demux(template) if packet.size]
        chunks, mark = [], b"\x00\x00\x01\xb2DivX503b1393p"
        kinds = [part[part.index(b"\x00\x00\x01\xb6") + 4] >> 6 for part in parts]  # 0 I, 1 P, 2 B
        for i, part in enumerate(parts):
            if kinds[i] == 2:
                chunks.append(b"\x00\x00\x01\xb6\x51\x00\x7f"[:7])
                continue
            vop = part.index(b"\x00\x00\x01\xb6")
            head = part[:vop] + mark if kinds[i] == 0 else b""
            chunks.append(head + part[vop:] + (parts[i + 1] if i + 1 < len(parts) and kinds[i + 1] == 2 else b""))
        with av.open(str(path), "w") as out:
            copy = out.add_stream_from_template(template)
            for i, chunk in enumerate(chunks):
                packet = av.Packet(chunk)
                packet.pts = packet.dts = i
                packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), copy, kinds[i] == 0
                out.mux(packet)
