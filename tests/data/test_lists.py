"""Lists in all formats: the output of csv.writer, and paths with spaces and commas."""

import csv
import json
import unicodedata

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
    first = "".join(rows[0])  # without a header its first line names the delimiter
    if header or ("\t" not in first and "\n" not in first):
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


def test_lists_with_segments(tmp_path):
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
def test_invalid_segments_are_errors(start, end, tmp_path):
    with pytest.raises(
        UserError, match=f"list.csv:2: expected a start and a later end in seconds; found '{start}, {end}".rstrip()
    ):
        entries(f"path,label,start,end\na.mp4,run,{start},{end}\n", tmp_path)


VIDEOS = [f"videos/{name}{number}.mp4" for name in ("run", "sit") for number in range(4)]


@pytest.fixture
def dataset(tmp_path):
    """Return a function that writes a list and empty files, and returns the records of all splits."""

    def write(text, name="train.csv", *, files=VIDEOS, encoding="utf-8", **options):
        for path in (tmp_path / file for file in files):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return load_splits(**{"root": str(tmp_path), "val_fraction": 0.25, **options})

    return write


def labels(*records):
    """Return the label of each file, by its name."""
    return {part.path(i).split("/")[-1]: part.label_names(i)[0] for part in records for i in range(len(part))}


RIGHT = {path[7:]: path[7:10] for path in VIDEOS}


def table(header, *columns, mark=","):
    """Return a csv of the videos with their labels. Further columns are a text, or a list with a text per video."""
    columns = [[column] * len(VIDEOS) if isinstance(column, str) else column for column in columns]
    return "\n".join([header, *(mark.join([path, path[7:10], *more]) for path, *more in zip(VIDEOS, *columns))]) + "\n"


PLAIN = table("path,label")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(table("path;label", mark=";"), id="semicolons"),
        pytest.param("\ufeff" + PLAIN, id="byte order mark"),
        pytest.param(table("path\tlabel", mark="\t").encode("utf-16"), id="utf-16 with tabs"),
        pytest.param(PLAIN.replace("\n", "\r\n"), id="crlf"),
        pytest.param(PLAIN.replace("\n", "\r"), id="cr"),
        pytest.param(table("File Name,CATEGORY"), id="other names"),
        pytest.param(table('"Video Path","action"'), id="quoted header"),
        pytest.param("# it's mine\n\n" + PLAIN + "\n# end\n", id="comments"),
        pytest.param(PLAIN.replace("path", "# path"), id="commented header"),
        pytest.param("\n".join(f"{row},," for row in PLAIN.splitlines()), id="trailing delimiters"),
        pytest.param("\n".join(f"{path[7:10]},{path}" for path in VIDEOS), id="swapped"),
        pytest.param(
            "path,label\n" + "".join(f"{path[7:10]},{path}\n" for path in VIDEOS), id="swapped under a header"
        ),
        pytest.param(PLAIN.replace("/", "\\"), id="backslashes"),
        pytest.param(PLAIN.replace("videos/", "D:\\my data\\videos\\"), id="drive"),
        pytest.param(PLAIN.replace("videos/", "\\\\server\\share\\videos\\"), id="network share"),
        pytest.param(PLAIN.replace("videos", "Videos").replace("mp4", "MP4"), id="case"),
        pytest.param(PLAIN.replace(".mp4", ".mp4\u200b"), id="zero width"),
        pytest.param(PLAIN.replace("videos/", "./videos//"), id="slashes"),
        pytest.param(PLAIN.replace(".mp4", ""), id="no extensions"),
        pytest.param("sep=;\r\n" + table("path;label", mark=";"), id="delimiter of Excel"),
        pytest.param(table("path|label", mark="|"), id="vertical bars"),
        pytest.param(PLAIN.replace("s/sit", "s/\uff53\uff49t"), id="wide characters"),
    ],
)
def test_lists_of_other_programs_are_read(text, dataset):
    splits = dataset(text)
    assert labels(splits["train"], splits["val"]) == RIGHT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table("x", mark=";")[2:], ":1: 'videos/run0.mp4;run' is not a line 'path label'; put a comma"),
        (PLAIN.encode("utf-16-le"), ": not a text file; save it as csv in UTF-8"),
        (PLAIN.replace("run", "l\xe4uft").encode("latin-1"), ": not a text file in UTF-8; save"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", ": a Git LFS pointer, not the file"),
        (b"\x00\x00\x00\x1cftypisom" * 99, ": not a text file; save"),
        ("", " is empty: no files in it"),
        (PLAIN + "x" * 200_000, ":10: not csv (field larger than field limit (131072))"),
        (PLAIN + "videos/run1.mp4," + "y" * 50_000, ":10: "),
        ("videos/run1.mp4 run\n" + "y " * 60_000 + "z.mp4", ":2: 'y y y"),  # was slow
        (PLAIN + "videos/" + "y" * 50_000 + ".mp4,run", "1 of 9 listed files are missing"),
        (PLAIN + "y" * 5_000 + "/a.mp4,run", "1 of 9 listed files are missing"),
        (PLAIN + "run,videos/gone.mp4", ":10: expected a path and its label; found 'run, videos/gone.mp4'"),
        (table("path,klass"), ":1: 'path,klass' is not the path of a video or image, unlike the next line"),
        (PLAIN.replace("path", "video_id").replace(".mp4", ""), ":1: 'video_id,label' is not the path of a video"),
        (PLAIN.replace("label", "tags").replace(".mp4", ""), ":1: 'path,tags' is not the path of a video"),
        (
            table("x", "0.0", "1.5")[2:],
            ":1: several columns after the path, 'run,0.0,1.5': name the columns in a header",
        ),
        (table("x", "train")[2:], ":1: several columns after the path, 'run,train': name the columns in a header"),
        (table("x", "0", "")[2:], ":1: several columns after the path, 'run,0,': name the columns in a header"),
        (
            PLAIN + 'videos/run1.mp4,"say \\"hi\\""\n',
            """:10: a quote after a backslash in 'videos/run1.mp4,"say \\"hi\\""'; write a quote in a field as \"\"""",
        ),
        (table("path,label,split", "dev"), ":2: split 'dev' is not train, val or test; correct it, or rename"),
        (
            table("path,label,split", "test"),
            ": the split column has no rows for train, only for test",
        ),
    ],
)
def test_unreadable_lists_are_short_errors(text, message, dataset):
    with pytest.raises(UserError) as error:
        dataset(text)
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 450


def test_paths_in_other_unicode_forms_are_resolved(dataset):
    files = ["vid\u00e9os/r\u00f6l 1.mp4", "vid\u00e9os/sit.mp4"]
    text = "path,label\n" + "".join(f"{unicodedata.normalize('NFD', file)},{file[8]}\n" for file in files)
    train = dataset(text, files=files, val="train.csv")["train"]
    assert [train.path(i).split("/")[-1] for i in range(2)] == ["r\u00f6l 1.mp4", "sit.mp4"]
    assert (
        r"2 paths do not exist as written and were resolved; the first: 'vide\u0301os/ro\u0308l 1.mp4' is '"
        in train.describe()
    )
    with pytest.raises(UserError, match=r"train.csv:2: two files match: .* has T, .* has t; correct the path"):
        dataset("path,label\nv/SIT.mp4,a\n", files=["v/sit.mp4", "v/siT.mp4"])


def test_paths_relative_to_the_list_or_home_are_resolved(dataset, tmp_path, monkeypatch):
    files = [f"lists/{path}" for path in VIDEOS]
    splits = dataset(PLAIN, "lists/mine.csv", files=files, train="lists/mine.csv")
    assert labels(splits["train"], splits["val"]) == RIGHT
    monkeypatch.setenv("HOME", str(tmp_path))
    for home in (f"file://{tmp_path}", "~", "$HOME"):
        splits = dataset(PLAIN.replace("videos/", f"{home}/videos/"), files=VIDEOS)
        assert labels(splits["train"], splits["val"]) == RIGHT
    assert (
        "8 paths do not exist as written and were resolved; the first: '$HOME/videos/run0.mp4' is '"
        in splits["train"].describe()
    )


def test_leading_folders_of_another_machine_are_dropped_for_all_paths(dataset):
    rows = ["path,label", "C:\\a\\run\\1.mp4,run", "c:\\A\\sit\\2.mp4,sit", "C:\\b\\run\\1.mp4,run"]
    train = dataset("\n".join(rows), files=["run/1.mp4", "sit/2.mp4"], val="train.csv", max_missing=0.5)["train"]
    assert labels(train) == {"1.mp4": "run", "2.mp4": "sit"} and train.num_missing == 1


def test_unused_columns_are_logged(dataset):
    assert dataset(table("path,label,label", "x"))["train"].describe().endswith("; columns not used: label")
    train = dataset(table("path,label,label_id,fps,num_frames,start_frame", "0", "25", "300", "7"))["train"]
    assert train.describe().endswith("; columns not used: label_id, fps, num_frames, start_frame")
    text = "".join(json.dumps({"video": path, "label": path[7:10], "note": [1]}) + "\n" for path in VIDEOS)
    assert dataset(text, "mine.jsonl", train="mine.jsonl")["train"].describe().endswith("; columns not used: note")
    text = table("path,label,source,start,end,split", [*"01230123"], "0", "1", "train")
    assert "not used" not in dataset(text)["train"].describe()


def test_a_duration_is_that_of_the_segment_if_there_is_a_start(dataset):
    train = dataset(table("path,label,start,duration", "0.5", "2"), val="train.csv")["train"]
    assert set(map(tuple, train.segments)) == {(0.5, 2.5)} and "not used" not in train.describe()
    train = dataset(table("path,label,duration", "2"), val="train.csv")["train"]
    assert train.segments is None and train.describe().endswith("; columns not used: duration")
    with pytest.raises(UserError, match="train.csv:2: expected a start and a later end in seconds; found '1, 0'"):
        dataset(table("path,label,start,duration", "1", "0"))


SPLITS = ["Training", "train", "validation", "TEST"] * 2


def test_one_list_for_split_folders_without_classes(dataset):
    files = [f"{split}/{name}{i}.mp4" for split in ("train", "test") for name in ("run", "sit") for i in range(4)]
    rows = [f"{file},{file.split('/')[1][:3]},{file.split('/')[0]}" for file in files]
    splits = dataset("\n".join(["path,label,split", *rows]), "labels.csv", files=files)
    assert len(splits["train"]) == 6 and len(splits["val"]) == 2 and labels(splits["test"]) == RIGHT


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("data.csv", {}),  # the only list of the root
        ("mine/all.csv", {"list": "mine/all.csv"}),
        ("mine/all.csv", {"train": "mine/all.csv"}),
        ("train.csv", {}),
    ],
)
def test_one_list_of_all_splits(name, options, dataset):
    splits = dataset(table("path,label,Split", SPLITS), name, **options)
    for split, numbers in {"train": "01", "val": "2", "test": "3"}.items():
        assert labels(splits[split]) == {file: name for file, name in RIGHT.items() if file[3] in numbers}
    assert not splits["val"].held_out and not splits["test"].used_as_test


def test_a_list_of_all_splits_with_another_split_list(dataset, tmp_path):
    (tmp_path / "val.csv").write_text("path,label\nvideos/sit0.mp4,sit\n")
    text = table("path,label,subset", SPLITS)
    train = dataset(text, "all.csv", train="all.csv", val="val.csv")
    assert labels(train["val"]) == {"sit0.mp4": "sit"}
    assert f"2 rows of split val are not used: that split is read from {tmp_path}/val.csv" in train["train"].describe()
    assert len(train["test"]) == 2
    assert len(dataset(text, "all.csv", train="all.csv")["val"]) == 2  # not those of val.csv
    text = text.replace("validation", "train")
    assert all(dataset(text, "all.csv", **{key: "all.csv"})["val"].held_out for key in ("train", "list"))
    text = table("path,label,subset", SPLITS)
    assert labels(dataset(text, "train.csv")["val"]) == {"sit0.mp4": "sit"}
    test = dataset(table("path,label,split", "val"), "val.csv", train="train.csv", test="val.csv")["test"]
    assert len(test) == 8 and f"all rows of {tmp_path}/val.csv belong to split val" in test.describe()


def test_a_kinetics_csv_with_all_splits(dataset):
    files = [f"x/abcdefghij{i}_000000_000010.mp4" for i in range(8)]
    rows = [f"{'ab'[i % 2]},abcdefghij{i},0,10,{'train' if i < 4 else ('validate', 'test')[i > 5]},0" for i in range(8)]
    splits = dataset("\n".join(["label,youtube_id,time_start,time_end,split,is_cc", *rows]), "k400.csv", files=files)
    assert splits["train"].describe().endswith("; columns not used: is_cc")
    assert [len(splits[split]) for split in ("train", "val", "test")] == [4, 2, 2]


@pytest.mark.parametrize("name", ["train.jsonl", "metadata.jsonl"])
def test_json_lines(name, dataset):
    rows = [{"file_name": path, "label": int(path[7:10] == "sit"), "start": 0.5, "end": None} for path in VIDEOS]
    splits = dataset("".join(json.dumps(row) + "\n\n" for row in rows), name)
    assert labels(splits["train"], splits["val"]) == {file: str(int(name == "sit")) for file, name in RIGHT.items()}
    assert splits["val"].segments.tolist() == [[0.5, 0], [0.5, 0]]


def test_json_lines_with_several_labels(dataset):
    text = "".join(json.dumps({"path": path, "labels": ["a", path[7:10]]}) + "\n" for path in VIDEOS)
    train = dataset(text, "train.jsonl", val="train.jsonl", multi_label=True)["train"]
    assert {train.label_names(i) for i in range(8)} == {("a", "run"), ("a", "sit")}


@pytest.mark.parametrize("line", ["{oops", "[1]", "3", "[" * 100_000, '{"path": "a.mp4", "label": ' + "9" * 5000 + "}"])
def test_invalid_json_lines_are_errors(line, dataset):
    with pytest.raises(UserError, match="train.jsonl:2: expected a JSON object") as error:
        dataset('{"path": "a.mp4", "label": "x"}\n' + line, "train.jsonl")
    assert len(str(error.value)) < 300
    with pytest.raises(UserError, match="the keys of its objects are path, text; name the path 'path' and the label"):
        dataset('{"path": "a.mp4", "text": "x"}\n', "train.jsonl")


@pytest.mark.parametrize("label", [{"id": 3, "name": "run"}, [{"name": "run"}]])
def test_json_objects_in_json_lines(label, dataset):
    with pytest.raises(UserError, match="train.jsonl:1: expected a text, a number or a list of these .* found '{"):
        dataset(json.dumps({"path": "a.mp4", "label": label}), "train.jsonl")
    rows = [{"path": path, "label": path[7:10], "note": label} for path in VIDEOS]
    train = dataset("".join(json.dumps(row) + "\n" for row in rows), "train.jsonl", val="train.jsonl")["train"]
    assert labels(train) == RIGHT and train.describe().endswith("; columns not used: note")


def test_hugging_face_metadata(dataset, tmp_path):
    rows = PLAIN.replace("path", "file_name").replace("videos/", "clips/")
    files = [f"{split}/clips/{path[7:]}" for split in ("train", "test") for path in VIDEOS]
    dataset(rows, "test/metadata.csv", files=files, train="test")
    splits = dataset(rows, "train/metadata.csv", files=files)
    assert labels(splits["train"], splits["val"]) == labels(splits["test"]) == RIGHT
    assert splits["test"].path(0) == f"{tmp_path}/test/clips/run0.mp4"


def test_metadata_without_labels_is_ignored_beside_class_folders(dataset):
    files = [f"{split}/{name}/1.mp4" for split in ("train", "val") for name in "ab"]
    splits = dataset("file_name,text\na/1.mp4,one\n", "train/metadata.csv", files=files)
    assert splits["train"].class_names == ("a", "b") and len(splits["train"]) == 2
    with pytest.raises(UserError, match="metadata.csv:1: 'file_name,text' is not the path of a video or image, unlike"):
        dataset("file_name,text\nrun0.mp4,one\n", "videos/metadata.csv", train="videos")


def test_val_holdout_keeps_segments_of_a_file_together(dataset):
    rows = [f"{path},{path[7:10]},{start},{start + 1}" for path in VIDEOS for start in range(9)]
    splits = dataset("\n".join(["path,label,begin,stop", *rows]))
    parts = [labels(splits[name]) for name in ("train", "val")]
    assert not parts[0].keys() & parts[1].keys() and {**parts[0], **parts[1]} == RIGHT
    assert len(splits["val"]) == 18 and splits["val"].describe().startswith("18 segments, ")


def test_a_label_equal_to_a_folder_name_is_not_a_path(dataset):
    files = [f"{name}/{i}/1.jpg" for name in ("run", "sit") for i in range(4)]
    rows = ["run/gone,run", *(f"{file[:5]},{file[:3]}" for file in files)]
    for text in ("\n".join(rows), "\n".join(["path,label", *rows])):
        train = dataset(text, files=files, val="train.csv", max_missing=0.2)["train"]
        assert len(train) == 8 and train.class_names == ("run", "sit") and train.num_missing == 1
    rows = ["gone,", *(f"{file[:5]},{file[:3]}" for file in files)]
    options = {"files": files, "val": "train.csv", "max_missing": 0.2, "multi_label": True}
    train = dataset("\n".join(["path,label", *rows]), **options)["train"]
    assert len(train) == 8 and train.class_names == ("run", "sit")
