"""Draw activation maps over their frames, as videos and pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from video_rs.data.tools.motion import encode
from video_rs.errors import UserError, printable
from video_rs.evaluation.plots import FALLBACK_FONTS
from video_rs.files import atomic_write
from video_rs.inference.explain import Explanation

SUFFIXES = (".mp4", ".webp", ".png")
MIN_SIDE = 224  # smaller frames are enlarged, for the text
BAND = 26  # pixels above each frame, for the text
OPACITY = 0.6  # of the colour, where a map is 1
STRIP_FRAMES = 8  # of a PNG, or a picture in a report


def draw(explanations: Sequence[Explanation]) -> np.ndarray:
    """Draw K explanations of the same frames, with class, probability and time above each frame.

    The opacity of the colour is proportional to the map, so the rest of a frame stays as it is.

    Returns:
        uint8 ``[K, T, H, W, 3]``; H and W are even.
    """
    return np.stack([np.stack(list(_panels(explanation))) for explanation in explanations])


def _panels(found: Explanation) -> Iterator[np.ndarray]:
    side = max(MIN_SIDE, found.frames.shape[1] + found.frames.shape[1] % 2)
    colormap, label = matplotlib.colormaps["turbo"], f"{found.score:.1%}  {printable(found.label)}"
    font = _font(label)
    times = [""] * len(found.frames) if found.times is None else [f" {time:.2f} s" for time in found.times]
    for frame, cam, time in zip(found.frames, found.maps, times):
        pixels = np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC))
        alpha = np.asarray(Image.fromarray(cam).resize((side, side), Image.Resampling.BILINEAR))
        color, weight = 255 * colormap(alpha)[..., :3], OPACITY * alpha[..., None]
        panel = Image.new("RGB", (side, side + BAND))
        panel.paste(Image.fromarray(((1 - weight) * pixels + weight * color).astype(np.uint8)), (0, BAND))
        drawing = ImageDraw.Draw(panel)
        drawing.text((4, BAND // 2), label, fill="white", font=font, anchor="lm")
        drawing.rectangle((side - 4 - font.getlength(time), 0, side, BAND - 1), fill="black")  # over a long name
        drawing.text((side - 4, BAND // 2), time, fill="#9ca3af", font=font, anchor="rm")
        yield np.asarray(panel)


def write(path: str | Path, panels_KTHWC: np.ndarray, fps: float) -> None:
    """Write panels of :func:`draw` atomically: classes side by side in a video, below each other in a PNG.

    Args:
        path: ends in .mp4 or .webp (videos), or .png (a strip of at most 8 evenly spaced frames).
        fps: frames per second of a video.

    Raises:
        UserError: the suffix is another one, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".mp4":
        encode(Path(path), np.concatenate([*panels_KTHWC], axis=2), Fraction(fps).limit_denominator(1001))
        return
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: cannot write {suffix or 'a file without a suffix'}; use {', '.join(SUFFIXES)}")
    with atomic_write(path) as file:
        if suffix == ".webp":
            file.write(webp(panels_KTHWC, fps))
        else:
            rows = [np.concatenate([*row], axis=1) for row in panels_KTHWC[:, even_frames(panels_KTHWC.shape[1])]]
            Image.fromarray(np.concatenate(rows)).save(file, "PNG")


def webp(panels_KTHWC: np.ndarray, fps: float) -> bytes:
    """Return panels of :func:`draw` as an animated WebP that repeats."""
    images = [Image.fromarray(frame) for frame in np.concatenate([*panels_KTHWC], axis=2)]
    options = {"save_all": True, "append_images": images[1:], "duration": round(1000 / fps), "loop": 0, "quality": 50}
    buffer = io.BytesIO()
    images[0].save(buffer, "WEBP", **options)
    return buffer.getvalue()


def even_frames(length: int) -> np.ndarray:
    """Return the numbers of at most 8 evenly spaced frames."""
    return np.unique(np.linspace(0, length - 1, STRIP_FRAMES).round().astype(int))


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
