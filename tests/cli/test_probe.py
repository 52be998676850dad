"""``tools/probe_features.py``: the report, and a head that scores the same in ``tools/test_net.py``."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.commands import script
from tests.conftest import same
from tests.inference.test_probe import make
from video_rs import checkpoint, load
from video_rs.cli import test
from video_rs.cli.common import run
from video_rs.cli.probe import main
from video_rs.data.sources.splits import load_splits
from video_rs.errors import UserError
from video_rs.hub import sha256
from video_rs.inference.features import extract_features
from video_rs.inference.features_file import read_features
from video_rs.inference.probe import probe
from video_rs.inference.probe_head import network_of, write_head
from video_rs.models.registry import create_model
from video_rs.models.weights.init_from import init_from

CLASSES = ("bowling", "chess", "diving")
TINY = {"num_frames": 4, "stride": 2, "train_size": 32, "short_side": 40, "test_size": 32}


@pytest.fixture(scope="module")
def job(tmp_path_factory, make_video):
    """Videos of three classes, a network, and its features of one view of each video."""
    folder = tmp_path_factory.mktemp("probe")
    for split, count in (("train", 4), ("test", 3)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                first = 3000 * label + 100 * number + (50 if split == "test" else 0)
                path = folder / "data" / split / name / f"{number}.mp4"
                make_video(path, num_frames=10 + number, height=48, width=64, first_number=first)
    torch.manual_seed(0)
    network = create_model("resnet3d_rs_26", width=0.125, num_classes=5)
    network.data_config = dataclasses.replace(network.data_config, **TINY)
    torch.nn.init.ones_(network.stages[3][-1].conv3.norm.weight)  # otherwise the last block is its shortcut
    config = network.data_config
    checkpoint.save(folder / "net.pt", checkpoint.from_weights(network.model_args, config, network.state_dict()))
    about = {"weights": str(folder / "net.pt"), "sha256": sha256(folder / "net.pt")}
    for split in ("train", "test"):
        records = load_splits(str(folder / "data"), val_fraction=0, splits=(split,))[split]
        out = folder / f"{split}.npz"
        extract_features(
            load(folder / "net.pt", "cpu"),
            records,
            out,
            views=1,
            about=about | {"split": split, "data": str(folder / "data")},
            workers=0,
        )
    return folder


def test_a_head_scores_the_same_in_test_net(job, tmp_path, capsys, one_thread):
    out, head = tmp_path / "report", tmp_path / "head.pt"
    arguments = [job / "train.npz", "--test", job / "test.npz", "--out", out, "--head-out", head]
    assert run(main, [*map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    assert (
        "logistic regression" in printed
        and f"report: {out / 'report.html'}" in printed
        and f"--weights {head} data.root={job / 'data'}" in printed
    )
    settings = ["test.clips=1", "test.crops=1", "data.workers=0", "train.device=cpu", f"out={tmp_path / 'run'}"]
    assert run(test.main, ["--weights", str(head), f"data.root={job / 'data'}", *settings]) == 0
    (tested,) = tmp_path.glob("run/test-*/metrics.json")
    expected, found = (json.loads(path.read_text()) for path in (out / "metrics.json", tested))
    assert found["top1"] == expected["top1"] and found["confusion"] == expected["confusion"]
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)

    classifier, train, tests = load(head, "cpu"), *(read_features(job / f"{split}.npz") for split in ("train", "test"))
    assert classifier.class_names == CLASSES
    linear = probe(train, tests, log=lambda line: None).linear
    logits = tests.features @ linear.weight.T + linear.bias
    probs = np.array(
        [[p.score for p in sorted(ps, key=lambda p: p.index)] for ps in classifier.predict(tests.paths, clips=1)]
    )
    own = np.log(probs)
    np.testing.assert_allclose(own - own[:, :1], logits - logits[:, :1], atol=1e-4)
    np.testing.assert_allclose(classifier.embed(tests.paths, clips=1), tests.features, atol=1e-6)


def test_folds_and_an_existing_report(job, tmp_path):
    features = tmp_path / "f.npz"
    features.write_bytes((job / "train.npz").read_bytes())
    command = ["tools/probe_features.py", features, "--folds", 2]
    result = script(*command)
    assert result.returncode == 0 and "fold 2 of 2: k-NN with k = " in result.stdout, result.stderr
    metrics = json.loads((tmp_path / "f-probe" / "metrics.json").read_text())
    assert metrics["num_videos"] == 12 and metrics["about"]["features"] == f"{features}, 2 folds"
    again = script(*command)
    assert again.returncode == 2 and "report.html exists; give another path, or add --overwrite" in again.stderr
    assert script(*command, "--overwrite").returncode == 0


def test_bad_arguments(job, tmp_path, capsys):
    other, damaged, table = tmp_path / "other.npz", tmp_path / "damaged.npz", tmp_path / "f.csv"
    np.savez(other, a=1)
    damaged.write_bytes((job / "train.npz").read_bytes()[:500])
    table.write_text("a,b\n")
    train, head = job / "train.npz", ("--head-out", tmp_path / "head.pt")
    out = "--out", tmp_path / "out"
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ((other,), "other.npz: not a features file, or damaged"),
        ((damaged,), "damaged.npz: "),
        ((table,), "f.csv: unknown kind of file"),
        ((train, "--folds", 1, *out), "folds=1: must be at least 2"),
        ((train, "--folds", 5, *out), "classes with fewer source videos than folds=5: 'bowling' (4), 'chess' (4)"),
        ((train, "--folds", 2, "--out", tmp_path / "file" / "x"), "file"),
        ((train, "--folds", 2, "--test", train), "not allowed with"),
        ((train, "--weights", table, *out), "--weights needs --head-out"),
        ((train, "--head-out", "x.txt"), "it must end in .pt, .pth or .safetensors"),
        ((train, *head, "--weights", table, *out), "f.csv: the features are of other weights"),
    ):
        assert run(main, [*map(str, arguments)]) == 2, arguments
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error


def test_features_that_cannot_have_a_head(tmp_path):
    features = make()
    for about, message in (
        ({"layer": "stage3"}, "default layer and pool 'mean'; these have layer 'stage3'"),
        ({"pool": "max"}, "these have pool 'max'"),
        (
            {"data_config": {}, "model_args": {}},
            "gone.pt: the weights of the features do not exist; name the file with",
        ),
        ({}, "do not name their network"),
    ):
        with pytest.raises(UserError, match=message):
            network_of(dataclasses.replace(features, about={**features.about, "weights": "gone.pt", **about}))
    features.labels[features.labels == 1] = 2
    linear = probe(features, log=lambda line: None).linear
    with pytest.raises(UserError, match="training rows with and without each class; not so for 'run'"):
        write_head(tmp_path / "head.pt", None, features, linear)


def test_a_network_is_made_again_by_its_name(job):
    """The network is that of "features --model": weights that its file lacks, here of the head, are those of seed 0."""
    arguments = {"name": "resnet3d_rs_26", "width": 0.125, "num_classes": 7}
    torch.manual_seed(0)
    network = create_model(**arguments)
    init_from(network, job / "net.pt")
    about = {"weights": "", "init_from": str(job / "net.pt"), "sha256": checkpoint.tensors_sha256(network.state_dict())}
    about |= {"model": network.name, "model_args": arguments, "data_config": TINY, "pool": "mean", "layer": ""}
    made = network_of(dataclasses.replace(make(), about=about))
    network.reset_classifier(3)
    network.head.load_state_dict(made.head.state_dict())  # a new one
    assert same(made.state_dict(), network.state_dict()) and made.data_config.test_size == 32
    with pytest.raises(UserError, match="resnet3d_rs_26 with random weights: the features are of other weights"):
        network_of(dataclasses.replace(make(), about=about | {"init_from": ""}))


def test_a_held_out_split_can_be_tested(job, tmp_path):
    """The checkpoint records the held-out split that the probe was measured on, and "test" accepts that split."""
    train, test = read_features(job / "train.npz"), read_features(job / "test.npz")
    test = dataclasses.replace(test, about=test.about | {"split": "val", "fingerprint": "abc"})
    linear = probe(train, test, log=lambda line: None).linear
    write_head(tmp_path / "head.pt", network_of(train), train, linear, test)
    state = checkpoint.load_run(tmp_path / "head.pt")
    assert state["fingerprint"] == {"val": "abc"}
    write_head(tmp_path / "own.pt", network_of(train), test, linear)  # "val" is what it was fitted on
    assert checkpoint.load_run(tmp_path / "own.pt")["fingerprint"] == {}
    assert state["weights_from"]["source"] == str(job / "net.pt")


def test_a_network_whose_logits_are_not_linear_in_its_features(monkeypatch):
    torch.manual_seed(0)
    network = create_model("resnet_rs_50", width=0.25)
    about = {"model": network.name, "model_args": network.model_args, "pool": "mean", "layer": ""}
    about |= {"sha256": checkpoint.tensors_sha256(network.state_dict()), "data_config": network.data_config.to_dict()}
    about["data_config"] |= {"test_size": 32}
    features = dataclasses.replace(make(), about=about)
    assert network_of(features).num_classes == 3
    forward_head = type(network).forward_head
    monkeypatch.setattr(type(network), "forward_head", lambda *args, **options: forward_head(*args, **options).relu())
    with pytest.raises(UserError, match="resnet_rs_50: its classifier is not one linear layer"):
        network_of(features)
