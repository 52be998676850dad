import pickle

import numpy as np
import pytest

from video_rs.data.records import Records, load_splits, source_of, split_off
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
    other = load_splits(str(tmp_path), val_fraction=0.2, seed=1)["val"]
    assert set(contents(other, tmp_path)) != val


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
    touch(tmp_path, "videos/1.mp4")
    (tmp_path / "mine.txt").write_text(f"{tmp_path}/videos/1.mp4 0\n1.mp4 0\n")
    splits = load_splits(str(tmp_path / "videos"), train=str(tmp_path / "mine.txt"), val=str(tmp_path / "mine.txt"))
    assert contents(splits["train"], tmp_path) == [("videos/1.mp4", 0)] * 2


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


def test_clips_of_one_source_stay_together():
    names = [
        f"/k/{c}/{'abcdefghij' + v}_{s:06d}_{s + 10:06d}.mp4" for c in "xy" for v in "0123456789" for s in (0, 10, 20)
    ]
    names += [f"/k/z/v_Bike_g{g:02d}_c{c:02d}.avi" for g in range(10) for c in range(3)]
    records = Records(names, [0] * 30 + [1] * 30 + [2] * 30, "xyz")
    train, val = split_off(records, 0.2, seed=0)
    sources = [{source_of(part.path(i)) for i in range(len(part))} for part in (train, val)]
    assert not sources[0] & sources[1]
    assert len(train) + len(val) == 90 and set(val.labels) == {0, 1, 2} and len(val) == 18


def test_sources_shared_by_classes_count_for_both():
    names = [f"{'xy'[c]}/{v:011d}_000000_000010.mp4" for c in range(2) for v in range(5 * c, 5 * c + 10)]
    train, val = split_off(Records(names, [0] * 10 + [1] * 10, "xy"), 0.5, seed=0)
    sources = [{source_of(part.path(i)) for i in range(len(part))} for part in (train, val)]
    assert not sources[0] & sources[1] and list(np.bincount(val.labels)) == [5, 5]


def test_a_class_with_one_source_stays_in_training():
    train, val = split_off(Records(["a/1.mp4", "b/1.mp4", "b/2.mp4"], [0, 1, 1], "ab"), 0.1, 0)
    assert list(train.labels) == [0, 1] and list(val.labels) == [1]


def test_class_names_from_a_file(tmp_path):
    touch(tmp_path, "train/b/1.mp4", "val/c/1.mp4", "l/1.mp4")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    splits = load_splits(str(tmp_path), class_names=str(tmp_path / "names.txt"))
    assert splits["train"].label(0) == 1 and splits["val"].label(0) == 2
    (tmp_path / "list.txt").write_text("l/1.mp4 2\nl/1.mp4 b\n")
    records = load_splits(
        str(tmp_path), test=str(tmp_path / "list.txt"), class_names=str(tmp_path / "names.txt"), splits=["test"]
    )
    assert list(records["test"].labels) == [2, 1]


def test_missing_files_are_dropped_and_counted(tmp_path):
    touch(tmp_path, *(f"x/{i}.mp4" for i in range(96)))
    (tmp_path / "train.txt").write_text("".join(f"x/{i}.mp4 {i % 2}\n" for i in range(100)))
    (tmp_path / "val.txt").write_text("x/0.mp4 0\n")
    train = load_splits(str(tmp_path))["train"]
    assert len(train) == 96 and train.num_missing == 4
    assert train.missing == [f"{tmp_path}/x/{i}.mp4" for i in (96, 97, 98)]
    with pytest.raises(UserError, match=r"4 of 100 listed files are missing.*max_missing=0.03.*96.mp4.*97.mp4.*98.mp4"):
        load_splits(str(tmp_path), max_missing=0.03)


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
        ("label,youtube_id,time_start,time_end,split\na,xyz,one,2,train\n", r"train.csv:2: 'a,xyz,one,2,train'"),
        ("label,youtube_id,time_start,time_end,split\na,xyz\n", r"train.csv:2: 'a,xyz'"),
        ("youtube_id,time_start,time_end,split\nxyz,1,2,test\n", r"train.csv:1: .*no column 'label'"),
    ]:
        train.write_text(text)
        failure(match, root=str(tmp_path), max_missing=1)
    train.write_bytes(b"\xff\xfe\x00")
    failure("UTF-8", root=str(tmp_path))


def test_labels_outside_the_class_count(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "train.csv").write_text("1.mp4 0\n2.mp4 7\n")
    failure(r"train.csv:2: label '7' is not one of 0 to 4", root=str(tmp_path), num_classes=5)
    (tmp_path / "train.csv").write_text("1.mp4 run\n2.mp4 jump\n")
    (tmp_path / "val.csv").write_text("1.mp4 run\n2.mp4 swim\n")
    failure(r"val.csv:2: label 'swim' is not one of the 2 class names", root=str(tmp_path))
    (tmp_path / "names.txt").write_text("run\njump\nrun\n")
    failure(r"'run' is in it twice", root=str(tmp_path), class_names=str(tmp_path / "names.txt"))


def test_empty_and_absent_data(tmp_path):
    failure("no dataset: set data.root")
    failure("no such folder", root=str(tmp_path / "nowhere"))
    failure("no such file or folder", train=str(tmp_path / "nowhere.csv"))
    failure("no train, val or test folder or list and no class folders", root=str(tmp_path))
    (tmp_path / "train").mkdir()
    failure("train split of .* is empty", root=str(tmp_path))
    touch(tmp_path, "train/a/1.mp4", "train/b/1.mp4")
    failure("val split of .* is empty: too few files", root=str(tmp_path))
    assert len(load_splits(str(tmp_path), splits=["train"])["train"]) == 2
    touch(tmp_path, "only_val/val/a/1.mp4")
    failure("no train split", root=str(tmp_path / "only_val"))
    failure("no such file", root=str(tmp_path), class_names=str(tmp_path / "names.txt"))


def test_images_and_videos_do_not_mix(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "train/a/2.jpg", "val/a/3.mp4")
    failure("images and videos are mixed", root=str(tmp_path))


def test_records_are_packed():
    paths = [f"/data/übung/{i}.mp4" for i in range(1000)]
    records = pickle.loads(pickle.dumps(Records(paths, np.arange(1000) % 7, [str(i) for i in range(7)])))
    assert [records.path(i) for i in (0, 1, 999)] == [paths[0], paths[1], paths[999]]
    assert records.label(8) == 1 and len(records) == 1000 and records.labels.dtype == np.int32
    part = records.subset(np.array([5, 3]))
    assert part.path(0) == paths[5] and part.label(1) == 3
    assert not any(isinstance(value, list) and value for value in vars(records).values())
