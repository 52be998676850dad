"""Damage files in ways that depend only on a seed and a number.

``mutant(seed, number, bases)`` is always the same file for the same bases. Every function that changes bytes takes them
with a generator and returns new ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
"""Values that make a reader allocate, overflow or divide by zero."""
EBML = (  # of Matroska: headers, tracks, clusters, blocks, times and sizes
    *("1A45DFA3", "18538067", "114D9B74", "1549A966", "1654AE6B", "AE", "1F43B675", "A3", "A0", "A1", "E7", "2AD7B1"),
    *("B0", "BA", "63A2", "1C53BB6B", "23E383", "4489", "86", "83", "E0"),
)
MARKS = [  # bytes before fields of mp4 and mov, avi, flv, gif, Ogg, and MPEG
    *(b"moov mvhd trak tkhd edts elst mdhd hdlr stsd stts ctts stsz stsc stco co64 stss avc1 avcC hvc1 hvcC").split(),
    *(b"av01 av1C mp4v esds vp09 vpcC moof mfhd traf tfhd tfdt trun mvex trex sidx mdat ftyp free udta meta").split(),
    *(b"RIFF LIST hdrl avih strl strh strf movi idx1 00dc 00db 01wb JUNK indx").split(),
    *(b"FLV onMetaData duration width height GIF89a \x21\xf9\x04 NETSCAPE2.0 OggS").split(),
    *(bytes.fromhex(text) for text in EBML),
    *(b"\0\0\1" + bytes([number]) for number in (0x09, 0x65, 0x67, 0x68, 0xB3, 0xB5, 0xB6, 0xB8, 0xBA, 0xE0)),
]
EXTENSIONS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".flv", ".ts", ".mpg", ".wmv", ".gif", ".ogv", ".jpg", ".png")
CONTENTS = (
    b"",
    b"\0" * 4096,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
    b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    b"#EXTM3U\n#EXTINF:10,\nother.ts\n#EXT-X-ENDLIST\n",
    b"ffconcat version 1.0\nfile 'other.mp4'\n",
    b"\x1f\x8b\x08\x00" + bytes(range(256)),
    b"PK\x03\x04" + bytes(range(256)),
    b"Some notes about the video.\n\x1b[31mred\x1b[0m\n" * 20,
)


class Mutant(NamedTuple):
    """A damaged file.

    Attributes:
        name: number, base and suffix, as a file name.
        kinds: the changes, in order.
        data: its bytes.
    """

    name: str
    kinds: tuple[str, ...]
    data: bytes


def mutant(seed: int, number: int, bases: Mapping[str, bytes]) -> Mutant:
    """Return mutant `number` of a seed.

    Args:
        bases: files by name. The mutant has the suffix of the base, unless the suffix is changed.
    """
    rng = random.Random(f"{seed}/{number}")
    base = rng.choice(sorted(bases))
    stem, dot, suffix = base.rpartition(".")
    kinds, data = damaged(bases[base], rng)
    chance = rng.random()
    if chance < 0.04:
        data = data + bases[rng.choice(sorted(bases))]
        kinds += ("append",)
    elif chance < 0.08:
        dot, suffix = "", rng.choice((*EXTENSIONS, ".txt", ""))
        kinds += ("extension",)
    elif chance < 0.10:
        data, kinds = rng.choice(CONTENTS), ("content",)
    return Mutant(f"m{number:05d}_{stem}{dot}{suffix}", kinds, data)


def damaged(data: bytes, rng: random.Random) -> tuple[tuple[str, ...], bytes]:
    """Return the names of one to three changes, and the changed bytes."""
    changes = rng.choices(CHANGES, k=rng.choice((1, 1, 1, 2, 3)))
    for change in changes:
        data = change(data, rng) if data else data
    return tuple(change.__name__ for change in changes), data


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes, anywhere."""
    return _flipped(data, rng, 0, len(data))


def flip_head(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes of the first or last kilobyte, where headers are."""
    start = rng.choice((0, max(0, len(data) - 1024)))
    return _flipped(data, rng, start, min(len(data), start + 1024))


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Cut off the end."""
    return data[: rng.randrange(len(data))]


def behead(data: bytes, rng: random.Random) -> bytes:
    """Cut off the start."""
    return data[rng.randrange(min(len(data), 4096)) :]


def zero(data: bytes, rng: random.Random) -> bytes:
    """Set a range to zero, as in a sparse copy."""
    start, end = _range(data, rng)
    return data[:start] + bytes(end - start) + data[end:]


def noise(data: bytes, rng: random.Random) -> bytes:
    """Fill a range with random bytes."""
    start, end = _range(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def duplicate(data: bytes, rng: random.Random) -> bytes:
    """Repeat a chunk."""
    start, end = _range(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 1, 3)) + data[end:]


def remove(data: bytes, rng: random.Random) -> bytes:
    """Leave out a chunk."""
    start, end = _range(data, rng)
    return data[:start] + data[end:]


def swap(data: bytes, rng: random.Random) -> bytes:
    """Exchange two chunks of the size of packets of MPEG-TS, or other sizes."""
    size = rng.choice((4, 16, 188, 188, 512, 4096))
    count = len(data) // size
    if count < 2:
        return data
    first, second = sorted(rng.sample(range(count), 2))
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    chunks[first], chunks[second] = chunks[second], chunks[first]
    return b"".join(chunks)


def overwrite_number(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a field after a mark of the container with a wrong number."""
    at = _mark(data, rng)
    if at is None:
        return overwrite_anywhere(data, rng)
    return _overwritten(data, at + rng.randrange(0, rng.choice((8, 32, 96))), rng)


def overwrite_size(data: bytes, rng: random.Random) -> bytes:
    """Overwrite the four bytes before a mark of the container, which are its size in mp4 and mov."""
    at = _mark(data, rng)
    return overwrite_anywhere(data, rng) if at is None else _overwritten(data, max(0, at - 8), rng, size=4)


def overwrite_anywhere(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a number somewhere."""
    return _overwritten(data, rng.randrange(len(data)), rng)


def rename(data: bytes, rng: random.Random) -> bytes:
    """Replace a mark of the container by another one of its length."""
    at = _mark(data, rng)
    if at is None:
        return data
    size = next(len(mark) for mark in sorted(MARKS, key=len, reverse=True) if data.endswith(mark, 0, at))
    other = rng.choice([mark for mark in MARKS if len(mark) == size])
    return data[: at - size] + other + data[at:]


CHANGES: Sequence[Callable[[bytes, random.Random], bytes]] = (
    *(flip, flip_head, truncate, behead, zero, noise, duplicate, remove, swap),
    *(overwrite_number,) * 4,
    *(overwrite_size, overwrite_anywhere, rename),
)  # fmt: skip


def _flipped(data: bytes, rng: random.Random, start: int, end: int) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(start, end)] ^= rng.choice((1 << rng.randrange(8), rng.randrange(1, 256)))
    return bytes(changed)


def _range(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((4, 64, 188, 1000, 10_000, len(data) // 3 + 1)))


def _mark(data: bytes, rng: random.Random) -> int | None:
    """Return the end of a mark in the data, or None if there is none."""
    for mark in rng.sample(MARKS, len(MARKS)):
        if count := data.count(mark):
            at = -1
            for _ in range(rng.randrange(min(count, 64)) + 1):
                at = data.find(mark, at + 1)
            if at >= 0:
                return at + len(mark)
    return None


def _overwritten(data: bytes, at: int, rng: random.Random, size: int = 0) -> bytes:
    size = size or rng.choice((1, 2, 4, 4, 4, 8))
    number = rng.choice((*NUMBERS, rng.getrandbits(32), rng.randrange(1024)))
    field = (number % 256**size).to_bytes(size, rng.choice(("big", "big", "little")))
    return data[:at] + field + data[at + size :]
