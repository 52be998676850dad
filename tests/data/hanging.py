"""A small, intact file that takes minutes to decode from its only keyframe to most of its frames."""

from __future__ import annotations

from pathlib import Path

import av

from tests import corpus

HEIGHT, WIDTH, FRAMES = 2304, 4096, 15_000


def write_hanging_video(path: str | Path) -> Path:
    """Write a VP9 video of large frames: a keyframe, then one tiny packet that repeats the picture, over and over.

    2 MB that take a second to write, and one core 15 ms a frame to decode, in less than 100 MB.

    Args:
        path: of a ``.mkv`` or ``.webm`` file; missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return corpus.copy(_encode, path, "hanging")


def _encode(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        # a packet that is the same at every position
        stream.options = {"deadline": "realtime", "cpu-used": "8", "error-resilient": "1", "lag-in-frames": "0"}
        grey = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
        for plane in grey.planes:
            plane.update(bytes([128]) * plane.buffer_size)
        packets = []
        for i in range(3):
            grey.pts = i
            packets += stream.encode(grey)
        packets += stream.encode()
        first, step, again = packets[0], packets[1].pts - packets[0].pts, bytes(packets[2])
        container.mux(first)
        for i in range(1, FRAMES):
            packet = av.Packet(again)
            packet.stream, packet.time_base = stream, first.time_base
            packet.pts = packet.dts = first.pts + i * step
            container.mux(packet)
