"""Small files of every kind that is difficult for decoders, written by FFmpeg's encoders.

``write(name, path)`` writes the kind `name` of ``KINDS``; the name's suffix is the container's. All pictures differ.
``shared(name)`` is such a file in the corpus of the run, for tests that only read it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from tests import corpus
from tests.data.writers import (
    FRAMES,
    HEIGHT,
    PYRAMID,
    WIDTH,
    beheaded,
    edited,
    encode,
    false_keyframes,
    joined,
    moved,
    no_keyframes,
    nothing,
    packed,
    remux,
    renamed,
    sound,
    twice,
    two_streams,
    with_holes,
    without_reordering_hint,
    without_times,
    wrong_index,
)

AUDIO_ONLY = "audio_only.mp4"  # the only kind without video
KINDS: dict[str, Callable[[Path], None]] = {}


def write(name: str, path: Path) -> Path:
    """Write a file of the kind `name` to `path`, whose suffix is the name's."""
    assert path.suffix == Path(name).suffix
    shutil.copyfile(shared(name), path)
    return path


def shared(name: str) -> Path:
    """Return the shared file of the kind `name`; do not change it."""
    return corpus.shared(partial(encode_kind, name), name)


def encode_kind(name: str, path: Path) -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        KINDS[name](path)
    finally:  # SVT-AV1 gives a process of root real-time priority, which its children inherit
        os.sched_setscheduler(0, *before)


def kind(name: str, *args, write: Callable[..., None] = encode, **kwargs) -> None:
    KINDS[name] = lambda path: write(path, *args, **kwargs)


# H.264 and HEVC: B-frames, references, keyframes
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
# files that need more than an encoder
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
kind("no_index.avi", b"idx1", b"JUNK", "msmpeg4", write=renamed)
kind("wrong_index.avi", "huffyuv", pix_fmt="yuv422p", num_frames=20, write=wrong_index)
kind("no_sync_samples.mp4", b"stss", b"free", "mpeg4", write=renamed)
kind("no_display_times.mp4", b"ctts", b"free", "libx264", PYRAMID, write=renamed)
kind("no_display_times_hevc.mp4", b"ctts", b"free", "libx265", "open-gop=1:bframes=4:b-adapt=0", gop=10, write=renamed)
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
kind("packed.mkv", write=packed)
kind("packed.mp4", write=packed)
kind(AUDIO_ONLY, write=sound)
