"""Features files are read as they were written, and other files are refused in one line."""

import dataclasses

import numpy as np
import pytest

from video_rs.errors import UserError
from video_rs.inference.features_file import VERSION, Features, read_features, write_features


def example(multi_label=False, times=False):
    rng, count = np.random.default_rng(0), 5
    return Features(
        features=rng.normal(size=(count, 7)).astype(np.float32),
        labels=rng.random((count, 3)) > 0.5 if multi_label else np.arange(count) - 1,
        class_names=("a", "b", "ä"),
        paths=[f"/data/é{i}.mp4" for i in range(count)],
        sources=np.arange(count, dtype=np.uint64) + np.uint64(2**63),
        scored=np.array([True, False, True, True, True]),
        reason=["", "no such file", "", "", ""],
        about={"weights": "best.pt", "views": 4, "layer": ""},
        start=np.arange(count) / 2 if times else None,
        end=np.arange(count) / 2 + 1 if times else None,
    )


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("kind", [{}, {"multi_label": True}, {"times": True}], ids=["labels", "sets", "windows"])
def test_what_is_written_is_read(tmp_path, suffix, kind):
    path = tmp_path / f"features{suffix}"
    features = example(**kind)
    write_features(path, features)
    found = read_features(path)
    for name, expected in dataclasses.asdict(features).items():
        value = getattr(found, name)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(value, expected, err_msg=name, strict=True)
        else:
            assert value == expected, name


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_other_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"features{suffix}"
    with pytest.raises(UserError, match="No such file"):
        read_features(path)
    path.write_bytes(b"text")
    with pytest.raises(UserError, match="not a features file, or damaged"):
        read_features(path)
    write_features(path, example())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged"):
        read_features(path)


def test_other_suffixes_later_versions_and_uneven_columns_are_refused(tmp_path):
    with pytest.raises(UserError, match="ends in .npz or .parquet"):
        write_features(tmp_path / "features.txt", example())
    path = tmp_path / "features.npz"
    write_features(path, dataclasses.replace(example(), paths=["one"]))
    with pytest.raises(UserError, match="different lengths"):
        read_features(path)
    write_features(path, example())
    np.savez(path, **{**np.load(path), "version": np.int64(VERSION + 1)})
    with pytest.raises(UserError, match="upgrade"):
        read_features(path)


@pytest.mark.parametrize("damage", [{"about": [1]}, {"labels": np.zeros(5)}], ids=["about", "labels"])
def test_values_of_another_type(tmp_path, damage):
    write_features(tmp_path / "f.npz", dataclasses.replace(example(), **damage))
    with pytest.raises(UserError, match="f.npz: damaged .labels or about of the wrong type"):
        read_features(tmp_path / "f.npz")
