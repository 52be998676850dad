"""Unreadable files are decoded again when a run starts."""

import shutil
from dataclasses import dataclass

import pytest

from tests.data import crashing
from video_rs import create_transform
from video_rs.data import clip_datasets
from video_rs.data.loader import MAX_FAILED
from video_rs.data.sources.records import Records
from video_rs.data.video_dataset import VideoDataset
from video_rs.distributed.world import World
from video_rs.files import stamp
from video_rs.training import recheck as module
from video_rs.training.incidents import Incidents
from video_rs.training.recheck import recheck


@pytest.fixture
def dataset(make_video, tmp_path, monkeypatch):
    """Return a dataset of thirteen files."""
    monkeypatch.setattr(clip_datasets, "open_video", crashing.open_video)
    whole = make_video(tmp_path / "0.mp4", 8, 32, 48)
    paths = [str(whole), *(str(shutil.copy(whole, tmp_path / f"{i}.mp4")) for i in range(1, 13))]
    transform = create_transform(num_frames=4, train_size=24, is_training=True)
    return VideoDataset.from_records(Records(paths, [0] * len(paths), ["a"]), transform)


def run_recheck(incidents, dataset, world=None, **options):
    """Decode unreadable files again, and return the logged lines."""
    lines = []
    recheck(incidents, dataset, world or World(), lambda: None, info=lines.append, **{"timeout": 60, **options})
    return lines


def unreadable(incidents, dataset, indices):
    for index in indices:
        incidents.note_files([(dataset.records.path(index), "damaged")])


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_files_can_crash_their_worker_again(dataset, workers):
    """They have another modification time: the dataset was copied to another disk."""
    incidents, paths = Incidents(20), [dataset.records.path(index) for index in range(MAX_FAILED + 2)]
    for path in paths:
        crashing.write_crashing_video(path, path, "SIGSEGV")
        incidents.note_hung(path, "killed the decoder (SIGABRT)", (1, 1))
    assert run_recheck(incidents, dataset, workers=workers) == [f"decoding {len(paths)} unreadable files again"]
    assert sorted(incidents.hung) == sorted(paths)
    assert incidents.files == {path: ["killed the decoder (SIGSEGV)", 0] for path in paths}
    assert incidents.stamps == {path: stamp(path) for path in paths}
    assert run_recheck(incidents, dataset) == []


def test_the_time_of_a_recheck_is_limited(dataset, monkeypatch):
    """The next start continues with the rest."""
    incidents = Incidents(20)
    unreadable(incidents, dataset, range(4))
    with open(dataset.records.path(0), "wb"):
        pass  # is damaged
    monkeypatch.setattr(module, "SECONDS", 0)
    for left in ({1, 2, 3, 0}, {2, 3, 0}, {3, 0}, {0}):
        run_recheck(incidents, dataset)
        assert incidents.files.keys() == {dataset.records.path(index) for index in left}


@dataclass
class Two(World):
    """The first of two ranks; the other one has its files in another folder, and misses `missing`."""

    missing: frozenset = frozenset()

    def gather(self, value, what, on_main=False):
        return [value, self.missing if isinstance(value, set) else None]


def test_files_of_another_rank_stay_unreadable(dataset):
    """Files that are in the data of no rank are removed."""
    incidents = Incidents(20)
    incidents.note_files([("/elsewhere/a.mp4", "damaged"), ("/gone/a.mp4", "damaged")])
    incidents.note_hung("/elsewhere/b.mp4", "hung the decoder", (1, 1))
    unreadable(incidents, dataset, [0])
    run_recheck(incidents, dataset, Two(missing={"/gone/a.mp4", dataset.records.path(0)}))
    assert list(incidents.files) == ["/elsewhere/a.mp4", "/elsewhere/b.mp4"]
    assert (incidents.hung, incidents.stamps) == (["/elsewhere/b.mp4"], {"/elsewhere/b.mp4": (1, 1)})
