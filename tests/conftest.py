"""Fixtures shared by all tests: small real videos, and the optional folder of recorded ones."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tests import commands, corpus

settings.register_profile("video_rs", deadline=None)  # how long an example takes says what else the machine does
settings.load_profile("video_rs")


def pytest_collection_finish() -> None:
    """Exclude the modules that are loaded by now from garbage collection, which would take half a second each time."""
    gc.freeze()


GRID = 4  # frame i shows the bits of i as a GRID x GRID board of dark and bright squares


def number_frame(number: int, height: int, width: int) -> np.ndarray:
    """``[height, width, 3]`` uint8 that shows `number` (below 2**16) and survives compression and scaling."""
    bits = (number >> np.arange(GRID * GRID)) & 1
    board = np.where(bits, 215, 40).astype(np.uint8).reshape(GRID, GRID)
    rows, columns = np.arange(height) * GRID // height, np.arange(width) * GRID // width
    return np.repeat(board[rows][:, columns, None], 3, axis=2)


def read_numbers(clip_THWC) -> list[int]:
    """The frame numbers of whole, upright frames written by `make_video`, at any size."""
    clip = np.asarray(clip_THWC)
    height, width = clip.shape[1:3]
    rows = (2 * np.arange(GRID) + 1) * height // (2 * GRID)
    columns = (2 * np.arange(GRID) + 1) * width // (2 * GRID)
    bits = clip[:, rows][:, :, columns].mean(-1).reshape(len(clip), -1) > 128
    return [int(n) for n in bits @ (1 << np.arange(GRID * GRID))]


def write_video(path, *args, frames: np.ndarray | None = None, **options) -> Path:
    """Put the video that `encode_video` makes of the same arguments at `path`; equal ones are encoded once in a run."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = (args, sorted(options.items()), frames)
    return corpus.copy(lambda file: encode_video(file, *args, frames=frames, **options), path, *parts)


def encode_video(
    path,
    num_frames: int = 40,
    height: int = 64,
    width: int = 96,
    fps: int | Fraction = 25,
    *,
    first_number: int = 0,
    codec: str = "libx264",
    gop: int = 12,
    options: dict[str, str] | None = None,
    frames: np.ndarray | None = None,
    rotation: int = 0,
) -> None:
    """Write a real video file; frame i shows the number ``first_number + i``.

    Args:
        path: its suffix chooses the container.
        gop: frames from one keyframe to the next.
        options: of the encoder; H.264 B-frames are on by default.
        frames: ``[num_frames, height, width, 3]`` uint8, instead of the numbered ones.
        rotation: of the display, in degrees, as PyAV's ``set_display_rotation`` takes it.
    """
    import av

    if frames is not None:
        num_frames, height, width = frames.shape[:3]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.options = options or {}
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(num_frames):
            pixels = number_frame(first_number + i, height, width) if frames is None else frames[i]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session", autouse=True)
def _corpus(tmp_path_factory) -> None:
    """One folder of encoded videos for all workers of the run."""
    base = tmp_path_factory.getbasetemp()
    corpus.set_folder((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "corpus")


@pytest.fixture(autouse=True)
def _end_processes() -> Iterator[None]:
    """What a test has started does not outlive it."""
    yield
    commands.end_started()


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """`write_video` above."""
    return write_video


@pytest.fixture(scope="session")
def frame_numbers() -> Callable[..., list[int]]:
    """`read_numbers` above."""
    return read_numbers


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of recorded videos and fixtures named by ``VIDEO_RS_TEST_ASSETS``; without it the test is skipped."""
    folder = os.environ.get("VIDEO_RS_TEST_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("VIDEO_RS_TEST_ASSETS is not set")
    return Path(folder)


@pytest.fixture
def one_thread() -> None:
    """Networks this small only wait for more; and the same random weights every time."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


def same(state, expected) -> bool:
    """Whether two state dicts hold the same names, in any order, and the same bits."""
    import torch

    if state.keys() != expected.keys():
        return False
    return all(state[name].dtype == value.dtype and torch.equal(state[name], value) for name, value in expected.items())
