"""The source files of mutants: a tiny video of every codec and container, and recorded ones."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from tests import corpus
from tests.data.writers import PYRAMID, encode, remux, twice, two_streams
from video_rs import checkpoint
from video_rs.data.sources.records import Records
from video_rs.data.tools.index import index_videos
from video_rs.data_config import DataConfig
from video_rs.models.registry import create_model

LARGEST = 100_000  # bytes of a recorded file
FAST = {"deadline": "realtime", "cpu-used": "8"}
SIZE = {"size": (64, 64), "num_frames": 16, "gop": 6}
WRITERS = {
    "h264.mp4": partial(encode, params=PYRAMID),
    "h264.mov": partial(encode, rotation=90),
    "h264.mkv": partial(encode, params=PYRAMID),
    "h264.ts": partial(encode, params=PYRAMID),
    "h264.flv": encode,
    "h264.avi": partial(encode, params="bframes=0"),
    "fragmented.mp4": partial(encode, movie={"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "hevc.mp4": partial(encode, codec="libx265"),
    "hevc.mkv": partial(encode, codec="libx265"),
    "hevc.ts": partial(encode, codec="libx265"),
    "vp8.webm": partial(encode, codec="libvpx", options=FAST),
    "vp9.webm": partial(encode, codec="libvpx-vp9", options=FAST),
    "vp9.mp4": partial(encode, codec="libvpx-vp9", options=FAST),
    "av1.mp4": partial(encode, codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}),
    "av1.mkv": partial(encode, codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}),
    "mpeg4.mp4": partial(encode, codec="mpeg4", options={"bf": "2"}),
    "mpeg4.avi": partial(encode, codec="mpeg4"),
    "msmpeg4.avi": partial(encode, codec="msmpeg4"),
    "mpeg2.ts": partial(encode, codec="mpeg2video", options={"bf": "2"}),
    "mpeg2.mpg": partial(encode, codec="mpeg2video", options={"bf": "2"}),
    "mpeg1.mpg": partial(encode, codec="mpeg1video"),
    "flv1.flv": partial(encode, codec="flv"),
    "wmv2.wmv": partial(encode, codec="wmv2"),
    "h263.3gp": partial(encode, codec="h263", size=(96, 128)),
    "vp8.ogv": partial(encode, codec="libvpx", options=FAST),
    "mjpeg.mov": partial(encode, codec="mjpeg", pix_fmt="yuvj420p"),
    "mjpeg.avi": partial(encode, codec="mjpeg", pix_fmt="yuvj422p"),
    "prores.mov": partial(encode, codec="prores", pix_fmt="yuv422p10le", num_frames=6),
    "ffv1.mkv": partial(encode, codec="ffv1", num_frames=6),
    "huffyuv.avi": partial(encode, codec="huffyuv", pix_fmt="yuv422p", num_frames=6),
    "raw.avi": partial(encode, codec="rawvideo", num_frames=4),
    "png.mov": partial(encode, codec="png", pix_fmt="rgba", num_frames=6),
    "animation.gif": partial(encode, codec="gif", pix_fmt="rgb8"),
    "uneven.mp4": partial(encode, times=[0, 1, 2, 30, 31, 32, 90, 91, 92, 93, 94, 95, 96, 97, 98, 500]),
    "doubled.mkv": lambda path, **kwargs: remux(path, twice, params="bframes=0", **kwargs),
    "streams.mp4": lambda path, **_: two_streams(path, (8, 32, 32), (16, 64, 64), sound=True),
}


def read_bases() -> dict[str, bytes]:
    """Return the files by name. Recorded ones come from the folder that ``VIDEO_RS_TEST_ASSETS`` names."""
    bases = {name: corpus.shared(partial(_write, name), name, SIZE).read_bytes() for name in WRITERS}
    if folder := os.environ.get("VIDEO_RS_TEST_ASSETS"):
        for path in [*Path(folder, "videos").iterdir(), *Path(folder, "cases").glob("*.*")]:
            if (
                path.is_file()
                and path.suffix not in (".md", ".json", ".csv", ".yaml")
                and path.stat().st_size <= LARGEST
            ):
                bases[f"{path.parent.name}_{path.name}"] = path.read_bytes()
    return bases


def write_weights(path: Path) -> None:
    """Write a checkpoint of a small network."""
    data_config = DataConfig(num_frames=4, stride=1, train_size=32, short_side=36, test_size=32)
    arguments = {"name": "resnet3d_rs_26", "num_classes": 3, "width": 0.125}
    model = create_model(**arguments, data_config=data_config)
    checkpoint.save(path, checkpoint.from_weights(arguments, data_config, model.state_dict()))


def write_index(path: Path) -> None:
    """Write the index of one video and a missing one."""
    videos = Records([str(path.with_name("good.mp4")), str(path.with_name("none.mp4"))], np.zeros(2, np.int32), ("a",))
    index_videos(videos).index.save(path)


def _write(name: str, path: Path) -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        WRITERS[name](path, **{**SIZE, **getattr(WRITERS[name], "keywords", {})})
    finally:  # SVT-AV1 gives a process of root real-time priority, which its children inherit
        os.sched_setscheduler(0, *before)
