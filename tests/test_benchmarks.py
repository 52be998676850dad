"""The benchmarks run and say all that they promise; how fast anything is, is not tested."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
WAYS = ["bare decode", "video_rs, pyav", "video_rs, decord", "video_rs, auto", "video_rs, pyav, index"]
WAYS += ["video_rs, decord, index", "decord, whole frames", "PyTorchVideo, pyav", "PyTorchVideo, decord"]
TINY = ["--workers", "1", "--clips", "2", "--rounds", "1", "--batch", "2", "--frames", "4", "--size", "32"]


def benchmark(name, *arguments, **environment):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def video(make_video, tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("benchmarks") / "clip.mp4", num_frames=30)


def rows(text):
    """{first cell: the other cells} of all rows of the Markdown tables, in a list by table."""
    tables = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif tables[-1]:
            tables.append([])
    return [{first: rest for first, *rest in table[2:]} for table in tables if table]


@pytest.mark.slow
def test_data_loading(video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    files = [video, tmp_path / "broken.mp4"]
    result = benchmark("data_loading", "--videos", *files, *TINY, "--stages", "--soak", 40, "--out", out)
    assert result.returncode == 0, result.stderr
    assert f"left out {tmp_path}/broken.mp4" in result.stderr
    published, reencoded, steps, memory = rows(result.stdout)
    assert list(published) == list(reencoded) == WAYS
    assert all(float(cell) > 0 for row in (*published.values(), *reencoded.values()) for cell in row)
    assert published["bare decode"][3] == reencoded["bare decode"][3] == "1.00"
    assert list(steps) == [
        "open, packets",
        "decode",
        "crop, RGB",
        "resize",
        "flip",
        "into the batch",
        "transport",
        "all",
    ]
    whole = [float(cell) for cell in steps.pop("all")]
    assert [sum(float(row[column]) for row in steps.values()) for column in range(4)] == pytest.approx(whole, abs=0.5)
    assert list(memory) == ["pyav", "auto"] and len(memory["pyav"]) == 11
    assert (out / "data_loading.md").read_text().endswith(result.stdout.partition("\n\nwritten")[0].strip() + "\n")
    summary = json.loads((out / "data_loading.json").read_text())["summary"]
    assert list(summary["re-encoded"]) == WAYS
    assert (out / "data_loading.png").stat().st_size > 10_000


def test_prepare(video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    files = [video, tmp_path / "broken.mp4"]
    small = ["--short-side", 64, "--frames", 4, "--size", 32, "--rounds", 1]
    result = benchmark("prepare", "--videos", *files, *small, "--out", tmp_path)
    assert result.returncode == 0 and f"left out {tmp_path}/broken.mp4" in result.stderr, result.stderr
    (figures,) = rows(result.stdout)
    assert list(figures) == ["MB", "ms a clip, pyav", "ms a clip, decord"]
    assert all(float(cell) > 0 for row in list(figures.values())[1:] for cell in row)
    assert float(re.search(r"PSNR ([\d.]+) dB", result.stdout)[1]) > 25
    assert (tmp_path / "prepare.md").read_text().endswith(result.stdout)


def test_multiview(video):
    result = benchmark("multiview", "--video", video, "--clips", 2, "--frames", 4, "--size", 48, "--rounds", 1)
    assert result.returncode == 0, result.stderr
    assert "6 views (2 clips x 3 crops of 48 pixels)" in result.stdout
    assert [line.split("|")[2].strip() for line in result.stdout.splitlines() if "clip.mp4" in line] == [
        "pyav",
        "decord",
    ]
    assert "pixels of the three ways: identical" in result.stdout


def test_multiview_knows_wrong_pixels(video, tmp_path):
    """A clip that is one frame off is seen: every second read is, here."""
    (tmp_path / "sitecustomize.py").write_text(
        "import itertools, video_rs.data.decode as decode\n"
        "read, off = decode.Video.read, itertools.cycle([0, 1])\n"
        "decode.Video.read = lambda self, indices, **options: read(self, indices + next(off), **options)\n"
    )
    small = ["--clips", 1, "--frames", 4, "--size", 48, "--rounds", 1]
    result = benchmark("multiview", "--video", video, *small, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1, result.stderr
    assert "pixels of the three ways: DIFFERENT" in result.stdout


@pytest.mark.slow
def test_memory_of_a_long_video(video):
    small = ["--clips", 2, "--frames", 4, "--size", 48, "--rounds", 1]
    result = benchmark("multiview", "--video", video, *small, "--hour", "0.01")
    assert result.returncode == 0, result.stderr
    memory = rows(result.stdout)[1]
    assert list(memory) == ["6 views, pyav", "6 views, decord", "predict_windows"]
    assert all(float(before) < float(peak) for before, peak, _ in memory.values())


@pytest.mark.parametrize(
    "name, arguments, error",
    [
        ("data_loading", [], "the following arguments are required: --videos"),
        ("data_loading", ["--videos", "no/such.mp4"], "no/such.mp4: no such file or folder"),
        ("multiview", ["--video", "{empty}"], "{empty}: no videos in this folder"),
        ("multiview", ["--video", "x.mp4", "--hour", "0"], "'0' is not between 0.01 and 10 hours"),
    ],
)
def test_bad_input_is_one_line(tmp_path, name, arguments, error):
    result = benchmark(name, *(argument.format(empty=tmp_path) for argument in arguments))
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(f"error: .*{re.escape(error.format(empty=tmp_path))}.*\n", result.stderr)


def test_rows_of_missing_packages_are_left_out(video, tmp_path):
    (tmp_path / "decord.py").write_text("raise ImportError('gone')")
    small = ["--clips", 2, "--frames", 4, "--size", 48, "--rounds", 1]
    result = benchmark("multiview", "--video", video, *small, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stderr == "no row for decord: decord is not installed (gone)\n"
    assert "pyav" in result.stdout and "| decord" not in result.stdout.replace(" ", "").replace("|decoder", "")
