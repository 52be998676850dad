"""Recognize files that are not videos or images by their first bytes: web pages, Git LFS pointers, archives, ..."""

import codecs
import re
from typing import IO

from video_rs.data import storage
from video_rs.data.shards import Blob, File

_HEAD = 4096  # bytes
_CAUSES = {
    rb"version https://git-lfs": "a Git LFS pointer, not the file; run git lfs pull",
    rb"\S*/annex/objects/": "a git-annex pointer, not the file; run git annex get",
    rb"\s*<(!doctype html|!--|html|head|body|script)": "a web page saved under this name; download the file again",
    rb"\s*<[?a-z]": "XML text, often a server's error message; download the file again",
    rb'\s*(\{\s*["}]|\[\s*[\[{"])': "JSON text, often a server's error message; download the file again",
    rb"\s*(#EXTM3U|ffconcat version|\[playlist\])": "a playlist, not a video; use the files that it lists",
    rb"PK(\x03\x04|\x05\x06)": "a zip archive; unpack it",
    rb"\x1f\x8b": "a gzip archive; unpack it",
    rb".{257}ustar": "a tar archive; unpack it",
    rb"7z\xbc\xaf|Rar!|\xfd7zXZ\x00|BZh\d|\x28\xb5\x2f\xfd": "an archive; unpack it",
    rb"ID3|fLaC|RIFF....WAVE|FORM....AIF": "an audio file, not a video",
    rb"%PDF": "a PDF document, not a video",
    rb"\x00{512}": "starts with zeros: an incomplete download or copy; copy the file again",
}
_IMAGES = {
    rb"\xff\xd8\xff": "a JPEG image",
    rb"\x89PNG\r\n": "a PNG image",
    rb"BM....\x00{4}": "a BMP image",
    rb"II\*\x00|MM\x00\*": "a TIFF image",
    rb"RIFF....WEBP": "a WebP image",
    rb"....ftyp(avif|hei|mif1)": "an AVIF or HEIF image",
}
_VIDEOS = {
    rb"....(ftyp|moov|mdat|wide)": "an mp4 or mov video",
    rb"\x1a\x45\xdf\xa3": "a Matroska or WebM video",
    rb"RIFF....AVI ": "an AVI video",
}
_FIRST_BOXES = (b"ftyp", b"mdat", b"wide", b"free", b"skip")
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def content_problem(file: File, image: bool = False) -> str:
    """Return why a file is not a video (or an image), and what to do; "" if its first bytes are not conclusive."""
    with file.open() if isinstance(file, Blob) else storage.open_file(file) as stream:
        head = stream.read(_HEAD).removeprefix(codecs.BOM_UTF8)
        is_incomplete = not image and _lacks_moov(stream)
    kind, others = ("an image", _VIDEOS) if image else ("a video", _IMAGES)
    for causes, ending in ((_CAUSES, ""), (others, f", not {kind}; give it the right extension")):
        for signature, text in causes.items():
            if re.match(signature, head, re.DOTALL | re.IGNORECASE):
                return text + ending
    if is_incomplete:
        return "an mp4 or mov without its index (moov): an incomplete download or recording; copy it again"
    return f"a text file, not {kind}" if _is_text(head) else ""


def _lacks_moov(stream: IO[bytes]) -> bool:
    """Return True for an mp4 or mov file that has no moov box."""
    place = 0
    while True:
        stream.seek(place)
        header = stream.read(16)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if kind in (b"moov", b"moof"):
            return False
        if place == 0 and kind not in _FIRST_BOXES:
            return False
        size = int.from_bytes(header[8:16], "big") if size == 1 else size
        if size < 8:  # the box extends to the end of the file, or is invalid
            return True
        place += size


def _is_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return head.startswith(_UTF_16)
    return not _BINARY.search(head)
