"""Miniatures of public datasets, as they are unpacked, through ``tools/train_net.py`` and ``tools/test_net.py``.

The scripts run in this process: five datasets would else import torch ten times.
"""

import json
import runpy
import shutil

import pytest

from .conftest import REPOSITORY

SMALL = [
    "model.name=resnet3d_rs_26",
    "model.width=0.125",
    "data.num_frames=4",
    "data.train_size=32",
    "data.short_side=36",
    "data.test_size=32",
    "data.workers=0",
    "data.val_fraction=0.3",
    "train.max_steps=1",
    "train.batch_size=4",
    "train.micro_batch=4",
    "train.threads=1",
    "train.device=cpu",
    "test.clips=2",
    "test.crops=1",
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video):
    """One real file of each of the formats, by suffix."""
    folder = tmp_path_factory.mktemp("formats")
    formats = {".avi": "mpeg4", ".webm": "libvpx-vp9", ".mp4": "libx264"}
    return {suffix: make_video(folder / f"a{suffix}", 12, 48, 64, codec=codec) for suffix, codec in formats.items()}


@pytest.fixture
def place(tmp_path, videos):
    """A function that puts videos at paths below a folder."""

    def put(*names):
        for name in names:
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(videos[path.suffix], path)

    return put


@pytest.fixture
def write(tmp_path):
    """A function that writes a text file below that folder."""

    def write(name, *lines):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))

    return write


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that trains one step and tests; returns what was printed and the metrics of the test."""

    def script(name, *arguments):
        monkeypatch.setattr("sys.argv", [str(REPOSITORY / "tools" / name), *arguments])
        monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(REPOSITORY / "tools" / name), run_name="__main__")
        captured = capsys.readouterr()
        return done.value.code, captured.out, captured.err

    def run(config, *overrides):
        arguments = ["--cfg", config, f"data.root={tmp_path / 'data'}", f"out={tmp_path / 'run'}", *SMALL, *overrides]
        printed = ""
        for name in ("train_net.py", "test_net.py"):
            code, out, errors = script(name, *arguments)
            assert code == 0, errors
            printed += out
        (metrics,) = (tmp_path / "run").glob("*/metrics.json")
        return printed, json.loads(metrics.read_text())

    run.script = script
    return run


def test_ucf101(place, write, run):
    classes = ("YoYo", "Archery")
    names = [
        f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi" for name in classes for group in range(1, 6) for clip in (1, 2)
    ]
    place(*(f"UCF-101/{name}" for name in names))
    write("ucfTrainTestlist/classInd.txt", "1 YoYo", "2 Archery")
    write("ucfTrainTestlist/trainlist01.txt", "YoYo/gone.avi 1")
    write("ucfTrainTestlist/trainlist02.txt", *(f"{n} {1 + (n[0] == 'A')}" for n in names if "g05" not in n))
    write("ucfTrainTestlist/testlist02.txt", *(name for name in names if "g05" in name))
    printed, metrics = run("ucf101_rs50", "data.fold=2")
    assert "train: 12 files, 2 classes" in printed and "val: 4 files" in printed
    assert metrics["num_scored"] == 4


def test_hmdb51(place, write, run):
    for name in ("brush_hair", "wave"):
        clips = [f"Film_{film}_{name}_u_nm_np1_ba_goo_{i}.avi" for film in range(5) for i in range(2)]
        place(*(f"{name}/{clip}" for clip in clips))
        lines = (f"{clip} {2 if 'Film_0' in clip else 1} " for clip in clips)
        write(f"testTrainMulti_7030_splits/{name}_test_split1.txt", *lines)
    printed, metrics = run("hmdb51_rs50")
    assert "train: 12 files, 2 classes" in printed and "val: 4 files" in printed
    assert metrics["num_scored"] == 4


def test_something_something(place, write, run):
    names = ("Holding something", "Pushing something")
    write("labels/labels.json", json.dumps({name: str(i) for i, name in enumerate(names)}))
    for split, numbers in (("train", range(6)), ("validation", range(10, 13))):
        place(*(f"20bn-something-something-v2/{i}.webm" for i in numbers))
        entries = [{"id": str(i), "template": names[i % 2].replace("something", "[something]")} for i in numbers]
        write(f"labels/{split}.json", json.dumps(entries))
    printed, metrics = run("ssv2_rs50")
    assert "train: 6 files, 2 classes" in printed and metrics["num_scored"] == 3


def test_diving48(place, write, run):
    write(
        "Diving48_vocab.json", json.dumps([["Back", "15som", "NoTwis", "PIKE"], ["Reverse", "Dive", "NoTwis", "TUCK"]])
    )
    for split, numbers in (("train", range(8)), ("test", range(8, 10))):
        names = {f"{'abcdefghij' + str(i)}_{i:05d}": i % 2 for i in numbers}
        place(*(f"rgb/{name}.mp4" for name in names))
        entries = [{"vid_name": name, "label": label} for name, label in names.items()]
        write(f"Diving48_V2_{split}.json", json.dumps(entries))
    printed, metrics = run("finetune_rs50", "data.flip=0")
    assert "train: 6 files, 2 classes" in printed and metrics["num_scored"] == 2


def test_charades(place, write, run, tmp_path):
    header = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"
    write("Charades_v1_classes.txt", "c000 Holding some clothes", "c001 Putting clothes somewhere")
    for split, numbers in (("train", range(8)), ("test", range(8, 11))):
        actions = ["", "c000 1.00 2.00", "c001 0.00 9.00;c000 1.00 2.00"]
        rows = [f'V{i:04d},S,Kitchen,6,7,Yes,"A, B",cup,C.,{actions[i % 3]},20.0' for i in numbers]
        place(*(f"Charades_v1_480/V{i:04d}.mp4" for i in numbers))
        write(f"Charades_v1_{split}.csv", header, *rows)
    code, _, errors = run.script("train_net.py", "--cfg", "finetune_rs50", f"data.root={tmp_path / 'data'}", *SMALL)
    assert code == 2 and "data.multi_label=true" in errors and errors.count("\n") == 1
    printed, metrics = run("charades_rs50")
    assert "2 classes" in printed and metrics["num_scored"] == 3 and "map" in metrics


def test_kinetics(place, write, run):
    for split in ("train", "validate"):
        rows = [
            f"{name},{name[0]}bcdefghi-{split[0]}{i},{i},{i + 10},{split}"
            for name in ("abseiling", "zumba")
            for i in range(3)
        ]
        place(*(f"{split}/{n}bcdefghi-{split[0]}{i}_{i:06d}_{i + 10:06d}.mp4" for n in "az" for i in range(3)))
        write(f"annotations/{split}.csv", "label,youtube_id,time_start,time_end,split", *rows)
    lists = [f"data.{key}=annotations/{name}.csv" for key, name in (("train", "train"), ("val", "validate"))]
    printed, metrics = run("k700_rs50", *lists)
    assert "train: 6 files, 2 classes" in printed and metrics["num_scored"] == 6


def test_a_csv_with_sources(place, write, run):
    names = [f"{c}/{i}.mp4" for c in "ab" for i in range(6)]
    place(*names)
    write("train.csv", "path,label,source", *(f"{name},{name[0]},{name[0]}{int(name[2]) // 2}" for name in names))
    printed, metrics = run("finetune_rs50")
    assert "train: 8 files, 2 classes" in printed and metrics["num_scored"] == 4


def test_a_bad_line_is_one_line(place, write, run, tmp_path):
    place("UCF-101/YoYo/v_YoYo_g01_c01.avi")
    write("ucfTrainTestlist/classInd.txt", "1 YoYo", "Archery 2")
    write("ucfTrainTestlist/trainlist01.txt", "YoYo/v_YoYo_g01_c01.avi 1")
    code, _, errors = run.script("train_net.py", "--cfg", "ucf101_rs50", f"data.root={tmp_path / 'data'}", *SMALL)
    assert code == 2 and errors.count("\n") == 1
    assert "classInd.txt:2: expected '2 ClassName'; found 'Archery 2'" in errors
