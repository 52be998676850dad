"""The benchmarks run and say all that they promise; how fast anything is, is not tested."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
WAYS = ["bare decode", "video_rs, pyav", "video_rs, decord", "video_rs, pyav, index"]
WAYS += ["video_rs, decord, index", "decord, whole frames", "PyTorchVideo, pyav", "PyTorchVideo, decord"]
FEATURES = ("features, 0", "features, 1")
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


@pytest.mark.exhaustive
def test_data_loading(video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    files = [video, tmp_path / "broken.mp4"]
    result = benchmark("data_loading", "--videos", *files, *TINY, "--stages", "--soak", 40, "--out", out)
    assert result.returncode == 0, result.stderr
    assert f"skipped {tmp_path}/broken.mp4" in result.stderr
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
    assert list(memory) == ["pyav", "decord"] and len(memory["pyav"]) == 11
    assert (out / "data_loading.md").read_text().endswith(result.stdout.partition("\n\nwritten")[0].strip() + "\n")
    summary = json.loads((out / "data_loading.json").read_text())["summary"]
    assert list(summary["re-encoded"]) == WAYS
    assert (out / "data_loading.png").stat().st_size > 10_000


@pytest.mark.exhaustive
def test_data_loading_of_a_prepared_dataset(make_video, tmp_path):
    for n, name in enumerate(("a/0.mkv", "a/1.mp4", "b/0.avi", "b/1.mp4")):
        make_video(tmp_path / "data" / name, 20, 96, 128, first_number=100 * n, codec=("libx264", "mpeg4")[n == 2])
    command = [sys.executable, BENCHMARKS.parent / "tools/prepare_dataset.py", "--cfg", "motion_rs.yaml"]
    out = tmp_path / "out"
    subprocess.run([*command, f"data.root={tmp_path}/data", "--out", out, "--short-side", "64"], check=True)
    (out / "videos/a/1.mp4").unlink()
    tiny = [*TINY, "--clips", "4"]
    ways = ["bare decode", "video_rs, pyav"]
    result = benchmark("data_loading", "--videos", tmp_path / "data", "--prepared", out, *tiny, "--ways", ways[1])
    assert result.returncode == 0, result.stderr
    assert f"skipped {tmp_path}/data/a/1.mp4: there is no copy of it in {out}/videos" in result.stderr
    size = sum(file.stat().st_size for file in out.rglob("*.mp4")) / 1e6
    assert "3 files, " in result.stdout and f"; re-encoded {size:.1f} MB" in result.stdout
    assert [list(table) for table in rows(result.stdout)] == [ways, ways]


@pytest.mark.exhaustive
def test_prepare(video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    files = [video, tmp_path / "broken.mp4"]
    small = ["--short-side", 64, "--frames", 4, "--size", 32, "--rounds", 1]
    result = benchmark("prepare", "--videos", *files, *small, "--out", tmp_path)
    assert result.returncode == 0 and f"skipped {tmp_path}/broken.mp4" in result.stderr, result.stderr
    (figures,) = rows(result.stdout)
    assert list(figures) == ["MB", "ms a clip, pyav", "ms a clip, decord"]
    assert all(float(cell) > 0 for row in list(figures.values())[1:] for cell in row)
    assert float(re.search(r"PSNR ([\d.]+) dB", result.stdout)[1]) > 25
    assert (tmp_path / "prepare.md").read_text().endswith(result.stdout)


@pytest.mark.exhaustive
def test_multiview(video):
    result = benchmark("multiview", "--video", video, "--clips", 2, "--frames", 4, "--size", 48, "--rounds", 1)
    assert result.returncode == 0, result.stderr
    assert "6 views (2 clips x 3 crops of 48 pixels)" in result.stdout
    assert [line.split("|")[2].strip() for line in result.stdout.splitlines() if "clip.mp4" in line] == [
        "pyav",
        "decord",
    ]
    assert "pixels of the three ways: identical" in result.stdout


@pytest.mark.exhaustive
def test_multiview_knows_wrong_pixels(video, tmp_path):
    """A clip that is one frame off is seen: every second read is, here."""
    (tmp_path / "sitecustomize.py").write_text(
        "import itertools, video_rs.data.video.decode as decode\n"
        "read, off = decode.Video.read, itertools.cycle([0, 1])\n"
        "decode.Video.read = lambda self, indices, **options: read(self, indices + next(off), **options)\n"
    )
    small = ["--clips", 1, "--frames", 4, "--size", 48, "--rounds", 1]
    result = benchmark("multiview", "--video", video, *small, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1, result.stderr
    assert "pixels of the three ways: DIFFERENT" in result.stdout


@pytest.mark.exhaustive
def test_memory_of_a_long_video(video):
    small = ["--clips", 2, "--frames", 4, "--size", 48, "--rounds", 1]
    result = benchmark("multiview", "--video", video, *small, "--hour", "0.01")
    assert result.returncode == 0, result.stderr
    memory = rows(result.stdout)[1]
    assert list(memory) == ["6 views, pyav", "6 views, decord", "predict_windows"]
    assert all(float(before) < float(peak) for before, peak, _ in memory.values())


@pytest.mark.exhaustive
def test_checkpointing(tmp_path):
    small = ["--frames", 2, "--size", 32, "--batch", 2, "--every", 1, "--rounds", 1, "--device", "cpu"]
    result = benchmark("checkpointing", *small)
    assert result.returncode == 0, result.stderr
    ways = [line.split("|")[1].strip() for line in result.stdout.splitlines() if line.startswith("|")][2:]
    assert ways == ["none", "in the background", "synchronous"]
    assert "a checkpoint of" in result.stdout and "write and fsync of as many zeros" in result.stdout


@pytest.mark.exhaustive
def test_pixel_format(video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    small = ["--clips", 2, "--frames", 4, "--size", 32]
    result = benchmark("pixel_format", "--videos", video, tmp_path / "broken.mp4", *small)
    assert result.returncode == 0 and f"left out {tmp_path}/broken.mp4" in result.stderr, result.stderr
    (ways,) = rows(result.stdout)
    assert list(ways) == ["decode", "RGB of the crop", "YUV of the crop", "YUV of the frame"]
    assert ways["RGB of the crop"][2] == "+0.0 %"
    assert float(ways["YUV of the crop"][1]) <= float(ways["YUV of the frame"][1])


@pytest.mark.exhaustive
def test_train_step():
    small = ["--model", "resnet3d_rs_26", "--frames", 2, "--size", 32, "--rounds", 1, "--seconds", 0.01]
    result = benchmark("train_step", *small, "--batch", 2, 4, "--stages", "--routes", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    ways, batches, stages, routes = rows(result.stdout)
    assert list(ways) == ["video_rs", "video_rs, conv3d", "video_rs, trainer", "PyTorchVideo slow_r50"]
    assert ways["PyTorchVideo slow_r50"][-1] == "1.00" and ways["video_rs"][0] == ways["video_rs, conv3d"][0]
    assert list(batches) == ["2", "4"] and all(float(row[0]) > 100 for row in batches.values())
    assert list(stages) == ["stem", "stage 1", "stage 2", "stage 3", "stage 4"]
    assert sum(float(row[0]) for row in stages.values()) == pytest.approx(float(ways["video_rs"][0]), abs=0.3)
    assert "3x1x1, 512 to 256" in routes and not any(name.startswith("5x") for name in routes)


@pytest.mark.exhaustive
def test_end_to_end():
    small = ["model.width=0.125", "data.num_frames=2", "data.train_size=32", "data.workers=1", "train.batch_size=4"]
    result = benchmark("end_to_end", "--steps", 2, "--rounds", 1, *small, "train.micro_batch=2", "train.device=cpu")
    assert result.returncode == 0, result.stderr
    (table,) = rows(result.stdout)
    assert list(table) == ["loader", "steps", "training"]
    assert min(float(table["loader"][1]), float(table["steps"][1])) == 1
    assert result.stdout.splitlines()[-1] in ("the loader is the limit", "the steps are the limit")


@pytest.mark.exhaustive
def test_features(video):
    small = ["--rounds", 1, "--views", 2, "--model", "timm/test_resnet", "data.test_size=32", "data.short_side=32"]
    result = benchmark("features", video, *small)
    assert result.returncode == 0, result.stderr
    (parts,) = rows(result.stdout)
    assert list(parts) == ["decoding", "forward", *(f"{way} workers" for way in FEATURES), "plain loop, 1 workers"]
    assert float(parts["decoding"][3]) + float(parts["forward"][3]) == pytest.approx(1, abs=0.01)
    result = benchmark("features", "--tiny", 20, "--rounds", 1)
    assert result.returncode == 0, result.stderr
    for way in FEATURES:
        assert re.search(f"\n{way} workers: -?[0-9.]+ ms a file above decoding and forward\n", result.stdout)
    assert re.search("\nmemory after 2 files [0-9]+ MB, after 20 files [0-9]+ MB\n", result.stdout)


@pytest.mark.parametrize(
    "name, arguments, error",
    [
        ("data_loading", [], "the following arguments are required: --videos"),
        ("data_loading", ["--videos", "no/such.mp4"], "no/such.mp4: no such file or folder"),
        ("data_loading", ["--videos", "x.mp4", "--prepared", "{empty}/out"], "{empty}/out: no videos folder in it"),
        ("features", [], "features.py: give videos, or --tiny"),
        ("multiview", ["--video", "{empty}"], "{empty}: no videos in this folder"),
        ("multiview", ["--video", "x.mp4", "--hour", "0"], "'0' is not between 0.01 and 10 hours"),
    ],
)
def test_bad_input_is_one_line(tmp_path, name, arguments, error):
    arguments = [argument.format(empty=tmp_path) for argument in arguments]
    result = commands.script(f"benchmarks/{name}.py", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(f"error: .*{re.escape(error.format(empty=tmp_path))}.*\n", result.stderr)


@pytest.mark.exhaustive
def test_rows_of_missing_packages_are_left_out(video, tmp_path):
    (tmp_path / "decord.py").write_text("raise ImportError('gone')")
    small = ["--clips", 2, "--frames", 4, "--size", 48, "--rounds", 1]
    result = benchmark("multiview", "--video", video, *small, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stderr == "no row for decord: decord is not installed (gone)\n"
    assert "pyav" in result.stdout and "| decord" not in result.stdout.replace(" ", "").replace("|decoder", "")


@pytest.mark.exhaustive
def test_real_clips(make_video, tmp_path):
    """Two-second clips that differ, in a folder for each video, none across the end of its five-second source."""
    import csv

    from video_rs.data.video.decode import probe

    videos = [make_video(tmp_path / f"{name}.mp4", num_frames=140, height=96, width=128) for name in ("one", "two")]
    short, out = make_video(tmp_path / "short.mp4", num_frames=20), tmp_path / "out"
    result = benchmark("real_clips", *videos, short, out, "--clips", 8)
    assert result.returncode == 0, result.stderr
    assert result.stderr.strip() == f"left out: {short}: shorter than 2 seconds"
    with open(out / "clips.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["one", "two"] * 4
    assert {row["source"] for row in rows} <= {"one_000", "two_000"}  # the last 0.6 s are too short for a clip
    assert len({(out / row["path"]).read_bytes() for row in rows}) == 8
    assert {probe(out / row["path"]).duration for row in rows} == {2.0}
    assert benchmark("real_clips", videos[0], out).returncode == 2  # never into a folder that is there
