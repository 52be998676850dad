"""Find codec headers in packets. Decoding can start only at a keyframe that contains all headers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set

from av.buffer import Buffer

NAL_CODECS = ("h264", "hevc")
_MJPEG_TABLES = (b"\xff\xdb", b"\xff\xc4")  # quantization and Huffman tables
# position in the extradata of mp4 and Matroska of the byte whose last two bits are the size of a unit's length minus 1
_LENGTH_AT = {"h264": 4, "hevc": 21}
_NO_HEADERS: frozenset[bytes] = frozenset()
# type of a unit by its first byte, types of headers, types of pictures
_KINDS: dict[str, tuple[Callable[[int], int], range, range]] = {
    "h264": (lambda first: first & 31, range(7, 9), range(1, 6)),
    "hevc": (lambda first: first >> 1 & 63, range(32, 35), range(32)),
    "mpeg4": (lambda first: first, range(0x20, 0x30), range(0xB6, 0xB7)),
    "mpeg2video": (lambda first: first, range(0xB3, 0xB4), range(1)),
    "mpeg1video": (lambda first: first, range(0xB3, 0xB4), range(1)),
}


def packet_headers(codec: str, packet: Buffer, extradata: bytes, length: int) -> tuple[Set[bytes], bytes]:
    """Return the headers in a packet that are not in the `extradata`, and the first two bytes of its first picture.

    A header with changed bytes counts as another header. The second value is empty for codecs without units.

    Args:
        codec, packet, extradata: FFmpeg's name of the codec, a packet, and the extradata of the stream.
        length: see :func:`unit_length`.
    """
    if codec == "mjpeg":
        data = bytes(packet)
        return {table for table in _MJPEG_TABLES if table in data}, b""
    if codec not in _KINDS:
        return _NO_HEADERS, b""
    kind, header_types, picture_types = _KINDS[codec]
    view = memoryview(packet)
    if length and len(view) > length and kind(view[length]) in picture_types:  # most packets
        return _NO_HEADERS, bytes(view[length : length + 2])
    headers: set[bytes] = set()
    for unit in nal_units(view, length):
        if not unit:
            continue
        if kind(unit[0]) in picture_types:
            return headers, bytes(unit[:2])
        if kind(unit[0]) in header_types and bytes(unit) not in extradata:
            headers.add(bytes(unit))
    return headers, b""


def is_picture(codec: str, unit: bytes | memoryview) -> bool:
    """Return True for a unit that is a part of a picture."""
    kind, _, picture_types = _KINDS[codec]
    return kind(unit[0]) in picture_types


def is_idr(picture: bytes) -> bool:
    """Return True for the first bytes of an IDR frame of H.264."""
    return picture[:1] != b"" and picture[0] & 31 == 5


def is_b_frame(picture: bytes) -> bool:
    """Return True for the first two bytes of a B-frame of H.264."""
    return len(picture) > 1 and (picture[1] >> 4 == 0b1010 or picture[1] >> 2 == 0b100111)  # slice type 1 or 6


def unit_length(codec: str, extradata: bytes) -> int:
    """Return the number of bytes of the size before each unit, as in mp4 and Matroska; 0 for start codes."""
    place = _LENGTH_AT.get(codec, len(extradata))
    return extradata[place] % 4 + 1 if place < len(extradata) and extradata[0] else 0


def nal_units(packet: bytes | memoryview, length: int) -> Iterator[bytes | memoryview]:
    """Yield the units of a packet, some of them empty.

    Args:
        packet: the packet.
        length: see :func:`unit_length`.
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
