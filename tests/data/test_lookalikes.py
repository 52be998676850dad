"""Names that look the same but are not."""

import pytest

from video_rs.data.sources.lookalikes import PathFinder, difference, folded, group

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    "name, known",
    [
        (COMPOSED, DECOMPOSED),
        ("Run", "run"),
        ("STRASSE", "stra\u00dfe"),
        ("run ", "run"),
        ("\u00a0run", "run"),
        ("ru\u200bn\ufeff", "run"),
        ("\u2708\ufe0f", "\u2708"),
        ("a\\B.mp4", "a/b.mp4"),
        ("a /b.mp4", "a/b.mp4"),
        ("stand  up", "stand up"),
        ("\uff52\uff55\uff4e", "run"),
        ("\ufb01ght", "fight"),
        ("run\u200f", "run"),
    ],
)
def test_similar_names_are_found(name, known):
    assert [*group([name, known, "other"]).values()] == [[name, known], ["other"]]


def test_different_names_are_not_found():
    names = ["run", "walk", "walking", "ru n", "run/", "run.", "\u0131", "i", "", "0", "\u0660"]
    assert [*group([*names, *names]).values()] == [[name] for name in names]


@pytest.mark.parametrize(
    "names, phrase",
    [
        ((COMPOSED, DECOMPOSED), r"'caf\xe9' has U+00E9, 'cafe\u0301' has e + U+0301"),
        (("Run", "run"), "'Run' has R, 'run' has r"),
        (("RUN.MP4", "run.mp4"), "'RUN.MP4' has R + U + N, 'run.mp4' has r + u + n"),
        (("run ", "run"), "'run ' has U+0020, 'run' has nothing"),
        (("r\u200bun", "run"), r"'r\u200bun' has U+200B, 'run' has nothing"),
    ],
)
def test_differences_are_shown_in_ascii(names, phrase):
    assert difference(*names) == phrase


def test_differences_of_long_names_are_truncated_around_the_difference():
    text = difference("x" * 5000 + "A" + "y" * 5000, "x" * 5000 + "a" + "y" * 5000)
    assert len(text) < 300 and "xA" in text and text.endswith("has a")


def test_paths_are_matched_part_by_part(tmp_path):
    file = tmp_path / DECOMPOSED / "Run" / "v 1.mp4"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    find = PathFinder().find_all
    assert find(str(tmp_path / COMPOSED / "run" / "V 1.MP4 ")) == [str(file)]
    assert find(f"{tmp_path}\\{COMPOSED}\\Run\\v 1.mp4") == [str(file)]
    assert find(str(tmp_path / COMPOSED / "jump" / "v 1.mp4")) == []
    (file.parent / "V 1.mp4").write_bytes(b"x")
    assert len(PathFinder().find_all(str(file.parent / "V 1.MP4"))) == 2
    assert PathFinder().find_all(str(file)) == [str(file)]


def test_ascii_names_are_folded_like_other_names():
    assert folded("A-b_1.MP4") == "a-b_1.mp4" and folded("a\tb") == "a b"
