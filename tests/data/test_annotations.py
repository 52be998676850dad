"""The layouts of public datasets, with their own annotation files. The videos are empty files."""

import json
import shutil

import pytest

from video_rs.data.sources.holdout import source_of
from video_rs.data.sources.layouts import find
from video_rs.data.sources.layouts.kinetics import kinetics_coverage
from video_rs.data.sources.records import Records
from video_rs.data.sources.splits import load_splits
from video_rs.errors import UserError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def contents(records, root):
    return {(records.path(i).removeprefix(f"{root}/"), *records.label_names(i)) for i in range(len(records))}


def failure(match, **options):
    with pytest.raises(UserError, match=match) as error:
        load_splits(**options)
    assert "\n" not in str(error.value)


# UCF101 ---------------------------------------------------------------------------------------------------------------

UCF = ["YoYo/v_YoYo_g{0:02d}_c{1:02d}.avi", "Archery/v_Archery_g{0:02d}_c{1:02d}.avi"]


@pytest.fixture
def ucf101(tmp_path):
    """Two classes of four groups of two clips. Classes are not numbered in the order of their names."""
    names = [name.format(group, clip) for name in UCF for group in (1, 8, 9, 10) for clip in (1, 2)]
    touch(tmp_path, *(f"UCF-101/{name}" for name in names))
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 YoYo", "2 Archery")
    for fold, held_out in ((1, "g01"), (2, "g08")):
        train = [f"{name} {1 + (name[0] == 'A')}" for name in names if held_out not in name]
        write(lists / f"trainlist{fold:02d}.txt", *train)
        write(lists / f"testlist{fold:02d}.txt", *(name for name in names if held_out in name))
    return tmp_path


def test_ucf101(ucf101):
    splits = load_splits(str(ucf101), val_fraction=0.3)
    assert {split: len(records) for split, records in splits.items()} == {"train": 8, "val": 4, "test": 4}
    assert splits["train"].class_names == ("YoYo", "Archery")
    videos = {name.format(1, clip) for name in UCF for clip in (1, 2)}
    assert contents(splits["test"], ucf101 / "UCF-101") == {(video, video.split("/")[0]) for video in videos}
    groups = [{source_of(records.path(i)) for i in range(len(records))} for records in splits.values()]
    assert not groups[0] & groups[1] and splits["val"].held_out and not splits["test"].used_as_test


def test_the_second_fold_and_class_folders_beside_the_lists(ucf101):
    for folder in (ucf101 / "UCF-101").iterdir():
        folder.rename(ucf101 / folder.name)
    test = load_splits(str(ucf101), splits=["test"], fold=2)["test"]
    assert {name for name, _ in contents(test, ucf101)} == {name.format(8, clip) for name in UCF for clip in (1, 2)}
    failure("data.fold=3: no such file .*trainlist03.txt", root=str(ucf101), fold=3)


def test_lists_of_ucf101_given_one_by_one(ucf101):
    lists = ucf101 / "ucfTrainTestlist"
    options = {"train": str(lists / "trainlist01.txt"), "val": str(lists / "testlist01.txt")}
    for root in ("", str(ucf101)):
        splits = load_splits(root, **options)
        assert {split: len(records) for split, records in splits.items()} == {"train": 12, "val": 4, "test": 4}
        assert splits["train"].class_names == ("YoYo", "Archery") and splits["train"].label(0) == 0


def test_bad_lists_of_ucf101(ucf101):
    lists = ucf101 / "ucfTrainTestlist"
    good = (lists / "trainlist01.txt").read_text()
    for line, match in [
        ("Archery/v.avi 1", "trainlist01.txt:1: expected the number 2, as in classInd.txt; found '1'"),
        ("Swim/v.avi 1", "trainlist01.txt:1: expected 'ClassName/video.avi'.*found 'Swim/v.avi 1'"),
        ("v.avi", "trainlist01.txt:1: expected 'ClassName/video.avi'"),
    ]:
        (lists / "trainlist01.txt").write_text(f"{line}\n{good}")
        failure(match, root=str(ucf101))
    write(lists / "classInd.txt", "1 YoYo", "3 Archery")
    failure("classInd.txt:2: expected '2 ClassName'; found '3 Archery'", root=str(ucf101))


def test_lists_of_ones_own_come_first(ucf101):
    write(ucf101 / "train.txt", "UCF-101/YoYo/v_YoYo_g01_c01.avi a", "UCF-101/YoYo/v_YoYo_g01_c02.avi b")
    splits = load_splits(str(ucf101), val=str(ucf101 / "train.txt"))
    assert len(splits["train"]) == 2 and splits["train"].class_names == ("a", "b") and splits["test"].used_as_test
    splits = load_splits(str(ucf101), train=str(ucf101 / "train.txt"), val="train.txt")
    assert splits["test"].used_as_test


# HMDB51 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hmdb51(tmp_path):
    for name in ("wave", "brush_hair"):
        videos = [f"Film_{m}_{name}_u_nm_np1_ba_goo_{i}.avi" for m in range(5) for i in range(2)]
        touch(tmp_path, *(f"{name}/{video}" for video in videos))
        for fold in (1, 2):  # a film each in the test, one in neither
            use = [2 if m == fold else 0 if m == 4 else 1 for m in range(5) for _ in range(2)]
            lines = (f"{video} {u} " for video, u in zip(videos, use, strict=True))
            write(tmp_path / f"testTrainMulti_7030_splits/{name}_test_split{fold}.txt", *lines)
    return tmp_path


def test_hmdb51(hmdb51):
    for fold in (1, 2):
        splits = load_splits(str(hmdb51), fold=fold, val_fraction=0.3)
        assert {split: len(records) for split, records in splits.items()} == {"train": 8, "val": 4, "test": 4}
        assert splits["train"].class_names == ("brush_hair", "wave")
        assert all(f"Film_{fold}_" in name for name, _ in contents(splits["test"], hmdb51))
        assert all(name.split("/")[0] == label for name, label in contents(splits["test"], hmdb51))
        films = [{source_of(records.path(i)) for i in range(len(records))} for records in splits.values()]
        assert not films[0] & films[1] and films[2] == {f"Film_{fold}_{name}" for name in ("wave", "brush_hair")}
    failure(r"data.fold=3: no files \*_test_split3.txt in .*7030", root=str(hmdb51), fold=3)


def test_the_splits_of_hmdb51_given_as_a_folder(hmdb51):
    lists = str(hmdb51 / "testTrainMulti_7030_splits")
    splits = load_splits(train=lists, val=lists)
    assert {split: len(records) for split, records in splits.items()} == {"train": 12, "val": 4, "test": 4}


def test_bad_lists_of_hmdb51(hmdb51):
    lists = hmdb51 / "testTrainMulti_7030_splits"
    write(lists / "wave_test_split1.txt", "a.avi 1", "b.avi 3")
    failure("wave_test_split1.txt:2: expected 'video.avi 0', 1 or 2; found 'b.avi 3'", root=str(hmdb51))


# Something-Something v2 -----------------------------------------------------------------------------------------------

TEMPLATES = {"Pushing [something] off of [something]": "Pushing something off of something", "Holding [something]": ""}
NAMES = ("Pushing something off of something", "Holding something")


def something(first, template, indent=None):
    entries = [
        {"id": str(i), "label": "holding a cup", "template": template(i), "placeholders": ["a cup"]}
        for i in range(first, first + 4)
    ]
    return json.dumps(entries, indent=indent)


@pytest.fixture(params=["labels", "something-something-v2"])
def ssv2(tmp_path, request):
    def template(number):
        return list(TEMPLATES)[number % 2]

    labels = json.dumps({NAMES[1]: "1", NAMES[0]: "0"})
    if request.param == "labels":
        files = {"train": "labels/train.json", "val": "labels/validation.json", "labels": "labels/labels.json"}
    else:
        files = {"train": "{0}-train.json", "val": "{0}-validation.json", "labels": "{0}-labels.json"}
    files = {key: tmp_path / file.format(request.param) for key, file in files.items()}
    for file in files.values():
        file.parent.mkdir(exist_ok=True)
    files["labels"].write_text(labels)
    files["train"].write_text(something(0, template, indent=1))
    files["val"].write_text(something(100, template))
    touch(tmp_path, *(f"20bn-something-something-v2/{i}.webm" for i in (*range(4), *range(100, 104))))
    return tmp_path, files


def test_something_something(ssv2):
    root, files = ssv2
    expected = {(f"20bn-something-something-v2/{i}.webm", NAMES[i % 2]) for i in range(100, 104)}
    for options in ({"root": str(root)}, {"train": str(files["train"]), "val": str(files["val"])}):
        splits = load_splits(**options)
        assert splits["train"].class_names == NAMES and splits["test"].used_as_test
        assert len(splits["train"]) == 4 and contents(splits["val"], root) == expected


def test_videos_in_another_format(ssv2):
    root, _ = ssv2
    for video in (root / "20bn-something-something-v2").iterdir():
        video.rename(video.with_suffix(".mp4"))
    assert len(load_splits(str(root))["train"]) == 4


def test_bad_files_of_something_something(ssv2):
    root, files = ssv2
    good = files["train"].read_text()
    files["train"].write_text(good.replace("Holding [something]", "Eating [something]"))
    failure(r"train.json: entry 2: expected 'id' and a 'template' of labels.json; found '.*Eating", root=str(root))
    files["train"].write_text(good[: good.index('"id": "2"')])
    failure("train.json:19: expected JSON; found 'the end of the file'", root=str(root))
    files["train"].write_text("[]")
    failure(r"train.json: expected a JSON list of objects; found '\[\]'", root=str(root))
    files["train"].write_text(good.replace('"id": "3"', '"id": "0"'))
    failure(r"train.json: entry 4: .*/0.webm has label 'Holding.*', but 'Pushing.*' in entry 1: keep", root=str(root))
    write(root / "names.txt", NAMES[0])
    failure("train.json: entry 2: label '.*' is not one of", root=str(root), class_names=str(root / "names.txt"))
    files["train"].write_text(good)
    files["labels"].write_text('{"a": "1"}')
    failure("labels.json:1: expected an object {template: number}", root=str(root))
    options = {"train": str(files["train"]), "val": str(files["val"])}
    files["labels"].unlink()
    failure(r"labels.json with the class names is missing", **options)


# Diving48 and Charades ------------------------------------------------------------------------------------------------


@pytest.fixture
def diving48(tmp_path):
    ids = ["-mmq0PT-u8k", "2x00lRzlTVQ", "8Vy3dlHg2w_"]
    clips = [(f"{video}_{i:05d}", i % 2) for video in ids for i in range(2)]
    touch(tmp_path, *(f"rgb/{name}.mp4" for name, _ in clips))
    (tmp_path / "Diving48_vocab.json").write_text('[["Back", "15som", "05Twis", "FREE"], ["Back", "Dive"]]')
    for split, part in (("train", clips[:4]), ("test", clips[4:])):
        entries = [{"vid_name": name, "label": label, "start_frame": 0, "end_frame": 9} for name, label in part]
        (tmp_path / f"Diving48_V2_{split}.json").write_text(json.dumps(entries))
    return tmp_path


def test_diving48(diving48, monkeypatch):
    splits = load_splits(str(diving48), val_fraction=0.5)
    assert splits["train"].class_names == ("Back 15som 05Twis FREE", "Back Dive")
    assert contents(splits["test"], diving48) == {
        ("rgb/8Vy3dlHg2w__00000.mp4", "Back 15som 05Twis FREE"),
        ("rgb/8Vy3dlHg2w__00001.mp4", "Back Dive"),
    }
    sources = [{splits[split].path(i)[-21:-10] for i in range(2)} for split in ("train", "val")]
    assert sorted(map(sorted, sources)) == [["-mmq0PT-u8k"], ["2x00lRzlTVQ"]]
    assert len(splits["train"]) == len(splits["val"]) == 2
    monkeypatch.chdir(diving48)
    files = {"train": "Diving48_V2_train.json", "val": "Diving48_V2_test.json"}
    assert contents(load_splits(**files)["val"], ".") == contents(splits["test"], diving48)
    write(diving48 / "Diving48_V2_test.json", "{}")
    failure(r"test.json: expected a JSON list of objects; found '\{\}'", root=str(diving48))
    (diving48 / "Diving48_V2_train.json").write_text('[{"vid_name": "a", "label": 2}]')
    failure(r"train.json: entry 1: expected 'vid_name' and a 'label' from 0 to 1; found '.*2.*}'", root=str(diving48))


CHARADES = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"


@pytest.fixture
def charades(tmp_path):
    write(
        tmp_path / "Charades_v1_classes.txt", "c000 Holding some clothes", "c001 Putting clothes, somewhere", "c002 Z"
    )
    rows = [
        '46GP8,HR43,Kitchen,6,7,Yes,"A, ""B"" and',
        'C.",food,Cooks.,c002 11.90 21.20;c000 0.00 12.60;c002 1.0 2.0,24',
    ]
    write(tmp_path / "Charades_v1_train.csv", CHARADES, *rows, "N11GT,0KZ7,Stairs,6,7,Yes,A,door,B.,,18.17")
    write(tmp_path / "Charades_v1_test.csv", CHARADES, "YSKX3,8KB,Stairs,6,7,Yes,A,door,B.,c001 1.00 2.00,18.17")
    touch(tmp_path, *(f"Charades_v1_480/{name}.mp4" for name in ("46GP8", "N11GT", "YSKX3")))
    return tmp_path


def test_charades(charades):
    test = str(charades / "Charades_v1_test.csv")
    for options in ({"root": str(charades)}, {"root": "", "train": str(charades / "Charades_v1_train.csv")}):
        splits = load_splits(**options, val=test, multi_label=True)
        names = ("Holding some clothes", "Putting clothes, somewhere", "Z")
        assert splits["train"].class_names == names
        expected = {("Charades_v1_480/46GP8.mp4", names[2], names[0]), ("Charades_v1_480/N11GT.mp4",)}
        assert contents(splits["train"], charades) == expected
        assert contents(splits["val"], charades) == {("Charades_v1_480/YSKX3.mp4", names[1])}
    failure("Charades_v1_train.csv: .* set data.multi_label=true", root=str(charades))


def test_the_columns_of_charades_in_capitals(charades):
    file = charades / "Charades_v1_train.csv"
    file.write_text(file.read_text().replace(CHARADES, CHARADES.title()))
    assert len(load_splits(str(charades), splits=["train"], val_fraction=0, multi_label=True)["train"]) == 2


def test_bad_files_of_charades(charades):
    write(charades / "Charades_v1_test.csv", CHARADES, "YSKX3,8KB,Stairs,6,7,Yes,A,door,B.,c003 1.00 2.00,18.17")
    failure("Charades_v1_test.csv:2: expected an id, and actions .*; found 'c003", root=str(charades), multi_label=True)
    write(charades / "Charades_v1_classes.txt", "c000 Holding some clothes", "Putting clothes")
    failure("classes.txt:2: expected 'c000 name of .*found 'Putting clothes'", root=str(charades), multi_label=True)


# ImageNet -------------------------------------------------------------------------------------------------------------

WNIDS = ("n01440764", "n03995372", "n02012849")


@pytest.fixture
def imagenet(tmp_path):
    """Kaggle's archive, unpacked."""
    touch(tmp_path, *(f"ILSVRC/Data/CLS-LOC/train/{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in (10026, 7)))
    touch(tmp_path, *(f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_0000000{i}.JPEG" for i in range(3)))
    touch(tmp_path, "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG")
    rows = [f"ILSVRC2012_val_0000000{i},{WNIDS[i % 2]} 85 1 499 272 {WNIDS[i % 2]} 1 2 3 4 " for i in (2, 0, 1)]
    write(tmp_path / "LOC_val_solution.csv", "ImageId,PredictionString", *rows)
    names = ["tench, Tinca tinca", "crane", "pole"]
    write(tmp_path / "LOC_synset_mapping.txt", *map(" ".join, zip(sorted(WNIDS), names, strict=True)))
    return tmp_path


def test_imagenet_of_kaggle(imagenet):
    splits = load_splits(str(imagenet))
    place = imagenet / "ILSVRC/Data/CLS-LOC"
    assert len(splits["train"]) == 6 and splits["train"].class_names == tuple(sorted(WNIDS))
    expected = {(f"ILSVRC2012_val_0000000{i}.JPEG", WNIDS[i % 2]) for i in range(3)}
    assert contents(splits["val"], place / "val") == expected and splits["test"].used_as_test
    for i in range(3):
        (place / "val" / WNIDS[i % 2]).mkdir(exist_ok=True)
        name = f"ILSVRC2012_val_0000000{i}.JPEG"
        (place / "val" / name).rename(place / "val" / WNIDS[i % 2] / name)
    labels = [{label for _, label in contents(load_splits(str(imagenet))["val"], place)}]
    (imagenet / "LOC_val_solution.csv").unlink()  # images in class folders need none
    labels.append({label for _, label in contents(load_splits(str(imagenet))["val"], place)})
    assert labels == 2 * [set(WNIDS[:2])]


def test_imagenet_with_flat_validation_images(imagenet):
    place = imagenet / "ILSVRC/Data/CLS-LOC"
    hint = "3 files are directly in it: set data.val=LIST, or put LOC_val_solution.csv into data.root"
    failure(f"val split of .* is empty: .*; {hint}", root=str(place), splits=["train", "val"])
    val = load_splits(str(place), val=str(imagenet / "LOC_val_solution.csv"), splits=["val"])["val"]
    assert len(val) == 3 and val.label_names(0) == (WNIDS[0],) and val.class_names == tuple(sorted(WNIDS))
    failure(
        "test split of .* is empty: .*; 1 files are directly in it: set data.test=LIST, or",
        root=str(place),
        splits=["test"],
    )
    (place / "val" / WNIDS[0]).mkdir()
    touch(place / "val", f"{WNIDS[0]}/ILSVRC2012_val_00000009.JPEG")
    assert len(load_splits(str(place), test="val", splits=["test"])["test"]) == 1
    shutil.rmtree(place / "val" / WNIDS[0])
    alone = load_splits(test=str(imagenet / "LOC_val_solution.csv"), splits=["test"])["test"]
    assert contents(alone, place / "val") == contents(val, place / "val") and len(alone.class_names) == 2
    (imagenet / "LOC_val_solution.csv").unlink()
    failure(hint, root=str(imagenet), splits=["train", "val"])


def test_the_names_of_imagenets_classes(imagenet):
    splits = load_splits(str(imagenet), class_names=str(imagenet / "LOC_synset_mapping.txt"))
    assert splits["train"].class_names == ("n01440764 tench, Tinca tinca", "n02012849 crane", "n03995372 pole")
    assert splits["val"].label_names(0) == ("n01440764 tench, Tinca tinca",)
    for i, wnid in enumerate(sorted(WNIDS)):
        assert wnid in splits["train"].path(2 * i) and splits["train"].label(2 * i) == i


def test_bad_solutions_of_imagenet(imagenet):
    file = imagenet / "LOC_val_solution.csv"
    for row in ("n02017213_7894,n02017213 115 49 448 294", "ILSVRC2012_val_00000001,tench", "ILSVRC2012_val_00000001"):
        write(file, "ImageId,PredictionString", row)
        failure(rf"LOC_val_solution.csv:2: expected .*; found '{row}'", root=str(imagenet))


# Others ---------------------------------------------------------------------------------------------------------------


def test_other_folders_have_no_official_layout(tmp_path):
    touch(tmp_path, "a/1.mp4", "labels/train.json", "b/1.mp4", "annotations/x.txt")
    assert find(str(tmp_path)) == {}
    write(tmp_path / "mine.json", '[{"path": "a/1.mp4"}]')
    failure(
        "mine.json: not an annotation file of a known dataset .charades, ",
        root=str(tmp_path),
        train=str(tmp_path / "mine.json"),
    )


def test_a_share_of_kinetics(tmp_path):
    assert kinetics_coverage(400, "val", "x/-3B32lodo2M_000059_000069.mp4", 19000) == (
        "19,000 of the 19,906 videos of Kinetics-400"
    )
    assert kinetics_coverage(400, "val", "x/1.mp4", 19000) == kinetics_coverage(401, "val", "x/1.mp4", 19000) == ""
    for i in range(400):
        touch(tmp_path, f"train/{i:03d}/{i:011d}_000000_000010.mp4")
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    splits = load_splits(str(tmp_path))
    assert "; 400 of the 246,534 videos of Kinetics-400" in splits["train"].describe()
    assert "; 400 of the 19,906 videos of Kinetics-400" in splits["test"].describe()
    shutil.rmtree(tmp_path / "val")
    for i in range(400):
        touch(tmp_path, f"train/{i:03d}/{i + 1000:011d}_000000_000010.mp4")
    made = load_splits(str(tmp_path))["val"]
    assert made.held_out and "Kinetics" not in made.describe()


def test_one_file_with_two_labels(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4")
    write(tmp_path / "train.txt", "1.mp4 a", "2.mp4 b", "2.mp4 b", "", "1.mp4 b")
    failure(r"train.txt:5: .*/1.mp4 has label 'b', but 'a' in line 1: keep one", root=str(tmp_path), val="train.txt")
    write(tmp_path / "train.txt", "1.mp4 a;b", "1.mp4 b;a")
    train = load_splits(str(tmp_path), val="train.txt", multi_label=True)["train"]
    assert len(train) == 2


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("column", ["source", "Group", "video_id", None])
def test_a_column_keeps_sources_together(tmp_path, column, delimiter):
    files = [(f"{c}/{i}.mp4", c, f"tape {i // 4}") for c in "ab" for i in range(20)]
    touch(tmp_path, *(path for path, _, _ in files))
    columns = ["label", column or "note", "path"]
    rows = [columns, *([f'"{label}, or so"', source, path] for path, label, source in files)]
    write(tmp_path / "train.csv", *(delimiter.join(row) for row in rows), "")
    splits = load_splits(str(tmp_path), val_fraction=0.2)
    of_path = {str(tmp_path / path): source for path, _, source in files}
    sources = [{of_path[splits[s].path(i)] for i in range(len(splits[s]))} for s in ("train", "val")]
    assert splits["train"].class_names == ("a, or so", "b, or so") and len(splits["val"]) == 8
    assert bool(sources[0] & sources[1]) == (column is None)


def test_a_missing_file_takes_its_source_with_it(tmp_path):
    files = [f"{c}/{i}.mp4" for c in "ab" for i in range(10)]
    touch(tmp_path, *(file for file in files if file != "a/3.mp4"))
    write(tmp_path / "train.csv", "path,label,source", *(f"{file},{file[0]},{file[2]}" for file in files))
    splits = load_splits(str(tmp_path), val_fraction=0.3)
    numbers = [{splits[s].path(i)[-5] for i in range(len(splits[s]))} for s in ("train", "val")]
    assert not numbers[0] & numbers[1] and len(splits["train"]) + len(splits["val"]) == 19


def test_bad_rows_under_a_header(tmp_path):
    for row in ("1.mp4,a", "1.mp4,,x", ",a,x", "1.mp4,a,x,y"):
        write(tmp_path / "train.csv", "path,label,source", "1.mp4,a,x", row)
        failure(f"train.csv:3: expected 'path,label,source'; found '{row}'", root=str(tmp_path), max_missing=1)


def test_a_quote_that_is_not_closed(tmp_path):
    for header in ("path,label,source", "label,youtube_id,time_start,time_end,split"):
        write(tmp_path / "train.csv", header, '"' + "1.mp4,a,x " * 20000)
        failure("train.csv:2: not csv .field larger than .*quote", root=str(tmp_path), max_missing=1)


def test_the_label_may_come_first(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4")
    write(tmp_path / "train.csv", "label,path", "a,1.mp4", "b,2.mp4")
    train = load_splits(str(tmp_path), val="train.csv", splits=["train"])["train"]
    assert contents(train, tmp_path) == {("1.mp4", "a"), ("2.mp4", "b")}


def test_sources_in_file_names():
    for path, source in [
        ("climb/Film_2_climb_f_cm_np1_ri_med_10.avi", "Film_2_climb"),
        ("rgb/brush_teeth_00001.mp4", "rgb/brush_teeth_00001.mp4"),  # as in many collections
        ("rgb/video_00001.mp4", "rgb/video_00001.mp4"),
    ]:
        assert source_of(path) == source
    assert Records([], [], ()).coverage == ""
