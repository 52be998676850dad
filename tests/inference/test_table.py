"""Tables over datasets: rows of chunks, and parts on disk that survive a kill."""

import dataclasses
import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video_rs.data import chunk_dataset
from video_rs.data.chunk_dataset import ChunkDataset, Selection, select_views, select_windows
from video_rs.data.clips import TemporalSampling
from video_rs.data.loader import ViewLoader
from video_rs.data.segments import FrameRange
from video_rs.data.sources.records import Records
from video_rs.data.transforms.crops import ViewTransform
from video_rs.distributed.world import World
from video_rs.errors import UserError
from video_rs.inference.parts import open_parts
from video_rs.inference.rows import FileRows, compute_rows


@dataclasses.dataclass
class Video:
    fps: float
    times: np.ndarray
    path: str = "a.mp4"


def chunks_of(index, values, groups, rows, sizes):
    """The chunks of a file whose views are one pixel each, with the given values."""
    selection = Selection(None, np.array(groups), np.array(rows))
    first = 0
    for size in sizes:
        if first >= len(values):
            return
        part = slice(first, first + size)
        views = torch.tensor(values[part], dtype=torch.uint8).reshape(-1, 1, 1, 1, 1)
        yield {
            "index": index,
            "views": views,
            "groups": selection.groups[part],
            "selection": None if first else selection,
            "is_last": first + size >= len(values),
            "error": None,
        }
        first += size


@st.composite
def files(draw):
    values = draw(st.lists(st.integers(0, 255), min_size=1, max_size=12))
    groups = np.cumsum([0, *draw(st.lists(st.integers(0, 1), min_size=len(values) - 1, max_size=len(values) - 1))])
    sizes = draw(st.lists(st.integers(1, 5), min_size=len(values), max_size=len(values)))
    return values, groups.tolist(), sizes


@settings(max_examples=60, deadline=None)
@given(
    st.lists(files(), min_size=1, max_size=5),
    st.integers(1, 7),
    st.sampled_from(["mean", "mean+std", "max"]),
    st.booleans(),
)
def test_rows_do_not_depend_on_chunks_and_batches(drawn, batch_size, pool, stream):
    chunks = []
    for index, (values, groups, sizes) in enumerate(drawn):
        rows = [*range(groups[-1] + 1), groups[-1]]  # the last window has the frames of the one before it
        chunks += chunks_of(index, values, groups, rows, sizes)
    found = {index: [] for index in range(len(drawn))}
    for rows in compute_rows(one_value, chunks, batch_size=batch_size, pool=pool, stream=stream):
        assert stream or rows.is_last
        found[rows.index].append(rows)
    for parts in found.values():
        assert [rows.is_last for rows in parts] == [False] * (len(parts) - 1) + [True]
    functions = {"mean": [np.mean], "mean+std": [np.mean, np.std], "max": [np.max]}[pool]
    for index, (values, groups, _) in enumerate(drawn):
        members = [np.array(values)[np.array(groups) == group] for group in [*range(groups[-1] + 1), groups[-1]]]
        expected = [[function(each) for function in functions] for each in members]
        np.testing.assert_allclose(np.concatenate([rows.values for rows in found[index]]), expected, atol=1e-4)


def one_value(views):
    return views.reshape(-1, 1).float()


def test_a_file_that_starts_again_has_the_rows_of_its_last_start():
    whole = list(chunks_of(0, [1, 2, 3], [0, 0, 0], [0], [1, 2]))
    (rows,) = compute_rows(one_value, [whole[0], *whole], batch_size=2)
    assert rows.values == 2


def test_an_output_that_is_not_finite_is_a_reason():
    (rows,) = compute_rows(lambda views: one_value(views) / 0, chunks_of(0, [0], [0], [0], [1]))
    assert "not finite" in rows.reason and not len(rows.values)


def test_a_worker_that_dies_in_the_middle_of_a_file(make_video, tmp_path, monkeypatch):
    """Files that other workers have partly read start again. A chunk has two frames."""
    paths = [str(make_video(tmp_path / f"{i}.mp4", 6 + i, 32, 48, first_number=10 * i)) for i in range(4)]
    records = Records(paths, [-1] * 4, ())
    dataset = ChunkDataset(records, sampling=TemporalSampling(1, 1), transform=ViewTransform(32, 32), views=0)
    monkeypatch.setattr(chunk_dataset, "CHUNK_BYTES", 2 * 32 * 32 * 3)
    expected = [torch.cat([chunk["views"] for chunk in dataset.read(i)]).double().mean() for i in range(4)]

    def read(self, index):
        for number, chunk in enumerate(original(self, index)):
            if (index, number) == (2, 2):
                os.kill(os.getpid(), signal.SIGSEGV)
            yield chunk

    original = ChunkDataset.read
    monkeypatch.setattr(ChunkDataset, "read", read)
    loader = ViewLoader(dataset, workers=2)
    found = list(compute_rows(lambda views: views.double().mean((1, 2, 3, 4))[:, None], loader, batch_size=3))
    assert sorted(rows.index for rows in found) == [0, 1, 2, 3]
    for index, values, _, reason, *_ in found:
        if index == 2:
            assert reason == "killed the decoder (SIGSEGV)"
        else:
            np.testing.assert_allclose(values, [[expected[index]]], rtol=1e-6)


def test_a_slow_file_holds_up_its_own_worker_only(tmp_path, monkeypatch):
    """One worker reads files 0 and 2, the other 1, 3 and 5. File 0 takes until file 5 has been read."""
    done = tmp_path / "done"

    def read(self, index):
        limit = time.monotonic() + 60
        while index == 0 and not done.exists() and time.monotonic() < limit:
            time.sleep(0.01)
        yield from chunks_of(index, [int(done.exists())], [0], [0], [1])
        if index == 5:
            done.touch()

    monkeypatch.setattr(ChunkDataset, "read", read)
    transform = ViewTransform(32, 32)
    dataset = ChunkDataset(Records(["a.mp4"] * 6, [-1] * 6, ()), sampling=TemporalSampling(1, 1), transform=transform)
    found = [rows.index for rows in compute_rows(one_value, ViewLoader(dataset, workers=2), batch_size=1)]
    assert sorted(found) == [*range(6)] and found.index(5) < found.index(0)


lengths, rates = st.integers(1, 200), st.sampled_from([5.0, 24.0, 29.97])


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(1, 8), st.integers(1, 3), st.integers(0, 50))
def test_all_views_cover_every_frame(length, num_frames, stride, first):
    sampling = TemporalSampling(num_frames, stride)
    clips = select_views(FrameRange(first, length, np.arange(length) / 10.0), sampling, 0).clips
    covered = {frame + step for clip in clips for frame in clip for step in range(stride)}
    assert covered >= set(range(first, first + length))
    assert clips.min() >= first and clips.max() < first + length
    if num_frames == 1:
        assert clips[:, 0].tolist() == list(range(first, first + length))


@settings(max_examples=100, deadline=None)
@given(lengths, rates, st.floats(0.05, 5.0), st.integers(0, 20))
def test_windows_of_every_frame_are_adjacent(length, rate, every, first):
    times = np.arange(first + length) / rate
    video, frames = Video(rate, times), FrameRange(first, length, times[:length])
    found = select_windows(video, frames, TemporalSampling(1, 1), every, every_frame=True)
    assert found.clips[:, 0].tolist() == list(range(first, first + length))
    assert (np.diff(found.groups) >= 0).all() and set(found.groups) == set(found.rows)
    np.testing.assert_allclose(found.times[1:, 0], found.times[:-1, 1])
    np.testing.assert_allclose(found.times[[0, -1], [0, 1]], [first / rate, (first + length) / rate])
    starts = found.times[found.groups, 0]
    assert (times[found.clips[:, 0]] >= starts - 1e-6).all()
    assert (times[found.clips[:, 0]] < found.times[found.groups, 1] + 1e-6).all()


def rows_of(index, count=1):
    return FileRows(index, np.full((count, 3), index, np.float32), np.full((count, 2), float(index)))


@pytest.mark.parametrize("with_times", [False, True])
def test_parts_are_one_table_in_list_order(tmp_path, with_times):
    """Killed twice. A rank that was not killed with the others wrote file 1 again. Unreadable files are read again."""
    out, damaged = tmp_path / "t.npz", FileRows(0, np.empty((0, 0), np.float32), reason="damaged")
    for done, added in (
        (set(), [rows_of(4, 2), damaged, rows_of(1)]),
        ({1, 4}, [rows_of(3), rows_of(1)]),
        ({1, 3, 4}, [damaged, rows_of(2, 3)]),
    ):
        with open_parts(out, {"views": 1}, World()) as parts:
            assert parts.done == done
            for rows in added:
                parts.add(rows if with_times else rows._replace(times=None))
            parts.flush()
    table = parts.table(5, parts.reasons)
    assert table.files.tolist() == [0, 1, 2, 2, 2, 3, 4, 4] and table.reasons == {0: "damaged"}
    assert table.values[:, 0].tolist() == [0, 1, 2, 2, 2, 3, 4, 4] and table.values.dtype == np.float32
    assert table.scored.tolist() == [False] + [True] * 7
    if with_times:
        np.testing.assert_array_equal(table.times[:, 0], [np.nan, 1, 2, 2, 2, 3, 4, 4])
    else:
        assert table.times is None
    parts.remove()
    assert list(tmp_path.iterdir()) == []


def test_parts_with_other_settings_are_refused(tmp_path):
    out = tmp_path / "t.npz"
    with open_parts(out, {"views": 1}, World()) as parts:
        parts.add(rows_of(0))
        parts.flush()
        with pytest.raises(UserError, match="another process writes it"), open_parts(out, {"views": 1}, World()):
            pass
    with (
        pytest.raises(UserError, match="views 1, not 2; delete it, or give another --out"),
        open_parts(out, {"views": 2}, World()),
    ):
        pass
    with open_parts(out, {"views": 2}, World(), overwrite=True) as parts:
        assert parts.done == set()
    out.write_text("finished before")
    with pytest.raises(UserError, match="exists"), open_parts(out, {"views": 2}, World()):
        pass
    (tmp_path / "u.npz.parts").mkdir()
    (tmp_path / "u.npz.parts" / "mine").write_text("")
    for overwrite in (False, True):
        with (
            pytest.raises(UserError, match="not made by"),
            open_parts(tmp_path / "u.npz", {}, World(), overwrite=overwrite),
        ):
            pass
