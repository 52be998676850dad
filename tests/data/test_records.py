import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from video_rs.data.sources import class_folders
from video_rs.data.sources.class_folders import present
from video_rs.data.sources.records import SPLITS, Paths, Records
from video_rs.data.sources.splits import load_splits
from video_rs.data.video.search import media_below
from video_rs.errors import UserError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def contents(records, root):
    return [(records.path(i).removeprefix(f"{root}/"), records.label(i)) for i in range(len(records))]


def files(count, *classes, suffix=".mp4"):
    return [f"{name}/{i}{suffix}" for name in classes for i in range(count)]


def test_a_folder_with_splits(tmp_path):
    touch(tmp_path, *(f"{split}/{name}" for split in ("train", "val", "test") for name in files(2, "b c", "a")))
    touch(tmp_path, "train/a/notes.md", "train/a/.hidden.mp4", "train/.cache/x.mp4")
    splits = load_splits(str(tmp_path))
    assert list(splits) == ["train", "val", "test"]
    for split, records in splits.items():
        assert records.class_names == ("a", "b c")
        assert contents(records, tmp_path / split) == [
            ("a/0.mp4", 0),
            ("a/1.mp4", 0),
            ("b c/0.mp4", 1),
            ("b c/1.mp4", 1),
        ]


def test_a_folder_without_splits_and_images(tmp_path):
    touch(tmp_path, *files(10, "a", "b", suffix=".JPEG"))
    splits = load_splits(str(tmp_path), val_fraction=0.2)
    train, val = (set(contents(splits[name], tmp_path)) for name in ("train", "val"))
    assert len(train) == 16 and len(val) == 4 and not train & val
    assert sorted(label for _, label in val) == [0, 0, 1, 1]
    assert splits["test"] is splits["val"]
    again = load_splits(str(tmp_path), val_fraction=0.2, splits=["val"])
    assert set(contents(again["val"], tmp_path)) == val


def test_the_split_depends_on_names_alone(tmp_path):
    for root in (tmp_path / "one", tmp_path / "two"):
        touch(root, *files(9, "a", "b"))
    touch(tmp_path / "two", *files(9, "c"))
    one, two = (contents(load_splits(str(tmp_path / n))["val"], tmp_path / n) for n in ("one", "two"))
    assert one == two[: len(one)]


@pytest.mark.parametrize(
    "line", ["{path} {label}", "{path},{label}", "{path}, {label}", "{path}\t{label}", '"{path}",{label}']
)
@pytest.mark.parametrize("name", ["x/1.mp4", "x/two words.mp4", "x/a, b.mp4"])
@pytest.mark.parametrize("label", ["1", "riding a bike"])
def test_lines_of_lists(line, name, label, tmp_path):
    touch(tmp_path, name, "x/0.mp4", "v/0.mp4")
    first = "0" if label == "1" else "archery"
    lines = [line.format(path="x/0.mp4", label=first), "", line.format(path=name, label=label)]
    (tmp_path / "train.csv").write_text("\r\n".join(lines))
    (tmp_path / "val.txt").write_text(line.format(path="v/0.mp4", label=label) + "\n")
    splits = load_splits(str(tmp_path))
    assert contents(splits["train"], tmp_path) == [("x/0.mp4", 0), (name, 1)]
    assert contents(splits["val"], tmp_path) == [("v/0.mp4", 1)]
    assert splits["train"].class_names == (("0", "1") if label == "1" else ("archery", "riding a bike"))


def test_a_header_names_without_extension_and_paths_relative_to_the_list(tmp_path):
    touch(tmp_path, "lists/a/1", "lists/a/2")
    mine = tmp_path / "lists" / "mine.csv"
    mine.write_text("path,label\na/1,0\na/2 1\n")
    records = load_splits(train=str(mine), val=str(mine))["train"]
    assert contents(records, tmp_path) == [("lists/a/1", 0), ("lists/a/2", 1)]


def test_absolute_paths_and_lists_found_under_the_root(tmp_path):
    touch(tmp_path, "videos/1.mp4", "videos/2.mp4")
    (tmp_path / "mine.txt").write_text(f"{tmp_path}/videos/1.mp4 0\n2.mp4 1\n")
    splits = load_splits(str(tmp_path / "videos"), train=str(tmp_path / "mine.txt"), val=str(tmp_path / "mine.txt"))
    assert contents(splits["train"], tmp_path) == [("videos/1.mp4", 0), ("videos/2.mp4", 1)]


def test_lines_end_as_splitlines_ends_them(tmp_path):
    touch(tmp_path, *files(10, "a"))
    ends = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\n\n", "\r\n\r"]
    lines = [f"a/{i}.mp4 {i % 2}{end}" for i, end in enumerate(ends)]
    (tmp_path / "train.txt").write_bytes("".join(lines).encode())
    train = load_splits(str(tmp_path), val=str(tmp_path / "train.txt"), splits=["train"])["train"]
    assert contents(train, tmp_path) == [(f"a/{i}.mp4", i % 2) for i in range(10)]
    (tmp_path / "train.txt").write_bytes("".join([*lines, "nonsense"]).encode())
    failure(rf"train.txt:{len(''.join(lines).splitlines()) + 1}: 'nonsense' is not a line", root=str(tmp_path))


def test_the_official_kinetics_csv(tmp_path):
    touch(tmp_path, "train/abseiling/-3B32lodo2M_000059_000069.mp4", "replacement/_dash_under__000000_000010.mkv")
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        "abseiling,-3B32lodo2M,59,69,train,0\n"
        '"dancing, slowly",_dash_under_,0,10,train,0\n'
    )
    (tmp_path / "val.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nabseiling,-3B32lodo2M,59,69,validate\n"
    )
    splits = load_splits(str(tmp_path))
    assert contents(splits["train"], tmp_path) == [
        ("train/abseiling/-3B32lodo2M_000059_000069.mp4", 0),
        ("replacement/_dash_under__000000_000010.mkv", 1),
    ]
    assert splits["train"].class_names == ("abseiling", "dancing, slowly") and len(splits["val"]) == 1


def test_the_official_kinetics_csv_with_quotes_and_spaces_and_the_first_of_several_copies(tmp_path):
    copies = [f"{folder}/-3B32lodo2M_000059_000069.mp4" for folder in ("z", "b", "y", "a", "x")]
    touch(tmp_path, ".trash/-3B32lodo2M_000059_000069.mp4", *copies, "a/-3B32lodo2N_000001_000011.mp4")
    header = '"label", "youtube_id", "time_start", "time_end", "split"\n'
    rows = '"abseiling", "-3B32lodo2M", 59, 69, "train"\n"air drumming", "-3B32lodo2N", 1, 11, "train"\n'
    for text in (header + rows, "\ufeff" + (header + rows).replace('"', "")):
        (tmp_path / "train.csv").write_text(text, encoding="utf-8")
        train = load_splits(str(tmp_path), splits=["train"])["train"]
        assert contents(train, tmp_path) == [
            ("a/-3B32lodo2M_000059_000069.mp4", 0),
            ("a/-3B32lodo2N_000001_000011.mp4", 1),
        ]


def test_media_below_follows_links_once_and_sees_nothing_hidden(tmp_path):
    touch(
        tmp_path, "root/b/2.mp4", "root/b/1.MP4", "root/a.mp4", "root/.a/3.mp4", "root/.4.mp4", "out/5.mp4", "root/6.md"
    )
    (tmp_path / "root/b/loop").symlink_to(tmp_path / "root")
    (tmp_path / "root/linked").symlink_to(tmp_path / "out")
    found = [path.removeprefix(f"{tmp_path}/root/") for path in media_below(str(tmp_path / "root"), {".mp4"})]
    assert found == ["a.mp4", "b/1.MP4", "b/2.mp4", "linked/5.mp4"]


def test_a_link_out_of_a_class_folder_brings_no_files_of_other_classes(tmp_path, monkeypatch):
    touch(tmp_path, "run/1.mp4", "run/2.mp4", "sit/3.mp4", "sit/4.mp4")
    (tmp_path / "sit/up").symlink_to("..")
    (tmp_path / "all").symlink_to(".")
    (train,) = load_splits(str(tmp_path), splits=["train"], val_fraction=0).values()
    assert [train.path(i).removeprefix(f"{tmp_path}/") for i in range(len(train))] == [
        "run/1.mp4", "run/2.mp4", "sit/3.mp4", "sit/4.mp4"
    ]  # fmt: skip
    assert "2 files or folders are left out" in train.describe()
    monkeypatch.chdir(tmp_path / "run")
    assert len([*media_below("..", {".mp4"})]) == 4


def test_class_names_from_a_file(tmp_path):
    touch(tmp_path, "train/b/1.mp4", "train/c/1.mp4", "val/c/1.mp4", "l/1.mp4", "l/2.mp4")
    (tmp_path / "names.txt").write_text("\ufeffa\nb\nc\n", encoding="utf-8")
    splits = load_splits(str(tmp_path), class_names=str(tmp_path / "names.txt"))
    assert splits["train"].label(0) == 1 and splits["val"].label(0) == 2
    (tmp_path / "list.txt").write_text("l/1.mp4 2\nl/2.mp4 b\nl/1.mp4 c\n")
    records = load_splits(
        str(tmp_path), test=str(tmp_path / "list.txt"), class_names=str(tmp_path / "names.txt"), splits=["test"]
    )
    assert list(records["test"].labels) == [2, 1, 2]


def test_missing_files_are_dropped_and_counted(tmp_path):
    touch(tmp_path, *(f"x/{i}.mp4" for i in range(96)))
    (tmp_path / "train.txt").write_text("".join(f"x/{i}.mp4 {i % 2}\n" for i in range(100)))
    (tmp_path / "val.txt").write_text("x/0.mp4 0\n")
    train = load_splits(str(tmp_path))["train"]
    assert len(train) == 96 and train.num_missing == 4
    assert train.missing == [f"{tmp_path}/x/{i}.mp4" for i in (96, 97, 98)]
    with pytest.raises(UserError, match=r"4 of 100 listed files are missing.*max_missing=0.03.*96.mp4.*97.mp4.*98.mp4"):
        load_splits(str(tmp_path), max_missing=0.03)


def test_a_label_of_a_missing_file_is_no_error_and_another_is_named_where_its_file_is(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4", "names.txt")
    (tmp_path / "names.txt").write_text("a\nb\n")
    (tmp_path / "train.txt").write_text("gone.mp4 c\n1.mp4 a\n2.mp4 b\n")
    options = {"root": str(tmp_path), "class_names": str(tmp_path / "names.txt"), "splits": ["train"], "max_missing": 1}
    assert list(load_splits(**options)["train"].labels) == [0, 1]
    (tmp_path / "train.txt").write_text("gone.mp4 c\n1.mp4 a\n2.mp4 c\n")
    failure(r"train.txt:3: label 'c' is not one of", **options)


def test_files_are_there_however_their_folder_is_written(tmp_path, monkeypatch):
    touch(tmp_path, "0.mp4", "a/1.mp4", "a/b/2.mp4", "ü/3.mp4")
    monkeypatch.chdir(tmp_path)
    there = ["0.mp4", "./0.mp4", "a/1.mp4", "a//1.mp4", "./a/1.mp4", "a/../a/b/2.mp4", f"{tmp_path}/ü/3.mp4", "a/1.mp4"]
    gone = ["1.mp4", "a/0.mp4", "b/1.mp4", "0.mp4/1.mp4", "a/1.mp4/", "a/1.mp", "/0.mp4", "a/\0.mp4"]
    names = [name for pair in zip(there, gone, strict=True) for name in pair]
    assert present(Paths(names)).tolist() == [True, False] * len(there)
    assert not present(Paths(gone)).any() and not len(present(Paths()))


def failure(match, **kwargs):
    with pytest.raises(UserError, match=match) as error:
        load_splits(**kwargs)
    assert "\n" not in str(error.value)


def test_bad_lists_name_file_and_line(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4", "names.txt")
    train = tmp_path / "train.csv"
    for text, match in [
        ("1.mp4 0\n2.mp4\n", r"train.csv:2: '2.mp4' is not a line"),
        ("1.mp4 0\n,3\n", r"train.csv:2: "),
        ("label,youtube_id,time_start,time_end,split\na,xyz,one,2,train\n", "train.csv:2: .*'a,xyz,one,2,train'"),
        ("label,youtube_id,time_start,time_end,split\na,xyz\n", r"train.csv:2: .*found 'a,xyz'"),
        ("youtube_id,time_start,time_end,split\nxyz,1,2,test\n", r"train.csv:1: .*no column 'label'"),
    ]:
        train.write_text(text)
        failure(match, root=str(tmp_path), max_missing=1)
    train.write_bytes(b"\xff\xfe\x00")
    failure("UTF-8", root=str(tmp_path))


def test_lists_of_other_tools_do_not_invent_classes(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4", "names.txt")
    for text, match in [
        ("1.mp4 0\n2.mp4 120 1\n", r"train.txt:2: several numbers after the path, '120 1'"),
        ("1.mp4,0\n2.mp4, 10,120, 1\n", r"train.txt:2: several numbers after the path, '10,120, 1'"),
        ("1.mp4 0\n2.mp4 -1\n", r"train.txt:2: label '-1' is neither"),
        ("1.mp4 0\n2.mp4 1.0\n", r"train.txt:2: label '1.0' is neither"),
        ("1.mp4 0\n2.mp4 run\n", r"train.txt:2: label 'run' is a name, but '0' in .*train.txt:1 is a number"),
        ("1.mp4 0\n2.mp4 999999999\n", r"train.txt:2: label '999999999' is too large.* model.num_classes"),
        (
            "Dateiname,Klasse\n1.mp4,a\n2.mp4,b\n",
            "train.txt:1: 'Dateiname,Klasse' is not the path of a video .* path and label",
        ),
        ("1.mp4;a\n2.mp4;b\n", "train.txt:1: '1.mp4;a' is not a line 'path label'; put a comma"),
    ]:
        (tmp_path / "train.txt").write_text(text)
        failure(match, root=str(tmp_path), splits=["train"])
    (tmp_path / "train.txt").write_text("1.mp4 0\n2.mp4 1019\n")
    assert len(load_splits(str(tmp_path), splits=["train"])["train"].class_names) == 1020
    (tmp_path / "train.txt").write_text("1.mp4 0\n2.mp4 9999\n")
    assert load_splits(str(tmp_path), splits=["train"], num_classes=10000)["train"].label(1) == 9999


def test_numbers_are_not_matched_to_another_splits_names(tmp_path):
    touch(tmp_path, "train/b/1.mp4", "train/a/1.mp4", "1.mp4")
    (tmp_path / "val.txt").write_text("train/b/1.mp4 b\n1.mp4 0\n")
    failure(r"val.txt:2: label '0' is not one of the 2 class names: give data.class_names", root=str(tmp_path))
    (tmp_path / "names.txt").write_text("b\na\n")
    val = load_splits(str(tmp_path), class_names=str(tmp_path / "names.txt"), splits=["val"])["val"]
    assert list(val.labels) == [0, 0]


def test_testing_does_not_need_the_training_files(tmp_path):
    touch(tmp_path, "1.mp4", "names.txt")
    (tmp_path / "train.txt").write_text("gone/1.mp4 a\ngone/2.mp4 b\n")
    (tmp_path / "test.txt").write_text("1.mp4 b\n")
    test = load_splits(str(tmp_path), splits=["test"])["test"]
    assert test.class_names == ("a", "b") and test.label(0) == 1
    (tmp_path / "train.txt").write_text("1.mp4 not a class\n")
    (tmp_path / "names.txt").write_text("a\nb\n")
    assert load_splits(str(tmp_path), splits=["test"], class_names=str(tmp_path / "names.txt"))["test"].label(0) == 1


def test_names_that_are_not_utf8_are_left_out(tmp_path):
    """Files, folders below a class, and classes; the class names do not depend on them."""
    touch(tmp_path, "train/a/1.mp4", "train/b/1.mp4")
    train = os.fsencode(tmp_path / "train")
    names = [b"b/caf\xe9.mp4", b"b/na\xef/2.mp4", b"cl\xe4ss/1.mp4", b"only/\xff.mp4"]
    try:
        for name in names:
            os.makedirs(os.path.dirname(os.path.join(train, name)), exist_ok=True)
            open(os.path.join(train, name), "wb").close()
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    found = load_splits(str(tmp_path), splits=["train"])["train"]
    assert [found.path(i) for i in range(2)] == [str(tmp_path / f"train/{name}/1.mp4") for name in "ab"]
    assert len(found) == 2 and found.class_names == ("a", "b") and found.empty_folders == ("only",)
    text = found.describe()
    assert "4 files or folders are left out: the name is not UTF-8; the first: " in text and text.isprintable()
    assert "cl\\udce4ss" in text or "caf\\udce9.mp4" in text


def test_names_of_a_list_that_are_not_utf8_are_left_out(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4")
    rows = [{"path": "1.mp4", "label": "a"}, {"path": "2.mp4", "label": "b"}]
    rows += [{"path": "caf\udce9.mp4", "label": "a"}, {"path": "\ud800.mp4", "label": "a"}]
    rows += [{"path": "2.mp4", "label": "\udfff"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_splits(str(tmp_path), splits=["train"])["train"]
    assert len(found) == 2 and found.class_names == ("a", "b")
    assert "3 files or folders are left out: the name is not UTF-8; the first: " in found.describe()


def test_class_folders_without_known_files_are_named(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "train/b/1.mp4", "train/c/1.xyz", "train/d/sub/1.txt")
    train = load_splits(str(tmp_path), splits=["train"])["train"]
    assert train.class_names == ("a", "b")
    assert "2 folders contain no video or image, the first: c, d" in train.describe()


def test_nested_videos_belong_to_the_top_folder_and_unused_files_are_counted(tmp_path):
    videos = ["run/a.GIF", "run/b.asf", "run/c.divx", "run/d.f4v", "run/s1/e.mp4", "run/s1/deep/f.m4v", "sit/s2/g.mxf"]
    others = ["run/no_extension", "run/s1/frames/1.jpg", "run/s1/frames/2.jpg", "run/.hidden.mp4", "loose.mp4"]
    touch(tmp_path / "train", *videos, *others)
    train = load_splits(str(tmp_path), val="train", splits=["train"])["train"]
    assert contents(train, tmp_path / "train") == [(name, int(name.startswith("sit"))) for name in videos]
    assert f"; 4 files or folders are left out: not a known video or image; the first: {tmp_path}" in train.describe()
    assert load_splits(str(tmp_path))["train"].notes == train.notes  # also of a part


def test_control_characters_are_escaped_in_log_lines(tmp_path):
    touch(tmp_path / "train", "run/1.mp4", "sit/2.mp4", "sit/a\x1b[31m\n.txt", "c\nd/3.txt")
    text = load_splits(str(tmp_path), val="train", splits=["train"])["train"].describe()
    assert text.isprintable() and text.endswith(r"c\nd/3.txt") and r"the first: c\nd;" in text


def test_nested_images_are_used_with_top_level_images(tmp_path):
    images = ["run/a.jpg", "run/s1/b.jpg", "sit/a.png"]
    touch(tmp_path / "train", *images)
    train = load_splits(str(tmp_path), val="train", splits=["train"])["train"]
    assert contents(train, tmp_path / "train") == [(name, int(name.startswith("sit"))) for name in images]
    assert not train.notes


LEFTOVERS = ["@eaDir", ".ipynb_checkpoints", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"]


def test_files_of_systems_and_tools_are_skipped(tmp_path):
    videos = ["run/a.mp4", "sit/b.mp4"]
    names = [f"{place}/x.mp4" for name in LEFTOVERS for place in (name, f"run/{name}", f"sit/s/{name}")]
    touch(tmp_path / "train", *videos, *names, "run/._a.mp4", "run/.DS_Store", "run/Thumbs.db", "sit/desktop.ini")
    train = load_splits(str(tmp_path), val="train", splits=["train"])["train"]
    assert contents(train, tmp_path / "train") == [(name, int(name.startswith("sit"))) for name in videos]
    assert train.class_names == ("run", "sit") and not train.notes


def test_a_frame_folder_can_have_a_video_extension(tmp_path):
    touch(tmp_path, *(f"train/{c}/v{v}.avi/{i}.jpg" for c in ("run", "sit") for v in (0, 1) for i in (1, 2)))
    touch(tmp_path, "train/run/w.mp4/w.mp4", "train/sit/x.mkv/notes.txt")
    train = load_splits(str(tmp_path), val="train", splits=["train"])["train"]
    found = ["run/v0.avi", "run/v1.avi", "run/w.mp4/w.mp4", "sit/v0.avi", "sit/v1.avi"]
    assert contents(train, tmp_path / "train") == [(name, int(name.startswith("sit"))) for name in found]
    assert train.describe().endswith("x.mkv/notes.txt")
    shutil.rmtree(tmp_path / "train/run/w.mp4")
    folders = load_splits(str(tmp_path), val="train", splits=["train"], frame_folders=True)["train"]
    assert len(folders) == 5 and folders.path(0) == train.path(0)


def test_folders_and_lists_of_splits_may_be_capitalized(tmp_path):
    touch(tmp_path, *(f"{split}/{c}/{split}.mp4" for split in ("Train", "VAL") for c in ("run", "sit")))
    (tmp_path / "Test.csv").write_text("VAL/run/VAL.mp4 run\n")
    splits = load_splits(str(tmp_path))
    assert [len(splits[split]) for split in SPLITS] == [2, 2, 1]
    touch(tmp_path, "test.CSV")
    failure("/Test.csv' has T, .*/test.CSV' has t; both look like test", root=str(tmp_path))
    touch(tmp_path / "vehicles", "Train/0.mp4", "Bus/0.mp4", "Bus/1.mp4", "Train/1.mp4")
    assert load_splits(str(tmp_path / "vehicles"))["train"].class_names == ("Bus", "Train")


def test_folders_of_folders_are_classes_only_if_given(tmp_path):
    touch(tmp_path, *files(2, "k400/run", "k400/sit", "ucf/run"))
    hint = f"set data.train={tmp_path} if k400 is a class, or data.root={tmp_path}/k400$"
    failure(f"no train, val or test folder .* but there are some one level below: {hint}", root=str(tmp_path))
    assert load_splits(train=str(tmp_path), splits=["train"])["train"].class_names == ("k400", "ucf")


def test_many_image_folders_without_videos_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(class_folders, "_MANY", 2)
    touch(tmp_path, *(f"train/run/v{i}/{j}.jpg" for i in range(4) for j in range(2)))
    failure("run: more than 2 folders of images .*set data.frame_folders=true", root=str(tmp_path))


def test_classes_that_a_split_has_no_file_of_are_named(tmp_path):
    """For example a mistyped class name in the training split."""
    touch(tmp_path, "train/run/1.mp4", "train/swim/1.mp4", "train/swimm/1.mp4", "val/run/2.mp4", "val/swim/2.mp4")
    splits = load_splits(str(tmp_path), splits=["train", "val"])
    assert splits["train"].describe().startswith("3 files, 3 classes, ")
    assert splits["val"].describe().startswith("2 files, 2 of 3 classes (none of swimm), ")


def test_labels_outside_the_class_count(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "train.csv").write_text("1.mp4 0\n2.mp4 7\n")
    failure(r"train.csv:2: label '7' is not one of 0 to 4", root=str(tmp_path), num_classes=5)
    (tmp_path / "train.csv").write_text("1.mp4 run\n2.mp4 jump\n")
    (tmp_path / "val.csv").write_text("1.mp4 run\n2.mp4 swim\n")
    failure(r"val.csv:2: label 'swim' is not one of the 2 class names$", root=str(tmp_path))
    (tmp_path / "val.csv").write_text("1.mp4 run\n2.mp4 jmup\n")
    failure(r"val.csv:2: label 'jmup' is not one of the 2 class names; did you mean 'jump'\?", root=str(tmp_path))
    (tmp_path / "names.txt").write_bytes("laufen\nspringen über\n".encode("latin-1"))
    failure("names.txt: not a text file in UTF-8", root=str(tmp_path), class_names=str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_text("run\njump\nrun\n")
    failure(r"'run' is repeated", root=str(tmp_path), class_names=str(tmp_path / "names.txt"))


def test_empty_and_absent_data(tmp_path):
    failure("no dataset: set data.root")
    failure("no such folder", root=str(tmp_path / "nowhere"))
    failure("no such file or folder", train=str(tmp_path / "nowhere.csv"))
    failure("no train, val or test folder or list in it, and no class folders", root=str(tmp_path))
    (tmp_path / "train").mkdir()
    failure("train split of .* is empty: no class folders with videos or images in it$", root=str(tmp_path))
    touch(tmp_path, "train/x.mp4", "train/y.mp4")
    failure(
        f"is empty: no class folders .*; 2 files are directly in it: set data.train=LIST, or data.train={tmp_path} if",
        root=str(tmp_path),
    )
    failure("no train, val .* 2 files are directly in it: set data.train=LIST", root=str(tmp_path / "train"))
    touch(tmp_path, "train/a/1.mp4", "train/b/1.mp4")
    failure("val split of .* is empty: too few source videos", root=str(tmp_path))
    assert len(load_splits(str(tmp_path), splits=["train"])["train"]) == 2
    touch(tmp_path, "only_val/val/a/1.mp4")
    failure("no train split", root=str(tmp_path / "only_val"))
    failure("no such file", root=str(tmp_path), class_names=str(tmp_path / "names.txt"))


def test_classes_that_look_alike_are_noted_in_the_first_lines(tmp_path):
    touch(tmp_path, "Run/1.mp4", "run/2.mp4", "sit/3.mp4", "caf\u00e9/4.mp4", "cafe\u0301/5.mp4")
    (train,) = load_splits(str(tmp_path), splits=["train"], val_fraction=0).values()
    assert len(train.class_names) == 5
    assert train.describe().endswith("; two classes look alike: 'Run' has R, 'run' has r, and 1 more")
    (tmp_path / "train.csv").write_text("sit/3.mp4,sit\nRun/1.mp4,run\nrun/2.mp4,Run\n")
    (train,) = load_splits(str(tmp_path), splits=["train"], val_fraction=0).values()
    assert "two classes look alike: 'Run' has R, 'run' has r" in train.describe()


def test_other_files_next_to_class_folders_are_not_read_as_lists(tmp_path):
    touch(tmp_path, "run/1.mp4", "run/2.mp4", "sit/3.mp4", "sit/4.mp4", "old.csv/5.mp4", "old.csv/6.mp4")
    (tmp_path / "readme.txt").write_bytes("Gr\u00fc\u00dfe".encode("latin-1"))
    (tmp_path / "blob.csv").write_bytes(bytes(range(256)))
    (tmp_path / "open.csv").write_text('"unclosed\n')
    (tmp_path / "bad.jsonl").write_text("{bad\n")
    (tmp_path / "gone.csv").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.csv")
    os.mkfifo(tmp_path / "train.csv")
    (train,) = load_splits(str(tmp_path), splits=["train"], val_fraction=0).values()
    assert train.class_names == ("old.csv", "run", "sit") and len(train) == 6
    assert "7 files or folders are left out" in train.describe()
    (tmp_path / "alone").mkdir()
    (tmp_path / "blob.csv").rename(tmp_path / "alone/blob.csv")
    failure("blob.csv: not a text file", root=str(tmp_path / "alone"))


def test_images_and_videos_do_not_mix(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "train/a/2.jpg", "val/a/3.mp4")
    message = "train: images and videos are mixed: keep them in separate datasets; the first: .*1.mp4, .*2.jpg$"
    failure(message, root=str(tmp_path))


def test_records_are_packed():
    paths = [f"/data/übung/{i}.mp4" for i in range(1000)]
    records = pickle.loads(pickle.dumps(Records(paths, np.arange(1000) % 7, [str(i) for i in range(7)])))
    assert [records.path(i) for i in (0, 1, 999)] == [paths[0], paths[1], paths[999]]
    assert records.label(8) == 1 and len(records) == 1000 and records.labels.dtype == np.int32
    part = records.subset(np.array([5, 3]))
    assert part.path(0) == paths[5] and part.label(1) == 3
    assert not any(isinstance(value, list) and value for value in vars(records).values())
    odd = [os.fsdecode(b"caf\xe9.mp4"), "", "a"]
    assert list(Paths(odd)) == [Records(map(Path, odd), [0] * 3, "x").path(0), *odd[1:]]
    assert Records(odd, [0] * 3, "x").packed_paths() == b"caf\xe9.mp4\0\0a\0" + os.fsencode(os.getcwd())


def test_a_val_split_that_stands_in_for_the_test_split_says_so(tmp_path):
    for split in ("train", "val", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.mp4").write_bytes(b"x")  # the same names in every split
    assert not load_splits(str(tmp_path))["test"].used_as_test
    shutil.rmtree(tmp_path / "test")
    assert load_splits(str(tmp_path))["test"].used_as_test


SHARED = """
import os, sys, time
from video_rs.data.sources.splits import load_splits

def memory(process):  # without libraries, whose share depends on who else runs
    with open(f"/proc/{process}/smaps_rollup") as lines:
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))

records = load_splits(train=sys.argv[1], splits=("train", "val"))["train"]
workers = []
for _ in range(4):
    read, write = os.pipe()
    worker = os.fork()
    if not worker:
        for index in range(len(records)):
            records.path(index), records.label(index)
        os.write(write, b"done")
        time.sleep(600)
    os.read(read, 4)
    workers.append(worker)
print(len(records), sum(map(memory, [os.getpid(), *workers])))
for worker in workers:
    os.kill(worker, 9)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells what processes share")
@pytest.mark.parametrize(
    "source", [pytest.param("many.csv", marks=pytest.mark.slow), pytest.param("many", marks=pytest.mark.exhaustive)]
)
def test_a_million_files_take_less_than_200_megabytes_in_all_workers_together(tmp_path, source):
    """From a list and from class folders, which are links to one folder: a million files would take minutes."""

    def measure(source):
        done = subprocess.run([sys.executable, "-c", SHARED, str(source)], capture_output=True, text=True, check=True)
        return map(int, done.stdout.split())

    names = [f"{file:032d}.mp4" for file in range(1000)]
    touch(tmp_path, *(f"files/{name}" for name in names), *files(5, "few/a", "few/b"))
    (tmp_path / "many").mkdir()
    with open(tmp_path / "many.csv", "w") as lines:
        for folder in (f"class_name_{folder:03d}" for folder in range(1000)):
            (tmp_path / "many" / folder).symlink_to(tmp_path / "files")
            lines.writelines(f"many/{folder}/{name} {folder}\n" for name in names)
    few, base = measure(tmp_path / "few")
    assert few == 8 and base > 10e6
    many, taken = measure(tmp_path / source)
    assert many == 900_000
    assert taken - base < 200e6
