import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from video_rs.data.sources.holdout import source_keys, source_of, split_off
from video_rs.data.sources.records import Records


def test_clips_of_one_source_stay_together():
    names = [
        f"/k/{c}/{'abcdefghij' + v}_{s:06d}_{s + 10:06d}.mp4" for c in "xy" for v in "0123456789" for s in (0, 10, 20)
    ]
    names += [f"/k/z/v_Bike_g{g:02d}_c{c:02d}.avi" for g in range(10) for c in range(3)]
    records = Records(names, [0] * 30 + [1] * 30 + [2] * 30, "xyz")
    train, val = split_off(records, 0.2)
    sources = [{source_of(part.path(i)) for i in range(len(part))} for part in (train, val)]
    assert not sources[0] & sources[1]
    assert len(train) + len(val) == 90 and set(val.labels) == {0, 1, 2} and len(val) == 18


def test_holdout_keeps_segments_of_one_video_together():
    records = Records([f"/k/{n // 3}.mp4" for n in range(30)], [n % 2 for n in range(30)], "xy")
    records.segments = np.array([[n, n + 1] for n in range(30)], np.float64)
    train, val = split_off(records, 0.3)
    paths = [{part.path(i) for i in range(len(part))} for part in (train, val)]
    assert not paths[0] & paths[1] and len(train) + len(val) == 30 and len(val) >= 6
    assert all(
        part.path(i) == f"/k/{int(part.segments[i, 0]) // 3}.mp4" for part in (train, val) for i in range(len(part))
    )


@given(
    st.lists(st.dictionaries(st.integers(0, 30), st.integers(1, 40), min_size=1), min_size=1, max_size=5),
    st.floats(0, 1),
    st.randoms(use_true_random=False),
)
def test_splitting_never_takes_the_last_source_of_a_class(classes, fraction, random):
    """Sources of any size, in any order; some have files in several classes."""
    clips = [(f"{v:011d}_{i:06d}_000010.mp4", c) for c, vs in enumerate(classes) for v in vs for i in range(vs[v])]
    random.shuffle(clips)
    names, labels = zip(*clips, strict=True)
    train, val = split_off(Records(names, labels, range(len(classes))), fraction)
    sources = [{source_of(part.path(i)) for i in range(len(part))} for part in (train, val)]
    assert not sources[0] & sources[1] and len(train) + len(val) == len(clips)
    assert set(train.labels) == set(range(len(classes)))


def test_which_files_become_a_validation_split_is_fixed_for_good():
    """Accuracies on a held-out split are compared across versions."""
    names = [
        f"/k/{c}/{v:011d}_{s:06d}_{s + 10:06d}.mp4"
        for c in range(3)
        for v in range(3 * c, 3 * c + 6)  # half of the sources of a class are also in the next
        for s in range(v % 4 + 1)
    ]
    labels = [int(name.split("/")[2]) for name in names] + [3] * 12
    train, val = split_off(Records([*names, *(f"/u/{i}.avi" for i in range(12))], labels, "abcd"), 0.3)
    sources = {source_of(val.path(i)) for i in range(len(val))}
    assert sources == {"00000000003", "00000000009", "00000000010", "u/2.avi", "u/4.avi", "u/5.avi", "u/6.avi"}
    assert len(train) == 40 and val.fingerprint() == "c05c0509a137"


def test_a_large_source_does_not_empty_a_class():
    for a in range(20):  # whichever comes first
        sizes = {f"{a:011d}": 95, f"{a + 50:011d}": 5}
        names = [f"{v}_{i:06d}_000010.mp4" for v in sizes for i in range(sizes[v])]
        train, val = split_off(Records(names, [0] * 100, "a"), 0.1)
        assert (len(train), len(val)) == (95, 5)


def test_sources_shared_by_classes_count_for_both():
    names = [f"{'xy'[c]}/{v:011d}_000000_000010.mp4" for c in range(2) for v in range(5 * c, 5 * c + 10)]
    train, val = split_off(Records(names, [0] * 10 + [1] * 10, "xy"), 0.5)
    sources = [{source_of(part.path(i)) for i in range(len(part))} for part in (train, val)]
    assert not sources[0] & sources[1] and list(np.bincount(val.labels)) == [5, 5]


def test_a_class_with_one_source_stays_in_training():
    train, val = split_off(Records(["a/1.mp4", "b/1.mp4", "b/2.mp4"], [0, 1, 1], "ab"), 0.1)
    assert list(train.labels) == [0, 1] and list(val.labels) == [1]


def test_files_of_equal_name_in_two_splits_are_of_two_sources():
    """Many datasets start the numbers of files again in each split. Names in Kinetics contain the source."""
    names = ["left/0.mp4", "left/1.mp4", "left/abcdefghijk_000000_000010.mp4", "left/abcdefghijk_000010_000020.mp4"]
    train, test = (source_keys(Records([f"/d/{split}/{name}" for name in names], [0] * 4, "x")) for split in "ab")
    assert train.dtype == np.uint64 and len(set(train.tolist())) == 3 and train[2] == train[3]
    assert set(train.tolist()) & set(test.tolist()) == {int(train[2])}
    listed = Records(names, [0] * 4, "x")
    listed.sources = np.arange(4, dtype=np.uint64)
    assert source_keys(listed).tolist() == [0, 1, 2, 3]


def test_links_to_one_file_are_of_one_source(tmp_path):
    (tmp_path / "pool.mp4").touch()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).symlink_to("pool.mp4")
    keys = source_keys(Records([str(tmp_path / name) for name in ("a.mp4", "b.mp4", "c.mp4")], [0] * 3, "x"))
    assert keys[0] == keys[1] != keys[2]
