"""Find codec headers in packets. Decoding can start only at a keyframe that brings all headers with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from av.buffer import Buffer

NAL_CODECS = ("h264", "hevc")
_MJPEG_TABLES = (b"\xff\xdb", b"\xff\xc4")  # quantization and Huffman tables
_KINDS: dict[
    str, tuple[Callable[[bytes | memoryview], int], range, range]
] = {  # type of a unit, types of headers and of pictures
    "h264": (lambda unit: unit[0] & 31, range(7, 9), range(1, 6)),
    "hevc": (lambda unit: unit[0] >> 1 & 63, range(32, 35), range(32)),
    "mpeg4": (lambda unit: unit[0], range(0x20, 0x30), range(0xB6, 0xB7)),
    "mpeg2video": (lambda unit: unit[0], range(0xB3, 0xB4), range(1)),
    "mpeg1video": (lambda unit: unit[0], range(0xB3, 0xB4), range(1)),
}


def packet_headers(codec: str, packet: Buffer, extradata: bytes) -> tuple[set[bytes], bytes]:
    """Return the headers in a packet that are not in the `extradata`, and the first two bytes of its first picture.

    A changed header is another header. The second value is empty for codecs without units.
    """
    if codec == "mjpeg":
        data = bytes(packet)
        return {table for table in _MJPEG_TABLES if table in data}, b""
    headers: set[bytes] = set()
    if codec not in _KINDS:
        return headers, b""
    kind, header_types, picture_types = _KINDS[codec]
    length_at = 4 if codec == "h264" else 21
    has_sizes = codec in NAL_CODECS and len(extradata) > length_at and extradata[0] != 0
    length = extradata[length_at] % 4 + 1 if has_sizes else 0
    view = memoryview(packet)
    if length and len(view) > length and kind(view[length:]) in picture_types:  # most packets
        return headers, bytes(view[length : length + 2])
    for unit in nal_units(view, length):
        if not unit:
            continue
        if kind(unit) in picture_types:
            return headers, bytes(unit[:2])
        if kind(unit) in header_types and bytes(unit) not in extradata:
            headers.add(bytes(unit))
    return headers, b""


def is_idr(picture: bytes) -> bool:
    """Return True for the first bytes of an IDR frame of H.264."""
    return picture[:1] != b"" and picture[0] & 31 == 5


def is_b_frame(picture: bytes) -> bool:
    """Return True for the first two bytes of a B-frame of H.264."""
    return len(picture) > 1 and (picture[1] >> 4 == 0b1010 or picture[1] >> 2 == 0b100111)  # slice type 1 or 6


def nal_units(packet: bytes | memoryview, length: int) -> Iterator[bytes | memoryview]:
    """Yield the units of a packet, some of them empty.

    Args:
        packet: the packet.
        length: number of bytes of the size before each unit, as in mp4 and Matroska; 0 for start codes.
    """
    if not length:
        packet = bytes(packet)
        start = packet.find(b"\0\0\1") + 3
        while start >= 3:
            end = packet.find(b"\0\0\1", start)
            yield packet[start : end if end >= 0 else len(packet)].rstrip(b"\0")
            start = end + 3
        return
    at = 0
    while at < len(packet):
        size = int.from_bytes(packet[at : at + length], "big")
        yield packet[at + length : at + length + size]
        at += length + size
