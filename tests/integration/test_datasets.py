"""Miniatures of public datasets in ``tools/train_net.py`` and ``tools/test_net.py``."""

import csv
import json
import shutil

import pytest
from PIL import Image

from video_rs.data.video.decode import read_frames

from .conftest import tool

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
    """One real video of each format, by suffix."""
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
def run(tmp_path):
    """A function that trains one step and tests; returns what was printed and the metrics of the test."""

    def script(name, *arguments):
        done = tool(name, *arguments)
        return done.returncode, done.stdout, done.stderr

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
    assert "train          12 files, 2 classes" in printed and "val            4 files" in printed
    assert metrics["num_scored"] == 4


def test_hmdb51(place, write, run):
    for name in ("brush_hair", "wave"):
        clips = [f"Film_{film}_{name}_u_nm_np1_ba_goo_{i}.avi" for film in range(5) for i in range(2)]
        place(*(f"{name}/{clip}" for clip in clips))
        lines = (f"{clip} {2 if 'Film_0' in clip else 1} " for clip in clips)
        write(f"testTrainMulti_7030_splits/{name}_test_split1.txt", *lines)
    printed, metrics = run("hmdb51_rs50")
    assert "train          12 files, 2 classes" in printed and "val            4 files" in printed
    assert metrics["num_scored"] == 4


def test_something_something(place, write, run):
    names = ("Holding something", "Pushing something")
    write("labels/labels.json", json.dumps({name: str(i) for i, name in enumerate(names)}))
    for split, numbers in (("train", range(6)), ("validation", range(10, 13))):
        place(*(f"20bn-something-something-v2/{i}.webm" for i in numbers))
        entries = [{"id": str(i), "template": names[i % 2].replace("something", "[something]")} for i in numbers]
        write(f"labels/{split}.json", json.dumps(entries))
    printed, metrics = run("ssv2_rs50")
    assert "train          6 files, 2 classes" in printed and metrics["num_scored"] == 3


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
    assert "train          6 files, 2 classes" in printed and metrics["num_scored"] == 2


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
    assert "train          6 files, 2 classes" in printed and metrics["num_scored"] == 6


def test_a_csv_with_sources(place, write, run):
    names = [f"{c}/{i}.mp4" for c in "ab" for i in range(6)]
    place(*names)
    write("train.csv", "path,label,source", *(f"{name},{name[0]},{name[0]}{int(name[2]) // 2}" for name in names))
    printed, metrics = run("finetune_rs50")
    assert "train          8 files, 2 classes" in printed and metrics["num_scored"] == 4


@pytest.fixture
def case(assets, tmp_path, write, make_video):
    """Return a function that copies a recorded list, and writes videos of 2 s and 50 frames for its paths."""

    def copy(name, to):
        text = (assets / "cases" / "lists" / name).read_text()
        write(to, *text.splitlines())
        for path in {row[0] for row in csv.reader(text.splitlines()[1:])}:
            make_video(tmp_path / "data" / path, 50, 48, 64)

    return copy


def test_a_list_of_segments(case, run, tmp_path):
    case("d_se.train.csv", "train.csv")
    printed, metrics = run("finetune_rs50")
    assert "train          12 segments, 2 classes" in printed and metrics["num_scored"] == 6
    arguments = [f"data.root={tmp_path / 'data'}", "data.test=train.csv", *SMALL, "data.stride=1", "test.clips=1"]
    shown = run.script("show_clips.py", "--cfg", "finetune_rs50", "--split=test", "--num=18", "--gif", *arguments)
    frames = [list(map(int, line.split("frames ")[1].split(" to "))) for line in shown[1].splitlines()[1:]]
    assert len(frames) == 18
    for (first, last), segment in zip(frames, [0, 0, 1] * 6, strict=True):
        assert 25 * segment <= first < last < 25 * (segment + 1)


@pytest.mark.parametrize(
    "place",
    [
        "data.csv",
        pytest.param("data.list=all.csv", marks=pytest.mark.slow),
        pytest.param("data.train=all.csv", marks=pytest.mark.slow),
    ],
)
def test_one_list_of_all_splits(place, case, run):
    case("d_sp.data.csv", place.split("=")[-1])
    printed, metrics = run("finetune_rs50", *([place] if "=" in place else []))
    assert "train          6 files, 2 classes" in printed and "val            2 files, 2 classes" in printed
    assert metrics["num_scored"] == 4


def test_a_list_written_by_csv_writer(case, run):
    case("d_q2.train.csv", "train.csv")
    printed, metrics = run("finetune_rs50", "data.val=train.csv")
    assert "train          4 files, 2 classes" in printed and metrics["num_scored"] == 4
    assert sorted(row["name"] for row in metrics["per_class"]) == ['run "fast"', "sit, down"]


@pytest.fixture
def extract(tmp_path, videos):
    """A function that makes folders of frames below that folder, of JPEGs numbered from 1."""

    def extract(*names):
        frames = [Image.fromarray(frame.numpy()) for frame in read_frames(videos[".mp4"], range(12))]
        for name in names:
            (tmp_path / "data" / name).mkdir(parents=True)
            for number, frame in enumerate(frames, 1):
                frame.save(tmp_path / "data" / name / f"img_{number:05d}.jpg")

    return extract


def test_class_folders_of_folders_of_frames(extract, run, tmp_path):
    extract(*(f"{c}/{c}{i}" for c in ("run", "jump") for i in range(5)))
    printed, metrics = run("finetune_rs50", "data.frame_folders=true")
    assert "train          6 files, 2 classes" in printed and metrics["num_scored"] == 4
    code, _, errors = run.script("train_net.py", "--cfg", "finetune_rs50", f"data.root={tmp_path / 'data'}", *SMALL)
    assert code == 2 and "set data.frame_folders=true" in errors and errors.count("\n") == 1


@pytest.mark.parametrize("line", [pytest.param("{} {}", marks=pytest.mark.slow), "{} 12 {}"])
def test_lists_of_folders_of_frames(line, extract, write, run, tmp_path):
    names = [f"frames/v_{c}_g{i:02d}_c01" for c in ("Run", "Jump") for i in range(4)]
    extract(*names)
    write("train.txt", *(line.format(name, int("Run" in name)) for name in names if "g00" not in name))
    write("val.txt", *(line.format(name, int("Run" in name)) for name in names if "g00" in name))
    (tmp_path / "data" / names[1] / "img_00005.jpg").write_bytes(b"\xff\xd8 no more")
    (tmp_path / "data" / names[4] / "img_00012.jpg").unlink()
    printed, metrics = run("finetune_rs50", "train.max_steps=3", "data.max_broken=1")
    assert "train          6 files, 2 classes" in printed
    assert metrics["num_scored"] == (1 if "12" in line else 2)  # of 11 frames where 12 are listed
    arguments = ["--cfg", "finetune_rs50", f"data.root={tmp_path / 'data'}", f"out={tmp_path / 'run'}", *SMALL]
    code, out, errors = run.script("check_dataset.py", *arguments, "--workers", "1")
    assert code == 2 and errors.count("\n") == 1 and "codecs: jpeg (8 files)" in out
    with open(tmp_path / "run/check/problems.csv", newline="") as file:
        broken = {row["path"]: row["detail"] for row in csv.DictReader(file) if row["kind"] == "broken"}
    assert "img_00005.jpg: cannot be decoded" in broken.pop(str(tmp_path / "data" / names[1]))
    short = {str(tmp_path / "data" / names[4]): "has 11 images, but 12 frames in its list"}
    assert broken == (short if "12" in line else {})


def test_folders_of_frames_and_videos_are_one_line(extract, place, write, run, tmp_path):
    extract("a")
    place("b.mp4")
    write("train.txt", "a 0", "b.mp4 1")
    code, _, errors = run.script("train_net.py", "--cfg", "finetune_rs50", f"data.root={tmp_path / 'data'}", *SMALL)
    assert code == 2 and "folders of frames and files are mixed" in errors and errors.count("\n") == 1


def images(folder, names):
    """JPEGs in the color modes found in ImageNet; one is a PNG despite its name."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        mode, kind = (("RGB", "jpeg"), ("L", "jpeg"), ("CMYK", "jpeg"), ("RGBA", "png"))[number % 4]
        Image.effect_noise((60, 40 + number), 80).convert("RGB").convert(mode).save(folder / name, kind)


IMAGE = ["model.name=resnet_rs_26", "data.num_frames=1"]


@pytest.mark.parametrize("layout", ["folders", "kaggle"])
def test_imagenet(layout, run, write, tmp_path):
    place = tmp_path / "data" / ("" if layout == "folders" else "ILSVRC/Data/CLS-LOC")
    wnids = ("n01440764", "n01443537")
    images(place / "train", (f"{wnid}/{wnid}_{i}.JPEG" for wnid in wnids for i in range(4)))
    val = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in range(1, 6)]
    if layout == "folders":
        images(place / "val", (f"{wnids[i % 2]}/{name}" for i, name in enumerate(val)))
    else:
        images(place / "val", val)
        images(place / "test", ["ILSVRC2012_test_00000001.JPEG"])
        rows = (f"{name.removesuffix('.JPEG')},{wnids[i % 2]} 1 2 30 40 " for i, name in enumerate(val))
        write("LOC_val_solution.csv", "ImageId,PredictionString", *rows)
    write("names.txt", "n01440764 tench, Tinca tinca", "n01443537 goldfish, Carassius auratus")
    printed, metrics = run("imagenet_rs50", *IMAGE, f"data.class_names={tmp_path / 'data/names.txt'}")
    assert "train          8 files, 2 classes" in printed and "val            5 files" in printed
    assert metrics["num_scored"] == 5 and not (tmp_path / "run/broken_files.csv").exists()
    code, out, errors = run.script("predict.py", "--weights", str(tmp_path / "run/best.pt"), str(place / "val"))
    assert code == 0 and not errors and out.count("tench, Tinca tinca") == 5


def test_flat_validation_images_are_one_line(run, tmp_path):
    images(tmp_path / "data", ["train/n01440764/0.JPEG", "train/n01443537/0.JPEG", "val/ILSVRC2012_val_00000001.JPEG"])
    arguments = ["--cfg", "imagenet_rs50", f"data.root={tmp_path / 'data'}", *SMALL, *IMAGE]
    code, _, errors = run.script("train_net.py", *arguments)
    assert (
        code == 2
        and errors.count("\n") == 1
        and "set data.val=LIST, or put LOC_val_solution.csv into data.root" in errors
    )


def test_a_bad_line_is_one_line(place, write, run, tmp_path):
    place("UCF-101/YoYo/v_YoYo_g01_c01.avi")
    write("ucfTrainTestlist/classInd.txt", "1 YoYo", "Archery 2")
    write("ucfTrainTestlist/trainlist01.txt", "YoYo/v_YoYo_g01_c01.avi 1")
    code, _, errors = run.script("train_net.py", "--cfg", "ucf101_rs50", f"data.root={tmp_path / 'data'}", *SMALL)
    assert code == 2 and errors.count("\n") == 1
    assert "classInd.txt:2: expected '2 ClassName'; found 'Archery 2'" in errors
