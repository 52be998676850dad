"""Lists in all formats: the output of csv.writer, and paths with spaces and commas."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_rs.data.sources.lists import read_list
from video_rs.data.sources.splits import load_splits
from video_rs.errors import UserError


def entries(text, tmp_path, multi_label=False):
    file = tmp_path / "list.csv"
    file.write_text(text, encoding="utf-8", newline="")
    return [
        (entry.path.removeprefix(f"{tmp_path}/"), entry.label)
        for entry in read_list(str(file), str(tmp_path), multi_label)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lists")


FIELD = st.text("ab0 ,;\"'é\n\t", min_size=1, max_size=8).map(str.strip).filter(bool)
NAME = FIELD.map(lambda text: "a" + text)  # no number, and no absolute path
ROWS = st.lists(st.tuples(NAME, NAME), min_size=1, max_size=4)


@given(
    ROWS,
    st.sampled_from([".mp4", ".AVI", ""]),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_csv_writer_writes_is_read_back(folder, names, extension, header, end, quoting):
    rows = [(path + extension, label) for path, label in names]
    with open(folder / "written.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator=end, quoting=quoting).writerows([("path", "label")] * header + rows)
    text = (folder / "written.csv").read_bytes().decode()
    if header or not any("\t" in field for field in rows[0]):  # the first line names the delimiter
        assert entries(text, folder) == rows


WORDS = st.lists(st.text("ab0(&é'", min_size=1, max_size=4), min_size=1, max_size=3)
SPACED = st.tuples(WORDS, st.sampled_from([" ", ", ", ","])).map(lambda pair: pair[1].join(pair[0]))
SEPARATOR = st.sampled_from([" ", "  ", ",", ", ", " , ", "\t"])


@given(st.lists(st.tuples(SPACED, st.sampled_from([".mp4", ".JPEG"]), SEPARATOR, SPACED), min_size=1, max_size=4))
def test_paths_and_labels_with_spaces_and_commas(folder, lines):
    rows = [(f"a/{name}{extension}", f"run {label}") for name, extension, _, label in lines]
    text = "".join(f"{path}{line[2]}{label}\n" for (path, label), line in zip(rows, lines, strict=True))
    assert entries(text, folder) == rows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"say ""hi"".mp4",run\nb.mp4,"sit, ""down"""\n', [('say "hi".mp4', "run"), ("b.mp4", 'sit, "down"')]),
        ('"x, y.mp4" run\n"a b/c" 3\n', [("x, y.mp4", "run"), ("a b/c", "3")]),
        ('a.mp4\t"two\nlines"\nb.mp4\tc\n', [("a.mp4", "two\nlines"), ("b.mp4", "c")]),
        ("frames/a b,riding a bike\nframes/c d,3\n", [("frames/a b", "riding a bike"), ("frames/c d", "3")]),
        ("frames/a b,away c\nframes/c d 3\n", [("frames/a b,away", "c"), ("frames/c d", "3")]),
        ("<path> <label>\nPut, away/x 3\n", [("Put, away/x", "3")]),
        ("path;label\na/b\u3000run\n", [("a/b", "run")]),
        ("\n\nPath,label\na,b c\n", [("a", "b c")]),
        ('my "best" clip.mp4 1\nb.mp4,12" pizza\n', [('my "best" clip.mp4', "1"), ("b.mp4", '12" pizza')]),
        ("# path label\na.mp4 x\n", [("a.mp4", "x")]),
        ("path,labels\na.mp4,x\n\n,\n", [("a.mp4", "x")]),
        ("Label\tnote\tPath\nx\t-\ta, b.mp4\n", [("a, b.mp4", "x")]),
        ('path,label,note\n"a\nb.mp4",x,"1, 2"\n', [("a\nb.mp4", "x")]),
    ],
)
def test_other_forms(text, expected, tmp_path):
    assert entries(text, tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a.mp4,run\nb.mp4,"run\nc.mp4,run\n', ":2: not csv (unexpected end of file); check for an unclosed q"),
        ('path,label,note\n"a\nb.mp4",x,y\n' + "z" * 200, f":4: expected 'path,label,note'; found '{'z' * 100}'"),
        ("a.mp4,run\n" + "z" * 200, f":2: '{'z' * 100}' is not a line 'path label'"),
        ("two words.mp4\n", ":1: 'two words.mp4' is not a line 'path label'"),
    ],
)
def test_bad_lines_are_shown_with_their_number(text, message, tmp_path):
    with pytest.raises(UserError) as error:
        entries(text, tmp_path)
    assert f"{tmp_path}/list.csv{message}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("first", ["v/0 run", "v/0,run", "gone/0,run fast"])
def test_a_comma_in_the_name_of_a_folder_makes_no_class(first, tmp_path):
    (tmp_path / "Put" / "other").mkdir(parents=True)  # a folder of folders
    (tmp_path / "Put, away" / "x").mkdir(parents=True)
    text = f"{first}\nPut, gone/x run\nPut, away/x walk\n"
    assert entries(text, tmp_path)[-2:] == [("Put, gone/x", "run"), ("Put, away/x", "walk")]
    text = f"{first}\nPut, away/x 3 1\n"
    assert entries(text, tmp_path)[-1] == ("Put, away/x", "1")


def test_existing_files_tell_csv_from_paths_with_commas(tmp_path):
    (tmp_path / "v" / "1").mkdir(parents=True)
    text = "v/0,riding a bike\nv/1,sit 2 3\nlast\t0\n"
    assert entries(text, tmp_path) == [("v/0", "riding a bike"), ("v/1", "sit 2 3"), ("last", "0")]
    (tmp_path / "clip,12").touch()
    assert entries("clip,12 0\nclip,13 1\n", tmp_path) == [("clip,12", "0"), ("clip,13", "1")]
    assert entries('v/0 run\n"v/1","sit down"\n', tmp_path) == [("v/0", "run"), ("v/1", "sit down")]
    assert entries('v/0,run\n"a "b"\trun/3\n', tmp_path)[1] == ('a "b', "run/3")


def test_bad_first_lines(tmp_path):
    for text, message in [
        ("z" * 200_000, ":1: not csv .field larger than"),
        ("\n\nDatei,Klasse\na.mp4,0\n", ":3: 'Datei,Klasse' is not the path of a video"),
    ]:
        with pytest.raises(UserError, match=message):
            entries(text, tmp_path)


def test_segments_of_a_file(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    text = "path,label,Start Time,End\na.mp4,run,0.5,1\na.mp4,sit,1,2.5\nb.mp4,run,,\nb.mp4,sit,2,-1\n"
    (tmp_path / "train.csv").write_text(text.replace("Start Time", "start_time"))
    train = load_splits(str(tmp_path), val="train.csv", splits=["train"])["train"]
    assert train.segments.dtype == np.float64
    assert train.segments.tolist() == [[0.5, 1], [1, 2.5], [0, 0], [2, 0]]
    assert list(train.labels) == [0, 1, 0, 1]
    part = train.subset(np.array([3, 0]))
    assert part.segments.tolist() == [[2, 0], [0.5, 1]] and part.path(1) == f"{tmp_path}/a.mp4"
    fingerprint = train.fingerprint()
    (tmp_path / "train.csv").write_text(text.replace("2.5", "2.25").replace("Start Time", "t_start"))
    assert load_splits(str(tmp_path), val="train.csv", splits=["train"])["train"].fingerprint() != fingerprint
    (tmp_path / "train.csv").write_text("path,label\na.mp4,run\nb.mp4,sit\n")
    assert load_splits(str(tmp_path), val="train.csv", splits=["train"])["train"].segments is None


@pytest.mark.parametrize(
    ("start", "end"), [("x", "1"), ("1", "0:02"), ("-1", "2"), ("2", "2"), ("nan", ""), ("1", "inf")]
)
def test_bad_segments(start, end, tmp_path):
    with pytest.raises(
        UserError, match=f"list.csv:2: expected a start and a later end in seconds; found '{start}, {end}".rstrip()
    ):
        entries(f"path,label,start,end\na.mp4,run,{start},{end}\n", tmp_path)
