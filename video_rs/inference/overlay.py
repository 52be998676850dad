"""Draw activation maps over their frames, as videos and pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from video_rs.data.tools.motion import encode
from video_rs.data.video.media import is_image
from video_rs.errors import PATH_ERRNOS, UserError, printable
from video_rs.evaluation.plots import FALLBACK_FONTS
from video_rs.files import atomic_write
from video_rs.inference.explain import Explanation

SUFFIXES = (".mp4", ".webp", ".png")
MIN_SIDE = 224  # smaller frames are enlarged, for the text
BAND = 26  # pixels above each frame, for the text
STRIP_FRAMES = 8  # of a PNG


def draw(explanations: Sequence[Explanation], opacity: float = 0.6) -> np.ndarray:
    """Draw K explanations of the same frames, with class, probability and time above each frame.

    Args:
        opacity: of the colour where a map is 1. It is proportional to the map, so the rest of a frame stays as it is.

    Returns:
        uint8 ``[K, T, H, W, 3]``; H and W are even.
    """
    return np.stack([np.stack(_panels(explanation, opacity)) for explanation in explanations])


def _panels(found: Explanation, opacity: float) -> list[np.ndarray]:
    side = max(MIN_SIDE, found.frames.shape[1] + found.frames.shape[1] % 2)
    colormap, label = matplotlib.colormaps["turbo"], f"{found.score:.1%}  {printable(found.label)}"
    font, panels = _font(label), []
    for number, (frame, cam) in enumerate(zip(found.frames, found.maps)):
        time = "" if found.times is None else f"{found.times[number]:.2f} s"
        pixels = np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC))
        alpha = np.asarray(Image.fromarray(cam).resize((side, side), Image.Resampling.BILINEAR))
        color, weight = 255 * colormap(alpha)[..., :3], opacity * alpha[..., None]
        panel = Image.new("RGB", (side, side + BAND))
        panel.paste(Image.fromarray(((1 - weight) * pixels + weight * color).astype(np.uint8)), (0, BAND))
        drawing = ImageDraw.Draw(panel)
        room = side - 12 - font.getlength(time)
        drawing.text((4, BAND // 2), _shortened(label, font, room), fill="white", font=font, anchor="lm")
        drawing.text((side - 4, BAND // 2), time, fill="#9ca3af", font=font, anchor="rm")
        panels.append(np.asarray(panel))
    return panels


def output_files(out: str | Path, files: Sequence[str], overwrite: bool = False) -> list[Path]:
    """Return where the explanation of each file is written, and create the folder.

    Args:
        out: a path with one of `SUFFIXES`, for a single file; or a folder.

    Raises:
        UserError: there is such a file, the suffix is another one, or several files need a folder that can be written.
    """
    out = Path(out)
    if out.is_dir() or not out.suffix:
        suffixes = (".png" if is_image(file) else ".mp4" for file in files)
        paths = [out / _unique_name(files, number) for number in range(len(files))]
        paths = [path.with_name(path.name + suffix) for path, suffix in zip(paths, suffixes)]
    elif out.suffix.lower() not in SUFFIXES:
        raise UserError(f"{out}: cannot write {out.suffix}; use {', '.join(SUFFIXES)}, or a folder")
    elif len(files) > 1:
        raise UserError(f"{out}: {len(files)} files need a folder; leave out {out.suffix}")
    else:
        paths = [out]
    for path in paths:
        if path.exists() and any(os.path.exists(file) and path.samefile(file) for file in files):
            raise UserError(f"{path} is one of the files to explain; choose another --out")
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists; choose another --out, or replace it with --overwrite")
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)  # fail early
    except OSError as error:
        if error.errno not in PATH_ERRNOS:
            raise
        raise UserError(f"{out} cannot be written: {error.strerror}; choose another --out") from None
    return paths


def _unique_name(files: Sequence[str], number: int) -> str:
    """Return the name of a file without its suffix, with a number if an earlier file has the same name."""
    stem = Path(files[number]).stem
    earlier = sum(Path(file).stem == stem for file in files[:number])
    return f"{stem}_{earlier + 1}" if earlier else stem


def write(path: str | Path, panels_KTHWC: np.ndarray, fps: float) -> None:
    """Write panels of :func:`draw` atomically: classes side by side in a video, below each other in a PNG.

    Args:
        path: ends in .mp4 or .webp (videos), or .png (a strip of at most 8 evenly spaced frames).
        fps: frames per second of a video.

    Raises:
        UserError: the suffix is another one, or the file cannot be written.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    if suffix == ".mp4":
        encode(path, np.concatenate(list(panels_KTHWC), axis=2), Fraction(fps).limit_denominator(1001))
    elif suffix in SUFFIXES:
        with atomic_write(path) as file:
            file.write(webp(panels_KTHWC, fps) if suffix == ".webp" else _strip(panels_KTHWC))
    else:
        raise UserError(f"{path}: cannot write {suffix or 'a file without a suffix'}; use {', '.join(SUFFIXES)}")


def webp(panels_KTHWC: np.ndarray, fps: float) -> bytes:
    """Return panels of :func:`draw` as an animated WebP that repeats."""
    images = [Image.fromarray(frame) for frame in np.concatenate(list(panels_KTHWC), axis=2)]
    options = {"save_all": True, "append_images": images[1:], "duration": round(1000 / fps), "loop": 0, "quality": 75}
    buffer = io.BytesIO()
    images[0].save(buffer, "WEBP", **options)
    return buffer.getvalue()


def _strip(panels_KTHWC: np.ndarray) -> bytes:
    length = panels_KTHWC.shape[1]
    chosen = np.unique(np.linspace(0, length - 1, STRIP_FRAMES).round().astype(int))
    rows = [np.concatenate(list(row), axis=1) for row in panels_KTHWC[:, chosen]]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "PNG")
    return buffer.getvalue()


def frame_rate(times: np.ndarray | None) -> float:
    """Return the frames per second for frames at some times, between 2 and 60; 8 if the times are unknown."""
    if times is None or len(times) < 2:
        return 8.0
    return float(np.clip(1 / np.median(np.diff(times)), 2, 60))


def _font(text: str) -> ImageFont.FreeTypeFont:
    """Return the first font that has all characters of a text, or else matplotlib's."""
    installed = font_manager.get_font_names()
    names = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    files = [font_manager.findfont(name) for name in names]
    complete = (file for file in files if FT2Font(file).get_charmap().keys() >= set(map(ord, text)))
    return ImageFont.truetype(next(complete, files[0]), 13)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return the text, or as much of it as fits in a width, with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "\N{HORIZONTAL ELLIPSIS}") > width:
        text = text[:-1]
    return text + "\N{HORIZONTAL ELLIPSIS}"
