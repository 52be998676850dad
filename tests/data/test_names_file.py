"""Files of class names."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.data.test_records import contents, touch
from video_rs.data.sources.names_file import names_text, read_class_names
from video_rs.data.sources.splits import load_splits
from video_rs.errors import UserError


@pytest.mark.parametrize("name", ["cn.json", "cn4.csv"])
def test_numbered_class_names_of_other_tools(assets, name, tmp_path):
    names = assets / "cases" / name
    assert read_class_names(str(names)) == ("run", "sit")
    touch(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "train.csv").write_text("1.mp4 1\n2.mp4 run\n")
    train = load_splits(str(tmp_path), val="train.csv", class_names=str(names), splits=["train"])["train"]
    assert contents(train, tmp_path) == [("1.mp4", 1), ("2.mp4", 0)] and train.class_names == ("run", "sit")


@pytest.mark.parametrize(
    "file, text",
    [
        ("names.txt", "\ufeffrun\r\n\n  sit\r\n"),
        ("names.txt", "0 run\n1 sit\n"),
        ("names.txt", "sit 1\nrun 0\n"),
        ("names.txt", "0:run\n1:sit\n"),
        ("names.txt", "run=0\nsit=1\n"),
        ("names.txt", "0 - run\n1 - sit\n"),
        ("names.txt", "0|run\n1|sit\n"),
        ("names.txt", "(0) run\n(1) sit\n"),
        ("names.txt", "id name\n0 run\n1 sit\n"),
        ("names.txt", "name\nrun\nsit\n"),
        ("names.txt", '"run"\n"sit"\n'),
        ("names.txt", "1,sit\n0,run\n"),
        ("names.txt", "id,name\n1,sit\n0,run\n"),
        ("names.txt", "0\trun\n1\tsit\n"),
        ("names.txt", '["run", "sit"]'),
        ("names.json", '["run", "sit"]'),
        ("names.json", '{"sit": 1, "run": 0}'),
        ("names.json", '{"run": "0", "sit": "1"}'),
        ("names.json", '{"1": "sit", "0": "run"}'),
        ("names.csv", "name,id\nsit,1\nrun,0\n"),
        ("names.csv", "sit,1\nrun,0\n"),
        ("names.csv", "id;name\n0;run\n1;sit\n"),
        ("names.csv", "class_id,class,videos\n0,run,7\n1,sit,9\n"),
        ("names.csv", "name\nrun\nsit\n"),
        ("names.csv", "run\nsit\n"),
        ("names.tsv", "id\tname\n0\trun\n1\tsit\n"),
    ],
)
def test_structured_class_name_files(tmp_path, file, text):
    (tmp_path / file).write_text(text, encoding="utf-8", newline="")
    assert read_class_names(str(tmp_path / file)) == ("run", "sit")


@pytest.mark.parametrize(
    "file, text, names",
    [
        ("names.txt", "2 fingers\n3 fingers\n", ("2 fingers", "3 fingers")),
        ("names.txt", "class 0\nclass 1\n", ("class 0", "class 1")),
        ("names.txt", "0\n1\n", ("0", "1")),
        ("names.txt", "c0\nc1\nd2\n", ("c0", "c1", "d2")),
        ("names.txt", "other\na 1\nb 2\n", ("other", "a 1", "b 2")),
        ("names.txt", 'n01440764 tench, Tinca\n5" screen\n', ("n01440764 tench, Tinca", '5" screen')),
        ("names.csv", 'id,name\n0,"sit, down"\n1,"say ""hi"""\n', ("sit, down", 'say "hi"')),
        ("names.csv", "id,name\n0,10\n1,20\n", ("10", "20")),
        ("names.csv", "name,id\n10,0\n20,1\n", ("10", "20")),
    ],
)
def test_names_with_numbers_and_commas(tmp_path, file, text, names):
    (tmp_path / file).write_text(text)
    assert read_class_names(str(tmp_path / file)) == names


@pytest.mark.parametrize(
    "file, text, words",
    [
        (
            "names.csv",
            "id,name\n1,run\n2,sit\n",
            "number 0; the numbers are 1 to 2, they must start at 0",
        ),
        ("names.txt", "1 run\n2 sit\n", "must start at 0"),
        (
            "names.json",
            '{"run": 0, "sit": 2}',
            "number 1; the numbers are 0 to 2, they must have no gaps",
        ),
        ("names.json", '{"0": "run", "0": "sit"}', "'run' and 'sit' both have the number 0"),
        ("names.json", '{"run": 0, "run": 1}', "'run' is repeated, as number 0 and 1"),
        ("names.csv", "id,name\n0,run\n1,run\n", "'run' is repeated"),
        ("names.csv", "id,name\n0,\n1,run\n", "a name is empty"),
        ("names.csv", 'id,name\n0,"run\n1,sit\n', "not csv"),
        ("names.csv", "-1,none\n0,run\n1,sit\n", "not a list of names and their numbers"),
        ("names.csv", "run,fast\nsit,slow\n", "not a list of names and their numbers"),
        ("names.csv", "id,name\n0,run\n1\n", "not a list of names and their numbers"),
        ("names.txt", "run,sit,jump\n", "not a list of names and their numbers"),
        ("names.txt", "n01440764\ttench\nn01443537\tgoldfish\n", "not a list of names and their numbers"),
        ("names.json", '{"run": 0', "not JSON (Expecting"),
        ("names.json", "[" * 100_000, "not JSON"),
        ("names.json", '{"run": ' + 5000 * "9" + "}", "not JSON"),
        ("names.json", '{"run": true, "sit": 1}', "not a list of names"),
        ("names.json", '{"id2label": {"0": "run"}}', "not a list of names"),
        ("names.txt", '{"id": 0, "name": "run"}\n{"id": 1, "name": "sit"}\n', "not JSON"),
        ("names.txt", "['run', 'sit']", "not JSON"),
        ("names.txt", "0: run\n1: sit\n", "YAML, not a list of names; give one name per line"),
        ("names.yaml", "[run, sit]\n", "YAML, not"),
        ("names.txt", "- run\n- sit\n", "YAML, not"),
        ("names.pbtxt", "item {\n  id: 1\n}\n", "protobuf text, not"),
        ("names.txt", "item {\n  id: 1\n}\n", "protobuf text, not"),
        ("names.txt", "<!DOCTYPE html>\n<html>\n", "XML, not"),
        ("names.txt", "(lp0\nVrun\np1\naVsit\np2\na.", "a pickle, not"),
        ("names.txt", "1. run\n2. sit\n", "must start at 0"),
        ("names.txt", "# id name\n0 run\n1 sit\n", "a comment, not"),
        ("names.txt", "| id | name |\n|---|---|\n| 0 | run |\n", "a Markdown table, not"),
        ("names.txt", "'run',\n'sit',\n", "part of a program, not"),
        ("names.txt", "run\0\nsit", "a binary file, not"),
        ("names.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "git lfs pull"),
        ("names.txt", " \n\n", "no names in it"),
        ("names.json", "[]", "no names in it"),
    ],
)
def test_other_formats_are_errors(tmp_path, file, text, words):
    (tmp_path / file).write_text(text)
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        read_class_names(str(tmp_path / file))
    message = str(error.value).replace(str(tmp_path), "")
    assert message.startswith(f"data.class_names=/{file}: ") and words in message
    assert "\n" not in message and len(message) < 350 and time.monotonic() - start < 1


def test_a_folder_and_a_huge_file_are_errors(tmp_path):
    (tmp_path / "names").mkdir()
    with open(tmp_path / "huge.txt", "wb") as file:
        file.truncate(2**36)  # without blocks on the disk
    for name, words in {"names": "a folder, not a file", "huge.txt": "larger than 16 MiB"}.items():
        with pytest.raises(UserError, match=words):
            read_class_names(str(tmp_path / name))


def test_every_line_of_a_plain_file_is_a_name(tmp_path):
    """As in the class_names.txt of shards."""
    (tmp_path / "class_names.txt").write_text("1 finger\n2 fingers\n")
    assert read_class_names(str(tmp_path / "class_names.txt"), plain=True) == ("1 finger", "2 fingers")


NAMES = st.lists(
    st.text(st.sampled_from('ab1,; -:{["<\u00e9'), min_size=1, max_size=6), min_size=1, unique_by=str.strip
)


@given(NAMES.map(lambda names: [name.strip() for name in names if name.strip()]).filter(bool))
@example(["1 finger", "2 fingers"])
@example(["0,run", "1,sit"])
@example(["- run", "- sit"])
def test_written_names_round_trip(tmp_path_factory, names):
    file = tmp_path_factory.mktemp("names") / "class_names.txt"
    file.write_text(names_text(names), encoding="utf-8")
    assert read_class_names(str(file)) == tuple(names)
    if all(name.isalpha() for name in names):
        assert names_text(names) == "".join(f"{name}\n" for name in names)
