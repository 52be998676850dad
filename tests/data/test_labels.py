"""Label sets: packing, lists, held-out splits, errors."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_rs.data.sources.lookalikes import difference
from video_rs.data.sources.records import LabelSets, Records
from video_rs.data.sources.splits import load_splits
from video_rs.errors import UserError

SETS = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8)


@given(SETS)
def test_packing(sets):
    packed, unique = LabelSets.pack(sets), [list(dict.fromkeys(each)) for each in sets]
    assert [each.tolist() for each in map(packed.__getitem__, range(len(packed)))] == unique
    assert packed.first().tolist() == [each[0] if each else -1 for each in unique]
    assert (packed.values.dtype, packed.ends.dtype) == (np.int32, np.int64)


def listed(folder, *lines, **options):
    """Return the training records of a list of empty files."""
    for number in range(len(lines)):
        (folder / f"{number}.mp4").touch()
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    (folder / "val.csv").write_text(f"{lines[0]}\n")
    return load_splits(str(folder), **{"multi_label": True, **options})["train"]


def test_any_number_of_labels_a_file(tmp_path):
    records = listed(
        tmp_path, "0.mp4,run;jump high", "1.mp4", "2.mp4,", '3.mp4,"a, b ; run;run"', "4.mp4 jump high", '5.mp4,""'
    )
    assert records.class_names == ("a, b", "jump high", "run")
    assert [records.label_names(i) for i in range(6)] == [
        ("run", "jump high"),
        (),
        (),
        ("a, b", "run"),
        ("jump high",),
        (),
    ]
    assert records.labels.tolist() == [2, -1, -1, 0, 1, -1]
    assert "6 files, 3 classes, 0.83 labels per file" in records.describe()
    some = records.subset(np.array([4, 1, 3]))
    assert [some.label_names(i) for i in range(3)] == [("jump high",), (), ("a, b", "run")]


def test_numbered_labels(tmp_path):
    records = listed(tmp_path, "0.mp4 0;3", "1.mp4 3;03", "2.mp4")
    assert records.class_names == ("0", "1", "2", "3")
    assert [records.label_set(i).tolist() for i in range(3)] == [[0, 3], [3], []]


def test_a_class_folder_is_one_label(tmp_path):
    for split in ("train", "val"):
        for name in ("a;b", "c"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / f"{split}.mp4").touch()
    records = load_splits(str(tmp_path), multi_label=True)["train"]
    assert [records.label_names(i) for i in range(2)] == [("a;b",), ("c",)]
    assert not load_splits(str(tmp_path))["train"].multi_label


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (
            ["0.mp4 a;b", "1.mp4 c"],
            {"multi_label": False},
            "train.csv:1: 'a;b' is more than one label: set data",
        ),
        (["0.mp4,"], {"multi_label": False}, "'0.mp4,' is not a line 'path label'; data.multi_label=true allows files"),
        (["0.mp4 a;;b"], {}, "train.csv:1: 'a;;b' has an empty label before or after a ';': write label1;label2"),
        (["0.mp4 a;"], {}, "train.csv:1: 'a;' has an empty label"),
        (["0.mp4 1;-2"], {}, "train.csv:1: label '-2' is neither a class number"),
        (["0.mp4 1 2"], {}, "train.csv:1: several numbers after the path, '1 2': write 1;2 for two labels"),
        (["0.mp4 1", "1.mp4 a;2"], {}, "label 'a' is a name, but '1'"),
        (["0.mp4", "1.mp4"], {}, "has no labels"),
        (["0.mp4 0;7"], {"num_classes": 3}, "train.csv:1: label '7' is not one of 0 to 2"),
    ],
)
def test_bad_lists_are_one_line(tmp_path, lines, options, message):
    with pytest.raises(UserError) as error:
        listed(tmp_path, *lines, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_names_of_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("a;b\nc\n")
    names = {"class_names": str(tmp_path / "names.txt")}
    single = listed(tmp_path, "0.mp4 a;b", "1.mp4 c", multi_label=False, **names)
    assert single.labels.tolist() == [0, 1]  # a name that holds a ';'
    with pytest.raises(UserError, match=r"train.csv:1: label 'a' is not one of the 2 class names"):
        listed(tmp_path, "0.mp4 c;a", **names)


def test_fingerprints():
    paths, names = ["x/0.mp4", "x/1.mp4"], ("a", "b")
    assert Records(paths, [0, 1], names).fingerprint() == "38515a195b4e"  # checkpoints hold it: never to change
    prints = {
        Records(paths, LabelSets.pack(sets), names).fingerprint() for sets in ([[0], [1]], [[0, 1], [1]], [[0], []])
    }
    assert len(prints | {"38515a195b4e"}) == 4


def test_a_split_is_made_by_the_first_label(tmp_path):
    lines = [f"{i}.mp4,{('a;b', 'b;a')[i % 2] if i < 40 else ''}" for i in range(42)]
    for number in range(42):
        (tmp_path / f"{number}.mp4").touch()
    (tmp_path / "train.csv").write_text("\n".join(lines))
    made = load_splits(str(tmp_path), multi_label=True)
    assert np.bincount(made["val"].labels + 1).tolist() == [1, 2, 2]  # of two files without labels one
    assert np.bincount(made["train"].labels + 1).tolist() == [1, 18, 18]
    assert all(len(made["val"].label_set(i)) == (0, 2, 2)[made["val"].label(i) + 1] for i in range(5))


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
ALIKE = [(COMPOSED, DECOMPOSED), ("Run", "run"), ("run ", "run"), ("ru\u200bn", "run"), ("a\\b", "a/b")]


@pytest.mark.parametrize("written, name", [*ALIKE, (DECOMPOSED, COMPOSED)])
def test_labels_match_similar_class_names(tmp_path, written, name):
    (tmp_path / "names.json").write_text(json.dumps([name, "other"]))
    rows = [("0.mp4", written), ("1.mp4", "other")]
    for file, _ in rows:
        (tmp_path / file).touch()
    with open(tmp_path / "train.csv", "w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([("label", "path"), *((label, file) for file, label in rows)])
    options = {"val": "train.csv", "splits": ["train"], "class_names": str(tmp_path / "names.json")}
    train = load_splits(str(tmp_path), **options)["train"]
    assert list(train.labels) == [0, 1]
    assert written == "run " or train.notes[0].endswith(difference(written, name))  # blanks around a field are dropped


@pytest.mark.parametrize("written, name", [*ALIKE[:4], (DECOMPOSED, COMPOSED)])
def test_similar_class_folders_of_splits_are_one_class(tmp_path, written, name):
    for folder in (f"train/{name}", "train/other", f"val/{written}", "val/other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.mp4").touch()
    splits = load_splits(str(tmp_path), splits=["train", "val"])
    assert sorted(splits["val"].labels) == [0, 1] and splits["val"].class_names == splits["train"].class_names
    note = f"labels matched to class names that look the same: {difference(written, name)}"
    assert note in splits["val"].describe() and not splits["train"].notes


def test_a_label_similar_to_two_classes_is_an_error(tmp_path):
    for folder in (f"train/{COMPOSED}", f"train/{DECOMPOSED}", "val/Cafe\u0301"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.mp4").touch()
    with pytest.raises(UserError) as error:
        load_splits(str(tmp_path))
    first = r"'Cafe\u0301' has C, 'cafe\u0301' has c; "
    second = r"'Cafe\u0301' has C + a + f + e + ..., 'caf\xe9' has c + a + f + U+00E9"
    assert first + second in str(error.value) and "\n" not in str(error.value)
    assert len(load_splits(str(tmp_path), val="train", splits=["train"])["train"].class_names) == 2
