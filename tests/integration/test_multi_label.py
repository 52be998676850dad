"""Files with any number of classes, from a list to a prediction."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from video_rs import checkpoint
from video_rs.cli.common import run
from video_rs.cli.show_clips import main as show_clips
from video_rs.cli.test import main as score
from video_rs.cli.train import main as train

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def colours(tmp_path_factory, make_video):
    """Lists of videos that show any of three colours; one validation video cannot be read."""
    folder = tmp_path_factory.mktemp("colours")
    for split, count in (("train", 8), ("val", 8)):
        lines = []
        for number in range(count):
            on = [number >> place & 1 for place in range(3)]
            frames = np.full((6, 40, 48, 3), 20, np.uint8) + 200 * np.array(on, np.uint8)
            make_video(folder / split / f"{number}.mp4", frames=frames)
            lines.append(f"{split}/{number}.mp4,{';'.join(name for name, is_on in zip(COLOURS, on) if is_on)}")
        (folder / f"{split}.csv").write_text("\n".join(lines))
    (folder / "val" / "7.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def config(tiny_config, colours):
    def write(**changes):
        own = {
            "data__root": str(colours),
            "data__multi_label": True,
            "model__num_classes": 4,
        }  # one more than there are
        own |= {"train__batch_size": 4, "train__epochs": 2, "data__stride": 1, "data__mixup": 0.2}
        return tiny_config(**{**own, **changes})

    return write


def test_from_a_list_to_a_prediction(config, colours, tmp_path, run_tool):
    path, out = config(), tmp_path / "run"
    done = run_tool("train_net.py", "--cfg", path)
    assert done.returncode == 0, done.stderr
    assert "train          8 files, 3 classes, 1.50 labels per file" in done.stdout
    assert "hit@1" in done.stdout and "validation: mAP" in done.stdout and "best validation mAP" in done.stdout
    assert checkpoint.load(out / "best.pt")["data_config"]["multi_label"] is True

    done = run_tool("test_net.py", "--cfg", path)
    assert done.returncode == 0, done.stderr
    assert "7 of 8 scored" in done.stdout and "  mAP " in done.stdout and not (out / "test" / "confusion.png").exists()
    rows = list(csv.DictReader((out / "test" / "predictions.csv").open()))
    assert [row["label"] for row in rows[:4]] == ["", "red", "green", "green;red"]  # in the order of the classes
    metrics = json.loads((out / "test" / "metrics.json").read_text())
    names = ["blue", "green", "red", "3"]
    assert [each["name"] for each in metrics["per_class"]] == names and metrics["per_class"][3][
        "average_precision"
    ] is None
    probs = [{row[f"class_{k}"]: float(row[f"prob_{k}"]) for k in range(1, 5)} for row in rows[:7]]
    expected = [
        average_precision_score([name in row["label"].split(";") for row in rows[:7]], [each[name] for each in probs])
        for name in names[:3]
    ]
    assert metrics["map"] == pytest.approx(np.mean(expected))
    assert metrics["map_all"] == pytest.approx(np.mean(expected) * 3 / 4)  # of each class one of four was not scored
    assert metrics["hit1"] == pytest.approx(np.mean([int(row["correct"]) for row in rows[:7]]))

    file = colours / "val" / "3.mp4"
    arguments = ["--weights", out / "best.pt", "--clips", 2, "--crops", 3, "--json", file]
    done = run_tool("predict.py", *arguments)
    assert done.returncode == 0, done.stderr
    predicted = {each["label"]: each["score"] for each in json.loads(done.stdout)["predictions"]}
    assert predicted == pytest.approx(probs[3], abs=1e-5) and sum(predicted.values()) != pytest.approx(1, abs=1e-3)


def test_a_resumed_run_ends_with_the_same_weights(config, tmp_path, capsys):
    weights = {}
    for name, stops in (("whole", (4,)), ("parts", (2, 4))):
        for steps in stops:
            path = config(train__max_steps=4, train__val_every=0, out=str(tmp_path / name))
            if steps < 4:
                with pytest.MonkeyPatch.context() as patch:
                    stop_after(patch, steps)
                    assert run(train, ["--cfg", str(path)]) == 130
            else:
                assert run(train, ["--cfg", str(path)]) == 0, capsys.readouterr().err
        weights[name] = checkpoint.load(tmp_path / name / "last.pt")["model"]
    assert all((weights["whole"][key] == value).all() for key, value in weights["parts"].items())


def stop_after(patch, steps):
    from video_rs.signals import Interrupted
    from video_rs.training.trainer import Trainer

    step = Trainer.train_step

    def stopped(self, batches):
        step(self, batches)
        if self.step == steps:
            raise Interrupted(2)

    patch.setattr(Trainer, "train_step", stopped)


def test_what_does_not_fit_is_one_line(config, colours, tmp_path, capsys):
    def failure(main, path, *overrides):
        assert run(main, ["--cfg", str(path), *overrides]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    path = config(model__num_classes=0, train__max_steps=1)
    several = tmp_path / "several.csv"
    several.write_text("train/1.mp4,red\ntrain/3.mp4,red;green\n")
    error = failure(train, path, "data.multi_label=false", f"data.train={several}", f"data.val={several}")
    assert f"{several}:2: 'red;green' is more than one label: set data.multi_label=true" in error
    bare = tmp_path / "bare.csv"
    bare.write_text("val/0.mp4\n")
    assert "no file of the val split has a label" in failure(train, path, f"data.val={bare}")

    single = tmp_path / "single.csv"
    single.write_text("val/1.mp4 red\nval/2.mp4 green\nval/4.mp4 blue\n")
    lists = [f"data.{split}={single}" for split in ("train", "val")]
    assert run(train, ["--cfg", str(path), "data.multi_label=false", *lists]) == 0
    capsys.readouterr()
    assert "data.multi_label is True, in the checkpoint False" in failure(score, path, *lists)


def test_clips_are_shown_under_all_labels(config, tmp_path, capsys):
    arguments = ["--cfg", str(config()), "--num", "8", "--gif", "--out", str(tmp_path / "clips.png")]
    assert run(show_clips, arguments) == 0
    assert ".gif: red; green, frames" in capsys.readouterr().out
