"""Unreadable files: the list of them, its limit, and the checkpoint that is saved when data fails."""

import csv

import pytest
import torch
from torch import nn

from tests.training.test_loop import batches, fit, run_of, schedule, trainer
from video_rs import checkpoint
from video_rs.errors import MachineError, StuckWorker, UserError
from video_rs.training.incidents import Incidents


def rows(folder):
    with open(folder / "broken_files.csv", newline="") as handle:
        return list(csv.reader(handle))[1:]


def with_broken(files):
    """Return batches; the first one of step s had to replace ``files[s]``."""

    def make(schedule, start=0):
        parts = schedule.batch_size // schedule.micro_batch
        for number, batch in enumerate(batches(schedule, start), start * parts):
            yield {**batch, "broken": [] if number % parts else files.get(number // parts, [])}

    return make


def failing(error, step, part=0):
    """Return batches that raise an error at a micro-batch of a step."""

    def make(schedule, start=0):
        parts = schedule.batch_size // schedule.micro_batch
        for number, batch in enumerate(batches(schedule, start), start * parts):
            if number == step * parts + part:
                raise error
            yield {**batch, "broken": [("late.mp4", "empty")] if number == step * parts else []}

    return make


@pytest.mark.parametrize(
    ("num_files", "max_broken", "allowed"),
    [(10, 0.05, 1), (19, 0.05, 1), (20, 0.05, 1), (40, 0.05, 2), (100, 0.29, 29), (10, 0.0, 0), (3, 1.0, 3)],
)
def test_how_many_files_may_be_broken(num_files, max_broken, allowed, tmp_path):
    incidents = Incidents(num_files, max_broken)
    incidents.note_files([(f"{i}.mp4", "empty") for i in range(allowed)] * 2)  # how often does not matter
    incidents.check_files(tmp_path, 1)
    incidents.note_files([("more.mp4", "empty")])
    if allowed < num_files:
        with pytest.raises(UserError, match=f"{allowed + 1} of {num_files} .*data.max_broken={max_broken:g}"):
            incidents.check_files(tmp_path, 1)


def test_the_list_of_files_grows_during_the_run(tmp_path):
    files = {0: [("b, c.mp4", "empty"), ("a.mp4", "cut off")], 2: [("a.mp4", "cut off")], 4: [("a.mp4", "cut off")]}
    seen = {}

    def watching(schedule, start):
        for step, batch in enumerate(with_broken(files)(schedule, start)):
            seen[step] = rows(tmp_path) if (tmp_path / "broken_files.csv").exists() else None
            yield batch

    fit(trainer(schedule(log_every=1)), tmp_path, batches=watching)
    assert seen[0] is None
    assert seen[1] == seen[2] == [["a.mp4", "cut off", "1"], ["b, c.mp4", "empty", "1"]]
    assert seen[3] == [["a.mp4", "cut off", "2"], ["b, c.mp4", "empty", "1"]]
    assert rows(tmp_path)[0] == ["a.mp4", "cut off", "3"]


def test_no_list_without_unreadable_files(tmp_path):
    fit(trainer(schedule()), tmp_path)
    assert not (tmp_path / "broken_files.csv").exists()


def test_the_list_of_files_is_part_of_the_state(tmp_path):
    files = {0: [("b.mp4", "empty")], 4: [("a.mp4", "cut off")]}
    fit(trainer(schedule(num_steps=3)), tmp_path, batches=with_broken(files))
    (tmp_path / "broken_files.csv").unlink()
    saved = checkpoint.load(tmp_path / "last.pt")
    fit(trainer(schedule()), tmp_path, batches=with_broken(files), state=saved)
    assert rows(tmp_path) == [["a.mp4", "cut off", "1"], ["b.mp4", "empty", "1"]]


def test_the_limit(tmp_path):
    """A checkpoint is saved, and with a larger limit the resumed run ends with the same weights."""
    files = {step: [(f"{step}.mp4", "empty")] for step in range(3)}
    undisturbed = fit(trainer(schedule()), tmp_path / "undisturbed", batches=with_broken(files))
    with pytest.raises(UserError) as error:
        fit(trainer(schedule()), tmp_path, batches=with_broken(files), incidents=Incidents(20, 0.1))
    for word in ("3 of 20", "data.max_broken=0.1", "0.mp4: empty", str(tmp_path / "broken_files.csv"), "step 3"):
        assert word in str(error.value)
    assert len(rows(tmp_path)) == 3
    saved = checkpoint.load(tmp_path / "last.pt")
    assert saved["step"] == 3

    with pytest.raises(UserError, match="3 of 20"):
        nothing = {"batches": lambda schedule, start: pytest.fail("it trains on")}
        fit(trainer(schedule()), tmp_path, **nothing, state=saved, incidents=Incidents(20, 0.1))
    resumed = fit(trainer(schedule()), tmp_path, batches=with_broken(files), state=saved, incidents=Incidents(20, 0.15))
    assert torch.equal(resumed["head.weight"], undisturbed["head.weight"])


class WithStatistics(nn.Module):
    """Batch norm in front of a model: each forward pass changes its buffers."""

    def __init__(self, model):
        super().__init__()
        self.data_config, self.num_classes = model.data_config, model.num_classes
        self.norm, self.model = nn.BatchNorm3d(3).double(), model

    def forward(self, clips, keys=None):
        return self.model(self.norm(clips))


def with_statistics():
    return trainer(schedule(micro_batch=2), wrap=WithStatistics)


STUCK = StuckWorker(7, "late.mp4", 130.0, 120.0)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("step", [0, 4])
@pytest.mark.parametrize("error", [STUCK, UserError("11 consecutive files cannot be read")])
def test_data_that_fail_in_the_middle_of_a_step(tmp_path, step, part, error):
    """The checkpoint has the state before the step: nothing counts twice."""
    undisturbed = fit(with_statistics(), tmp_path / "undisturbed")
    meter = checkpoint.load(tmp_path / "undisturbed" / "last.pt")["meter"]
    with pytest.raises(type(error)):
        fit(with_statistics(), tmp_path, batches=failing(error, step, part))
    if step == 0 and error is not STUCK:
        assert not (tmp_path / "last.pt").exists()  # nothing is worth keeping, and the person may change the config
        return
    saved = checkpoint.load(tmp_path / "last.pt")
    assert saved["step"] == step
    assert saved["broken"] == ({"late.mp4": ["hung the decoder", 0]} if error is STUCK else {})
    assert saved["hung"] == (["late.mp4"] if error is STUCK else [])
    resumed = fit(with_statistics(), tmp_path, state=saved)
    assert all(torch.equal(resumed[name], value) for name, value in undisturbed.items())
    assert torch.equal(checkpoint.load(tmp_path / "last.pt")["meter"], meter)


def test_workers_that_stand_still_name_no_file(tmp_path):
    with pytest.raises(StuckWorker):
        fit(trainer(schedule()), tmp_path, batches=failing(StuckWorker(-1, "", 130.0, 120.0), 2))
    saved = checkpoint.load(tmp_path / "last.pt")
    assert (saved["step"], saved["broken"], saved["hung"]) == (2, {}, [])


def test_checkpoints_from_before_files_could_hang(tmp_path):
    fit(trainer(schedule(num_steps=3)), tmp_path)
    saved = checkpoint.load(tmp_path / "last.pt")
    del saved["hung"]
    with run_of(trainer(schedule()), tmp_path) as run:
        run.load_state_dict(saved)
    assert (run.incidents.hung, run.incidents.stamps) == ([], {})


def test_checkpoints_without_stamps(tmp_path):
    """A file that hung is left out until it changes after this start."""
    file = tmp_path / "late.mp4"
    file.write_bytes(b"hangs")
    with pytest.raises(StuckWorker):
        fit(trainer(schedule()), tmp_path, batches=failing(StuckWorker(7, str(file), 130.0, 120.0), 2))
    saved = checkpoint.load(tmp_path / "last.pt")
    assert saved.pop("stamps") == {str(file): (5, file.stat().st_mtime_ns)}
    with run_of(trainer(schedule()), tmp_path) as run:
        run.load_state_dict(saved)
    assert run.incidents.hung == [str(file)] and run.incidents.files_to_recheck() == []
    file.write_bytes(b"is whole")
    assert run.incidents.files_to_recheck() == [str(file)]


def test_a_file_that_hangs_where_none_may_be_broken(tmp_path):
    """A restart would not help: the run ends with an error that says what to change."""
    with pytest.raises(
        UserError, match="1 of 20 .*allows 0.*late.mp4: hung the decoder.*saved at step 4: raise data.max_broken"
    ):
        fit(trainer(schedule()), tmp_path, batches=failing(STUCK, 4), incidents=Incidents(20, 0))
    assert checkpoint.load(tmp_path / "last.pt")["hung"] == ["late.mp4"]


def test_the_state_is_saved_before_a_validation_that_fails(tmp_path):
    def failing_validation(model, check):
        saved = checkpoint.load(tmp_path / "last.pt")
        assert saved["validated"] < saved["step"]
        raise MachineError("11 consecutive videos hung the decoder")

    with pytest.raises(MachineError):
        fit(trainer(schedule()), tmp_path, validate=failing_validation)
    assert (tmp_path / "last.pt").exists()
