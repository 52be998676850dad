"""Images that would run a program, or unpack to many times their size, are refused."""

import io
import os
import resource
import struct
import time
import zlib

import pytest
from PIL import Image

from video_rs.data.video.images import read_image
from video_rs.errors import MediaError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\nshowpage\n"


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "ppm", "webp", "bmp", "gif"])
@pytest.mark.parametrize("content", [EPS, b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(EPS)) + bytes(20) + EPS])
def test_postscript_is_never_run(tmp_path, monkeypatch, extension, content):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'was_run'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / f"a.{extension}"
    path.write_bytes(content)
    with pytest.raises(MediaError, match="a text file, not an image|cannot be decoded"):
        read_image(str(path))
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("kind", ["ICNS", "ICO", "PCX", "TGA", "SGI", "JPEG2000", "DDS", "PDF", "wmf", "emf"])
def test_only_common_image_formats_are_opened(tmp_path, kind):
    path, other = tmp_path / "a.png", {"wmf": b"\xd7\xcd\xc6\x9a\0\0", "emf": b"\1\0\0\0" + bytes(36) + b" EMF"}
    path.write_bytes(other.get(kind, b"") + bytes(99))
    if kind not in other:
        Image.new("RGB", (64, 64)).save(path, kind)
    with pytest.raises(MediaError, match="cannot be decoded|a PDF document"):
        read_image(str(path))


def png(chunk: bytes, data: bytes) -> bytes:
    """A small PNG file with one more chunk."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    extra = struct.pack(">I", len(data)) + chunk + data + struct.pack(">I", zlib.crc32(chunk + data))
    return file.getvalue()[:33] + extra + file.getvalue()[33:]  # after the header


@pytest.mark.parametrize("chunk, start", [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")])
def test_text_in_images_does_not_unpack_to_many_times_its_size(tmp_path, chunk, start):
    compressor = zlib.compressobj(9)
    bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(300)) + compressor.flush()
    path = tmp_path / "a.png"
    path.write_bytes(png(chunk, start + bomb))
    before, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(MediaError, match="Decompressed data too large"):
        read_image(str(path))
    assert time.process_time() - cpu < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
