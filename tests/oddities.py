"""Twenty odd files and folders of real datasets, to add to class folders of videos."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from PIL import Image

USED, BROKEN, LEFT_OUT = "used", "broken", "left out"


def plant(folder: Path, video: Path) -> dict[str, str]:
    """Add the odd files to a class folder.

    Args:
        folder: the class folder.
        video: an mp4 file of more than one second to copy.

    Returns:
        The path of each odd file relative to `folder`, and how it is treated: USED, BROKEN (recorded as unreadable) or
        LEFT_OUT (counted when a run starts).
    """
    data = video.read_bytes()
    copies = {
        "wrong_extension.avi": USED,
        'say "hi", twice.mp4': USED,
        "back'quote & semi;colon.mp4": USED,
        "\N{BASKETBALL AND HOOP} emoji.mp4": USED,
        "~tilde $HOME.mp4": USED,
        "cafe\N{COMBINING ACUTE ACCENT}.mp4": USED,
        "UPPER.MP4": USED,
        " leading and trailing .mp4": USED,
        "10:30 #1 100%.mp4": USED,
        "-dash.mp4": USED,
        "nested/s1/deep.mp4": USED,
    }
    for name in copies:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(video, folder / name)
    (folder / "animation.gif").write_bytes(b"")  # replaced below
    _gif(folder / "animation.gif")
    contents = {
        "empty.mp4": b"",
        "truncated.mp4": data[: len(data) // 2],
        "text.mp4": b"These are notes, not a video.\n" * 20,
        "pointer.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n",
        "page.mp4": b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n",
    }
    left_out = {"notes.txt": b"label these again\n", "no_extension": data, "subtitles.srt": b"1\n00:00\n"}
    for name, text in (contents | left_out).items():
        (folder / name).write_bytes(text)
    os.symlink("nowhere.mp4", folder / "dangling.mp4")
    junk = (".DS_Store", "._video.mp4", "@eaDir/video.mp4/SYNOVIDEO.jpg", "Thumbs.db", ".ipynb_checkpoints/video.mp4")
    for name in junk:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\26\7" + bytes(60))
    broken = dict.fromkeys([*contents, "dangling.mp4"], BROKEN)
    return copies | {"animation.gif": USED} | broken | dict.fromkeys(left_out, LEFT_OUT)


def _gif(file: Path) -> None:
    frames = [Image.new("RGB", (64, 64), (20 * i, 60, 250 - 20 * i)) for i in range(12)]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=[40, 200] * 6)
