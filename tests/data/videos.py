"""Real files of every kind that decoders stumble on, small, written by FFmpeg's encoders through PyAV.

``write(name, path)`` writes the kind `name` of ``KINDS``; the name's suffix is the container's. All pictures differ.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from itertools import product
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType

FRAMES, HEIGHT, WIDTH = 40, 80, 112
AUDIO_ONLY = "audio_only.mp4"  # the one kind that is no video

KINDS: dict[str, Callable[[Path], None]] = {}


def write(name: str, path: Path) -> Path:
    """Write a file of the kind `name` to `path`, whose suffix is the name's."""
    assert path.suffix == Path(name).suffix
    KINDS[name](path)
    return path


@cache
def picture(number: int, height: int, width: int) -> np.ndarray:
    """``[height, width, 3]`` uint8: a texture and a disc, both moving, in all colours; never the same twice."""
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


def kind(name: str, *args, write: Callable[..., None] = encode, **kwargs) -> None:
    KINDS[name] = partial(_call, write, args, kwargs)


def _call(write, args, kwargs, path: Path) -> None:
    write(path, *args, **kwargs)


# H.264: B-frames, references, keyframes
PYRAMID = "bframes=5:b-adapt=0:b-pyramid=normal:ref=4"
kind("h264.mp4")
kind("intra.mp4", gop=1)
kind("no_b_frames.mp4", "libx264", "bframes=0:ref=3")
kind("b_frames.mp4", "libx264", "bframes=3:b-adapt=0:b-pyramid=none:ref=3:weightp=0")
kind("pyramid.mp4", "libx264", PYRAMID + ":weightp=2", gop=16)
kind("pyramid_without_weights.mp4", "libx264", PYRAMID + ":weightp=0:weightb=0", gop=16)
kind("strict_pyramid.mkv", "libx264", "bframes=7:b-adapt=0:b-pyramid=strict:ref=4", gop=20)
kind("temporal_direct.mp4", "libx264", "bframes=3:b-adapt=0:b-pyramid=normal:direct=temporal:ref=6")
kind("long_gop.mp4", "libx264", PYRAMID, gop=1000, num_frames=70)
kind("fast_decode.mp4", options={"tune": "fastdecode"}, gop=16)
kind("slices.mp4", "libx264", "slices=4:bframes=3")
kind("closed_gop.mp4", "libx264", PYRAMID + ":open-gop=0", gop=8)
kind("open_gop.mp4", "libx264", "open-gop=1:bframes=2:b-adapt=0")
kind("open_gop.mkv", "libx264", PYRAMID + ":open-gop=1", gop=9)
kind("open_gop_no_b_frames.mp4", "libx264", "open-gop=1:bframes=0:ref=3", gop=9)
kind("intra_refresh.mp4", "libx264", "intra-refresh=1:bframes=0:ref=2", gop=10)
kind("intra_refresh.mkv", "libx264", "intra-refresh=1:bframes=2:b-adapt=0", gop=10)
kind("interlaced.mp4", "libx264", "tff=1:bframes=3:b-adapt=0:b-pyramid=normal", size=(96, 112))
kind("fake_interlaced.mp4", "libx264", "fake-interlaced=1:bframes=3", size=(96, 112))
kind("lossless.mp4", options={"qp": "0"})
kind("rgb.mkv", "libx264rgb", pix_fmt="rgb24")
kind("gray.mp4", pix_fmt="gray")
for codec, name in (("libx265", "hevc"), ("libx264", "h264")):
    kind(f"{name}_10_bit.mp4", codec, pix_fmt="yuv420p10le")
    kind(f"{name}_422.mp4", codec, pix_fmt="yuv422p")
    kind(f"{name}_444.mp4", codec, pix_fmt="yuv444p")
kind("hevc_closed_gop.mp4", "libx265", "open-gop=0:bframes=4:b-adapt=0", gop=10)
kind("hevc_open_gop.mp4", "libx265", "open-gop=1:bframes=4:b-adapt=0:min-keyint=1", gop=10)
kind("hevc_open_gop.mkv", "libx265", "open-gop=1:bframes=4:b-adapt=0:min-keyint=1", gop=10)

# sizes, colours
for height, width in ((81, 112), (80, 113), (81, 113)):  # H.264 and HEVC have no odd sizes in 4:2:0
    kind(f"{height}x{width}.mp4", "mpeg4", size=(height, width))
kind("90x130.mp4", size=(90, 130))
kind("odd_444.mp4", size=(81, 113), pix_fmt="yuv444p")
kind("odd_422.mp4", size=(81, 112), pix_fmt="yuv422p")
kind("odd_mjpeg.mov", "mjpeg", size=(81, 113), pix_fmt="yuvj420p", num_frames=20)
kind("odd_10_bit.mkv", "ffv1", size=(81, 113), pix_fmt="yuv420p10le", num_frames=20)
kind("odd_vp8.webm", "libvpx", size=(81, 113), options={"auto-alt-ref": "0", "deadline": "realtime", "cpu-used": "8"})
kind("odd_vp9.webm", "libvpx-vp9", size=(81, 113), options={"deadline": "realtime", "cpu-used": "8"})
kind("narrow.mp4", size=(64, 48))
kind("tiny.mp4", size=(16, 16))
kind("full_range.mp4", pix_fmt="yuvj420p", context={"color_range": 2})
kind("full_range_tag.mp4", context={"color_range": 2}, frame={"color_range": 2})
for tag, number in (("bt709", 1), ("bt601", 6), ("bt2020", 9)):
    kind(f"{tag}.mp4", context={"colorspace": number}, frame={"colorspace": number})
kind("bt709_full_10_bit.mp4", pix_fmt="yuv420p10le", context={"colorspace": 1, "color_range": 2})
kind("wide_pixels.mp4", context={"sample_aspect_ratio": Fraction(4, 3)})
for angle in (90, 180, 270):
    kind(f"rotated_{angle}.mp4", rotation=angle)
kind("rotated_odd.mp4", "mpeg4", rotation=90, size=(81, 113))

# times
VARIABLE = np.cumsum([1 + (i * 7) % 5 for i in range(FRAMES)]).tolist()
kind("variable_rate.mp4", "libx264", PYRAMID, times=VARIABLE, rate=100)
kind("variable_rate.mkv", times=VARIABLE, rate=100)
kind("late_start.mp4", times=[500 + i for i in range(FRAMES)])
kind("late_start.mkv", times=[500 + i for i in range(FRAMES)])
kind("milliseconds.mkv", rate=240)
kind("milliseconds_collide.mkv", rate=4000)
kind("live.mkv", movie={"live": "1"})
kind("live.webm", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}, movie={"live": "1"})
kind("small_clusters.mkv", "libx264", PYRAMID, movie={"cluster_time_limit": "100"})
kind("one_frame.mp4", num_frames=1)
kind("two_frames.mkv", num_frames=2)
kind("fragmented.mp4", movie={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
kind("fragmented_often.mp4", movie={"movflags": "frag_every_frame+empty_moov"})
kind("fast_start.mp4", movie={"movflags": "faststart"})
kind("negative_offsets.mp4", "libx264", PYRAMID, movie={"movflags": "negative_cts_offsets"})

# other codecs and containers
kind("vp8.webm", "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "10", "deadline": "good", "cpu-used": "4"})
kind("vp8_visible.webm", "libvpx", options={"auto-alt-ref": "0", "deadline": "realtime", "cpu-used": "8"})
VP9 = {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "cpu-used": "4"}
kind("vp9.webm", "libvpx-vp9", options=VP9, gop=16)
kind("vp9.mp4", "libvpx-vp9", options=VP9, gop=16)
kind("av1.mkv", "libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"})
kind("av1.mp4", "libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"})
kind("mpeg4.avi", "mpeg4")
kind("mpeg4.mp4", "mpeg4", options={"bf": "2"})
kind("mpeg4_b_frames.avi", "mpeg4", options={"bf": "2"})
kind("dropped_frames.avi", "mpeg4", times=VARIABLE, rate=25)
kind("h263.3gp", "h263", size=(144, 176))
kind("msmpeg4.avi", "msmpeg4")
kind("mpeg2.ts", "mpeg2video", options={"bf": "2"})
kind("mpeg2.mpg", "mpeg2video", options={"bf": "2"})
kind("mpeg2.mp4", "mpeg2video", options={"bf": "2"})
kind("mpeg2.mkv", "mpeg2video", options={"bf": "2"})
kind("mpeg2_interlaced.ts", "mpeg2video", options={"bf": "2", "flags": "+ildct+ilme"}, size=(96, 112))
kind("mpeg1.mpg", "mpeg1video", size=(80, 112))
kind("h264.ts", "libx264", PYRAMID)
kind("h264.flv", "libx264", PYRAMID)
kind("h264.avi", "libx264", "bframes=2:b-adapt=0")
kind("h264_no_b.avi", "libx264", "bframes=0")
kind("flv1.flv", "flv")
kind("wmv2.wmv", "wmv2")
kind("prores.mov", "prores", pix_fmt="yuv422p10le", num_frames=20)
kind("mjpeg.mov", "mjpeg", pix_fmt="yuvj420p", num_frames=20)
kind("mjpeg.avi", "mjpeg", pix_fmt="yuvj422p", num_frames=20)
kind("huffyuv.avi", "huffyuv", pix_fmt="yuv422p", num_frames=20)
kind("ffv1.mkv", "ffv1", pix_fmt="yuv420p", num_frames=20)
kind("raw.avi", "rawvideo", num_frames=20)
kind("png.mov", "png", pix_fmt="rgb24", num_frames=20)
kind("png_alpha.mov", "png", pix_fmt="rgba", num_frames=20)
kind("animation.gif", "gif", pix_fmt="rgb8", num_frames=20)


# what takes more than an encoder
def encoded(path: Path, *args, suffix: str = ".mp4", **kwargs) -> bytes:
    """What `encode` writes, kept out of the way of `path`."""
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
    """Encode, then copy the packets: `change(i, packet)` changes the i-th; it is left out where that returns False."""
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


def moved(by: int, i: int, packet: av.Packet) -> None:
    """Shift the times by so many frames of 1/25 s."""
    step = round(Fraction(by, 25) / packet.time_base)
    packet.pts, packet.dts = packet.pts + step, packet.dts + step


def without_times(every: int, i: int, packet: av.Packet) -> None:
    if i % every:
        packet.pts = packet.dts = None


def twice(i: int, packet: av.Packet) -> None:
    """Every second frame gets the time of the one before it."""
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


kind("cut_start.mp4", partial(moved, -5), write=remux)
kind("cut_start_pyramid.mp4", partial(moved, -7), "libx264", PYRAMID, write=remux)
kind("cut_start.mkv", partial(moved, -5), write=remux)
kind("cut_start_hevc.mp4", partial(moved, -13), "libx265", write=remux)
kind("delayed_start.mp4", partial(moved, 10), write=remux, movie={"use_editlist": "1"})
kind("no_edit_list.mp4", nothing, write=remux, movie={"use_editlist": "0"})
kind("missing_times.mkv", partial(without_times, 2), write=remux, params="bframes=0")
kind(
    "split_superframes.mkv", nothing, "libvpx-vp9", suffix=".webm", options=VP9, write=remux, bsf="vp9_superframe_split"
)
kind("duplicate_times.mkv", twice, "libx264", "bframes=0", write=remux)
kind("false_keyframes.mkv", false_keyframes, "libx264", PYRAMID, write=remux)
kind("false_keyframes.mp4", false_keyframes, "libx264", "bframes=0", write=remux)
kind("false_keyframes_mpeg4.avi", false_keyframes, "mpeg4", write=remux, suffix=".avi")
kind("no_keyframes.mkv", no_keyframes, write=remux)
kind("starts_within_a_gop.mkv", partial(beheaded, 5), "libx264", PYRAMID, write=remux)
kind("starts_within_a_gop.mp4", partial(beheaded, 5), "libx264", "bframes=0", write=remux)
kind("starts_open_gop.mp4", partial(beheaded, 9), "libx264", PYRAMID + ":open-gop=1", gop=9, write=remux)
kind(
    "starts_open_gop_hevc.mp4", partial(beheaded, 10), "libx265", "open-gop=1:bframes=4:b-adapt=0", gop=10, write=remux
)
kind("with_holes.mp4", with_holes, "libx264", PYRAMID, write=remux)
kind("with_holes.mkv", with_holes, "libx264", "bframes=2:b-adapt=0", write=remux)


def edited(path: Path, *edits: tuple[int, int | None], gop: int = 12, params: str = PYRAMID) -> None:
    """An mp4 file with an edit list of (frames, first frame) pieces; a first frame of None is an empty edit."""
    data = encoded(path, "libx264", params, gop=gop)
    at = data.index(b"elst") - 4
    old = int.from_bytes(data[at : at + 4], "big")
    _, zero = struct.unpack(">II", data[at + 16 : at + 24])  # of the one edit there is: how late the first frame is
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
    """H.264 that does not say how many frames are shown late, as old cameras write it: decoders have to guess."""
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
    """Streams of several sizes one behind the other in one; `glued`: as the shell's cat would."""
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
    """Video streams of (frames, height, width) beside each other; with sound, that comes first."""
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
    """MPEG-4 as DivX packs it: a B-frame travels with the frame behind it, and an empty frame in its own place."""
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


kind("edit_start.mp4", (29, 11), write=edited)
kind("edit_end.mp4", (23, 0), write=edited)
kind("edit_both_ends.mp4", (20, 7), write=edited)
kind("edit_delay.mp4", (10, None), (40, 0), write=edited)
kind("edit_delay_and_start.mp4", (10, None), (30, 9), write=edited)
kind("edit_middle.mp4", (10, 0), (10, 26), write=edited)
kind("edit_twice.mp4", (10, 3), (10, 3), write=edited)
kind("edit_backwards.mp4", (10, 24), (10, 0), write=edited)
kind("edit_end_no_b.mp4", (23, 0), write=edited, params="bframes=1:b-adapt=0")
kind("no_hint.mp4", write=without_reordering_hint, params="bframes=2:b-adapt=0:b-pyramid=none")
kind("no_hint_pyramid.mp4", write=without_reordering_hint, params=PYRAMID, gop=16)
kind("no_hint_adaptive.mp4", write=without_reordering_hint, params="bframes=3:b-adapt=2:b-pyramid=normal:ref=3", gop=30)
kind("no_hint_late.mp4", write=without_reordering_hint, params=PYRAMID, types="I" + 20 * "P", gop=40)
kind("no_hint.mkv", write=without_reordering_hint, params="bframes=2:b-adapt=0:b-pyramid=none")
kind("no_hint_pyramid.mkv", write=without_reordering_hint, params=PYRAMID, gop=16)
kind("no_hint_late.mkv", write=without_reordering_hint, params=PYRAMID, types="I" + 20 * "P", gop=40)
kind("new_size.ts", (80, 112), (64, 96), write=joined)
kind("glued.ts", (80, 112), (80, 112), write=joined, glued=True)
kind("new_size.mkv", (80, 112), (64, 96), write=joined)
kind("new_size.mp4", (80, 112), (112, 80), write=joined)
kind("new_size_vp9.webm", (80, 112), (64, 96), write=joined, suffix=".webm", codec="libvpx-vp9", params="")
kind("new_header.mkv", (80, 112), (80, 112), write=joined)
kind("two_streams.mp4", (30, 48, 64), (40, HEIGHT, WIDTH), write=two_streams, sound=True)
kind("two_streams_alike.mp4", (40, 48, 64), (40, HEIGHT, WIDTH), write=two_streams)
kind("second_is_best.mkv", (3, 48, 64), (40, HEIGHT, WIDTH), write=two_streams, sound=True)
kind("with_sound.mp4", (40, HEIGHT, WIDTH), write=two_streams, sound=True)
kind("packed.avi", write=packed)
kind(AUDIO_ONLY, write=sound)
