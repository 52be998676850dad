"""Identify a video by its packets, independently of its name, container, metadata and audio."""

import hashlib
from collections.abc import Callable, Iterator

from video_rs.data.shards import File
from video_rs.data.video.headers import NAL_CODECS, is_picture, nal_units, unit_length
from video_rs.data.video.media import media_errors
from video_rs.data.video.stream_index import best_stream, open_container


def packet_digest(file: File, beat: Callable[[], None] = lambda: None) -> int:
    """Return 64 bits of a digest of the packets of the best video stream; 0 if it has none.

    The digest is the same in every container: H.264 and H.265 have other separators and headers in MPEG-TS and AVI than
    in mp4 and Matroska, so only the pictures count.

    Raises:
        MediaError: the packets cannot be read.
    """
    digest, size = hashlib.sha1(), 0
    with media_errors(file), open_container(file) as container:
        stream = best_stream(container, file)
        codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
        digest.update(codec.encode())
        for packet in container.demux(stream):
            for part in _pictures(bytes(packet), codec, extradata):
                digest.update(part)
                size += len(part)
            beat()
    return int.from_bytes(digest.digest()[:8], "little") if size else 0


def _pictures(packet: bytes, codec: str, extradata: bytes) -> Iterator[bytes]:
    """Yield the parts of a packet that do not depend on the container."""
    if codec not in NAL_CODECS:
        yield packet
        return
    for unit in nal_units(packet, unit_length(codec, extradata)):
        if unit and is_picture(codec, unit):
            yield unit.rstrip(b"\0")
