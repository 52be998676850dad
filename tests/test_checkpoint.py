"""Checkpoints are written atomically, and code in them is never executed."""

import errno
import json
import os
import pickle

import pytest
import safetensors
import safetensors.torch
import torch

import video_rs
from tests.commands import full_disk
from video_rs import checkpoint
from video_rs.data_config import DataConfig
from video_rs.errors import MachineError, UserError


def test_round_trip(tmp_path):
    state = {"model": {"w": torch.arange(6.0).view(2, 3)}, "step": 3, "config": {"a": [1, None, "x"]}}
    checkpoint.save(tmp_path / "deep" / "a.pt", state)
    loaded = checkpoint.load(tmp_path / "deep" / "a.pt")
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert loaded["config"] == state["config"]
    assert os.listdir(tmp_path / "deep") == ["a.pt"]


def test_weights_prefer_the_average():
    model, ema = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    assert checkpoint.weights({"model": model, "ema": ema}) is ema
    assert checkpoint.weights({"model": model, "ema": None}) is model


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("writer", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_code_is_refused_and_not_run(tmp_path, writer):
    path = tmp_path / "evil.pt"
    writer({"model": Evil(tmp_path / "was_run")}, path)
    with pytest.raises(UserError, match="evil.pt holds Python objects .*not executed"):
        checkpoint.load(path)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated(tmp_path, keep):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"w": torch.randn(1000)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(UserError, match="a.pt"):
        checkpoint.load(path)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error"), RuntimeError("bad_alloc")])
def test_what_the_machine_gets_wrong_is_not_the_files_fault(tmp_path, monkeypatch, error):
    """Otherwise the message would call the file damaged, or a run would resume from an older one."""
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"w": torch.zeros(1)})

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MachineError, match=r"a\.pt"):
        checkpoint.load(path)


def test_not_a_checkpoint(tmp_path):
    path = tmp_path / "a.pt"
    for content in (b"", b"hello there", b"a b c", b"\x89PNG\r\n\x1a\n", b"<html>404</html>", bytes(range(1, 256))):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.pt is not a checkpoint"):
            checkpoint.load(path)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(tmp_path / "gone.pt")
    checkpoint.save(path, {"w": torch.zeros(1)})
    with pytest.raises(UserError, match="train.init_from"):
        checkpoint.load_run(path)


@pytest.mark.parametrize("name", ["last.pt", "a.safetensors"])
def test_a_full_disk_leaves_the_previous_one_intact(tmp_path, name):
    path = tmp_path / name
    checkpoint.save(path, {"w": torch.ones(10)})
    with full_disk(65536), pytest.raises(MachineError, match=f"{name} cannot be written"):
        checkpoint.save(path, {"w": torch.randn(100_000)})
    assert os.listdir(tmp_path) == [name] and torch.equal(checkpoint.load(path)["w"], torch.ones(10))


def test_where_no_file_can_be(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder.pt", tmp_path / "file" / "a.pt", tmp_path / ("a" * 300)):
        with pytest.raises(UserError, match="cannot be written: .*; give another path"):
            checkpoint.save(path, {"w": torch.ones(1)})


# safetensors ---------------------------------------------------------------------------------------------------------

TINY = {"name": "resnet3d_rs_26", "num_classes": 3, "width": 0.125}
NAMES = ["archery", "yoga", 'a "class" \u00fc']


@pytest.fixture(scope="module")
def run():
    """The state of a run whose EMA differs from its weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = video_rs.create_model(**TINY).to(memory_format=torch.channels_last_3d)
    torch.nn.init.normal_(model.head.weight, std=3.0)
    data_config = {
        **model.data_config.to_dict(),
        "num_frames": 4,
        "short_side": 32,
        "test_size": 32,
        "class_names": NAMES,
    }
    return {
        "format": 1,
        "config": {"data": {"mean": [0.1, float("inf")], "root": "/d\u00e4ta"}},
        "model_args": TINY,
        "data_config": data_config,
        "model": {name: torch.zeros_like(value) for name, value in model.state_dict().items()},
        "ema": model.state_dict(),
        "step": 7,
        "versions": {"video_rs": "0.1.0"},
        "fingerprint": {"val": "abc"},
        "weights_from": {"source": "timm", "licence": "Apache-2.0"},
        "optimizer": {"momentum": torch.ones(3)},
    }


def frames():
    return torch.randint(0, 256, (8, 40, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_safetensors_carry_all_that_prediction_needs(tmp_path, run):
    checkpoint.save(tmp_path / "last.pt", run)
    checkpoint.save(tmp_path / "last.safetensors", checkpoint.load_run(tmp_path / "last.pt"))
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "last.safetensors"]
    state = checkpoint.load_run(tmp_path / "last.safetensors")
    kept = ("format", "config", "model_args", "data_config", "step", "versions", "fingerprint", "weights_from")
    assert {key: state[key] for key in kept} == {key: run[key] for key in kept}
    assert state["ema"] is None and "optimizer" not in state
    assert state["model"].keys() == run["ema"].keys()
    for name, value in run["ema"].items():
        assert torch.equal(state["model"][name], value) and state["model"][name].dtype == value.dtype
    before, after = (video_rs.load(tmp_path / f"last.{suffix}", "cpu") for suffix in ("pt", "safetensors"))
    assert after.predict(frames()) == before.predict(frames()) and {p.label for p in after.predict(frames())} == {
        *NAMES
    }
    assert after.data_config == before.data_config


def test_safetensors_are_read_by_others(tmp_path, run):
    checkpoint.save(tmp_path / "a.safetensors", run)
    tensors = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(tensors[name], value) for name, value in run["ema"].items())
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as handle:
        assert json.loads(handle.metadata()["data_config"])["class_names"] == NAMES


def test_bare_safetensors(tmp_path):
    """Tensors that share memory or have another memory format are read with equal values."""
    base = torch.arange(24.0).view(1, 2, 3, 4)
    tensors = {"a": base, "b": base[:, 1], "c": base.to(memory_format=torch.channels_last), "d": torch.tensor(3)}
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, tensors)
    loaded = checkpoint.load(path)
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert not checkpoint.is_run(loaded)
    with pytest.raises(UserError, match="a.safetensors holds bare weights.*train.init_from"):
        checkpoint.load_run(path)
    with pytest.raises(UserError, match="a.safetensors can hold only tensors, and epoch is not one"):
        checkpoint.save(path, {**tensors, "epoch": 3})
    assert checkpoint.load(path).keys() == tensors.keys()


def test_safetensors_under_another_name(tmp_path, run):
    checkpoint.save(tmp_path / "a.safetensors", run)
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pt")
    assert checkpoint.load_run(tmp_path / "a.pt")["step"] == 7


def test_records_that_other_programs_wrote(tmp_path, run):
    path = tmp_path / "a.safetensors"
    train = {"init_from": "https://host/a.pt?token=secret"}
    checkpoint.save(path, {**run, "step": 5.0, "metrics": None, "config": {**run["config"], "train": train}})
    state = checkpoint.load_run(path)
    assert (state["step"], state["metrics"]) == (5, None)
    assert state["config"]["train"]["init_from"] == "https://host/a.pt"


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_names_that_no_file_has(name):
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(name)


def one_line(path, run=checkpoint.load_run):
    with pytest.raises(UserError) as caught:
        run(path)
    message = str(caught.value)
    assert path.name in message and "\n" not in message and len(message) < 1000
    return message


def test_safetensors_that_are_damaged(tmp_path, run):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, run)
    data = path.read_bytes()
    for content in (b"", data[:5], b"<html>404</html>", b"PK\x03\x04 as torch.save begins"):
        path.write_bytes(content)
        assert one_line(path) == f"{path} is not a safetensors file"
    for content in (data[:9], data[:1000], data[:-1], data + b"x", data[:9] + b"?" + data[10:]):
        path.write_bytes(content)
        assert one_line(path) == f"checkpoint {path} is truncated or damaged"
    assert "does not exist" in one_line(tmp_path / "gone.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert "is a folder without best.pt; name a file" in one_line(tmp_path / "folder.safetensors")
    checkpoint.save(tmp_path / "folder.safetensors" / "best.pt", run)  # as a run folder
    assert checkpoint.load(tmp_path / "folder.safetensors")["model_args"] == run["model_args"]
    odd = tmp_path / os.fsdecode(b"odd\xff.safetensors")
    odd.write_bytes(data)
    assert "rename it" in one_line(odd)


@pytest.mark.parametrize(
    "key, text, reason",
    [
        ("data_config", "{", "data_config in its metadata is not JSON"),
        ("data_config", "[" * 100_000, "data_config in its metadata is not JSON"),
        ("format", "9" * 10_000, "format in its metadata is not JSON"),
        ("format", "3", "has checkpoint format 3, this version reads 2: upgrade"),
        ("format", '"1"', "its entry format is invalid"),
        ("config", "[]", "its entry config is invalid"),
        ("model_args", "null", "its entry model_args is invalid"),
        ("model_args", '{"name": 3}', "its entry model_args is invalid"),
        ("data_config", "7", "its entry data_config is invalid"),
    ],
)
def test_metadata_that_are_damaged(tmp_path, run, key, text, reason):
    assert reason in one_line(with_metadata(tmp_path / "a.safetensors", run, key, text))


def with_metadata(path, run, key, text):
    metadata = {name: json.dumps(run[name]) for name in ("format", "config", "model_args", "data_config")}
    tensors = {name: value.contiguous() for name, value in run["ema"].items()}
    safetensors.torch.save_file(tensors, path, metadata | {key: text})
    return path


@pytest.mark.parametrize(
    "key, changes, reason",
    [
        ("model_args", {"name": "resnet3d_rs_27"}, "there is no model 'resnet3d_rs_27'; did you mean resnet3d_rs_2"),
        ("model_args", {"name": "os.system"}, "there is no model 'os.system'"),
        ("model_args", {"heads": 2}, "model_args ['heads'], unknown to this version"),
        ("model_args", {"pretrained": True}, "model_args ['pretrained'], unknown to this version"),  # it would download
        ("model_args", {"data_config": None}, "model_args ['data_config'], unknown to this version"),
        ("model_args", {"width": "wide"}, "the network cannot be created from its model_args"),
        ("model_args", {"width": 1e9}, "the network cannot be created from its model_args"),
        ("model_args", {"num_classes": -1}, "the network cannot be created from its model_args"),
        ("model_args", {"num_classes": 10**13}, "the network cannot be created from its model_args"),
        ("model_args", {"num_classes": 10**30}, "the network cannot be created from its model_args"),
        ("model_args", {"in_channels": 0}, "the network cannot be created from its model_args"),
        ("model_args", {"name": "resnet_rs_26"}, "as resnet_rs_26 it does not fit"),
        ("data_config", {"num_frames": "4"}, "its data config has an invalid num_frames"),
        ("data_config", {"stride": 0}, "its data config has an invalid stride"),
        ("data_config", {"filter": "../x"}, "its data config has an invalid filter"),
        ("data_config", {"mean": [0, 0, "0"]}, "its data config has an invalid mean"),
        ("data_config", {"std": [1.0]}, "mean and std do not have 3 channels"),
        ("data_config", {"class_names": [1, 2, 3]}, "its data config has an invalid class_names"),
        ("data_config", {"class_names": ["a"]}, "1 class names for 3 classes"),
        ("data_config", {"audio": 1}, "data config fields ['audio'], unknown to this version"),
    ],
)
def test_metadata_that_lie(tmp_path, run, key, changes, reason):
    path = with_metadata(tmp_path / "a.safetensors", run, key, json.dumps({**run[key], **changes}))
    assert reason in one_line(path, lambda path: video_rs.load(path, "cpu"))


@pytest.mark.parametrize(
    "key, value",
    [("step", "3"), ("metrics", [1]), ("fingerprint", 3), ("versions", "0.1.0"), ("weights_from", "timm"), ("ema", 3)],
)
def test_entries_that_may_lack_but_not_be_something_else(tmp_path, run, key, value):
    checkpoint.save(tmp_path / "a.pt", {**run, key: value})
    assert f"its entry {key} is invalid" in one_line(tmp_path / "a.pt")
    checkpoint.save(tmp_path / "b.pt", {name: entry for name, entry in run.items() if name != key})
    assert checkpoint.load_run(tmp_path / "b.pt").keys() == run.keys() - {key}


def test_figures_of_all_kinds(tmp_path, run):
    figures = {"top1": torch.tensor(0.5), "of": torch.tensor([1, 2]), "loss": float("inf"), "nan": float("nan")}
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {**run, "metrics": figures})
    with safetensors.safe_open(path, "pt") as handle:
        text = handle.metadata()["metrics"]
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert strict == checkpoint.load_run(path)["metrics"]
    assert strict == {"top1": 0.5, "of": [1, 2], "loss": None, "nan": None}
    for odd in ({"top1": object()}, {(1, 2): 0.5}):
        assert "a.safetensors cannot hold its metrics" in (
            one_line(path, lambda path, figures=odd: checkpoint.save(path, {**run, "metrics": figures}))
        )
    assert checkpoint.load_run(path)["metrics"] == strict


def test_a_checkpoint_of_weights(tmp_path, run):
    data_config = DataConfig.from_dict(run["data_config"])
    state = checkpoint.from_weights(TINY, data_config, run["ema"], config=run["config"], step=7)
    assert (state["step"], state["config"], state["ema"]) == (7, run["config"], None)
    assert (
        checkpoint.from_weights(TINY, data_config, run["ema"]).items() >= {"step": 0, "config": {}, "format": 2}.items()
    )
    checkpoint.save(tmp_path / "a.pt", state)
    assert video_rs.load(tmp_path / "a.pt", "cpu").data_config == data_config


@pytest.mark.parametrize("weights", [{3: torch.ones(1)}, {"head.weight": 3}, [1]])
def test_weights_that_are_none(tmp_path, run, weights):
    checkpoint.save(tmp_path / "a.pt", {**run, "ema": weights})
    assert "its entry ema is invalid" in one_line(tmp_path / "a.pt")


def test_a_run_cannot_go_on_from_safetensors(tmp_path, run):
    from video_rs.training.run_folder import newest_valid

    checkpoint.save(tmp_path / "a.safetensors", run)
    (tmp_path / "a.safetensors").rename(tmp_path / "last.pt")
    with pytest.raises(UserError, match="last.pt has weights and no training state.*train.init_from"):
        newest_valid(tmp_path)


def test_a_config_without_secrets():
    config = {"out": "a", "train": {"epochs": 1, "init_from": "https://me:secret@h/a.pt?token=secret"}}
    assert checkpoint.redact_config(config) == {"out": "a", "train": {"epochs": 1, "init_from": "https://h/a.pt"}}
    assert checkpoint.redact_config({"out": "a"}) == {"out": "a"}
