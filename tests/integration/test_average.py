"""``video-rs average``: the mean of checkpoints of a training run, all of them or chosen by validation."""

import dataclasses
import re

import pytest
import torch
import yaml
from torch.optim.swa_utils import AveragedModel, update_bn

import video_rs
from tests.integration.conftest import TINY
from video_rs import checkpoint
from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.experiment.average import average
from video_rs.experiment.config import load_config
from video_rs.experiment.run import make_job, run
from video_rs.models.weights.load import model_from_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = DataConfig(num_frames=1, train_size=160, short_side=160, test_size=160, class_names=("a", "b"))


@pytest.fixture(scope="module")
def trained(tiny_videos, tmp_path_factory):
    """The config of a run, and its checkpoints after 1, 3 and 6 steps."""
    folder = tmp_path_factory.mktemp("average")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    config = load_config(folder / "tiny.yaml", [f"data.root={tiny_videos}", f"out={folder / 'run'}"])
    run(config, resume="", test="", predict="")
    return config, sorted((folder / "run" / "checkpoints").glob("*.pt"))


@pytest.fixture(scope="module")
def job(trained):
    """The loaders and the validation of training."""
    config, _ = trained
    return make_job(dataclasses.replace(config, train=dataclasses.replace(config.train, precise_bn=24)))


def networks(paths):
    return [model_from_checkpoint(checkpoint.load_run(path)) for path in paths]


def mean(models):
    averaged = AveragedModel(models[0])
    for model in models:
        averaged.update_parameters(model)
    return averaged.module


def test_the_mean_is_torchs_and_its_statistics_are_those_of_training_clips(trained, job, tmp_path):
    config, paths = trained
    average(paths, tmp_path / "soup.pt", overrides=["train.precise_bn=8"], log=print)
    state = checkpoint.load_run(tmp_path / "soup.pt")
    found, expected = model_from_checkpoint(state), mean(networks(paths))
    for (name, value), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-7, msg=name)
    exact = torch.stack([checkpoint.weights(checkpoint.load_run(path))["head.weight"].double() for path in paths])
    assert torch.equal(state["model"]["head.weight"], exact.mean(0).float())

    (batch,) = job.loader(0, finished=True, num_steps=1)
    clips = batch["clip"].permute(0, 4, 1, 2, 3) / 255
    expected.load_state_dict(found.state_dict())
    norms = [(name, layer) for name, layer in expected.named_modules() if hasattr(layer, "running_var")]
    counts = {}
    for name, layer in norms:
        layer.register_forward_hook(lambda _, x, y, name=name: counts.update({name: y.numel() / y.shape[1]}))
    for layer in expected.modules():
        layer.p = layer.rate = 0.0  # no dropout and drop path
    update_bn([clips], expected)
    for name, layer in norms:
        unbiased = counts[name] / (counts[name] - 1)  # in torch, the variance of a batch is
        ours = found.get_submodule(name)
        torch.testing.assert_close(ours.running_mean, layer.running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.running_var * unbiased, layer.running_var, rtol=1e-4, atol=1e-6)
    first = checkpoint.load_run(paths[0])
    for key in ("config", "model_args", "data_config", "fingerprint", "weights_from"):
        assert state[key] == first[key], key


def test_a_greedy_soup_is_the_plain_loops(trained, job, tmp_path, run_tool):
    _, paths = trained
    out = tmp_path / "soup.safetensors"
    result = run_tool("average_weights.py", *paths, "--out", out, "--val", "train.precise_bn=24")
    assert result.returncode == 0, result.stderr
    check = bool  # called often in training, to stop it

    names, models = [*map(str, paths)], networks(paths)
    alone = [job.validate(model, check)["top1"] for model in models]
    order = sorted(range(3), key=lambda number: -alone[number])
    added, best, rows, soup = order[:1], alone[order[0]], [], models[order[0]]
    for number in order:
        together = best
        if number not in added:
            candidate = job.prepare(mean([models[each] for each in [*added, number]]), check)
            together = job.validate(candidate, check)["top1"]
            if together >= best:
                added, best, soup = [*added, number], together, candidate
        verdict = "yes" if number in added else "no"
        rows.append([names[number], f"{100 * alone[number]:.2f}", f"{100 * together:.2f}", verdict])
    table = re.findall(r"^(\S+\.pt) +(\S+) % +(\S+) % +(yes|no)$", result.stdout, re.MULTILINE)
    assert [list(row) for row in table] == rows and {row[3] for row in rows} == {"yes", "no"}
    assert f"wrote {out}, the average of {len(added)} of 3 checkpoints; next: " in result.stdout
    state = checkpoint.load_run(out)
    assert state["metrics"]["top1"] == best
    for name, value in soup.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # torch takes integers from the last one, we from the first
            torch.testing.assert_close(state["model"][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_predict_test_and_features_take_the_result(trained, tiny_videos, tmp_path, run_tool):
    """Checkpoints of other regularization are of the same network."""
    _, paths = trained
    state, other = checkpoint.load_run(paths[1]), tmp_path / "other.pt"
    checkpoint.save(other, {**state, "model_args": {**state["model_args"], "dropout": 0.5, "drop_path": 0.0}})
    average([other, paths[2]], tmp_path / "soup.pt", overrides=["train.precise_bn=8"])
    video = tiny_videos / "test" / "zoom_in" / "00000.mp4"
    weights = ("--weights", tmp_path / "soup.pt")
    small = ("test.clips=1", "test.crops=1")
    for command in (
        ("predict.py", *weights, video, "--workers", 0),
        ("test_net.py", *weights, *small),
        ("extract_features.py", *weights, "--data", video, "--out", tmp_path / "f.npz", "--workers", 0),
    ):
        result = run_tool(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr


def image_network(path, seed, **record):
    torch.manual_seed(seed)
    model = video_rs.create_model("timm/test_vit", num_classes=2, data_config=IMAGES)
    checkpoint.save(path, checkpoint.from_weights(model.model_args, IMAGES, model.state_dict(), **record))
    return path


def test_a_network_without_batch_norm_needs_no_data(tmp_path):
    lines, first = [], {"source": "x", "licence": "apache-2.0"}
    paths = [
        image_network(tmp_path / f"{seed}.pt", seed, weights_from=[first, None, {**first, "source": "y"}][seed])
        for seed in range(3)
    ]
    average(paths, tmp_path / "soup.pt", log=lines.append)
    state, expected = checkpoint.load_run(tmp_path / "soup.pt"), mean(networks(paths))
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(state["model"][name], value)
    assert state["weights_from"] == {"source": "x; random weights; y", "licence": "apache-2.0"}
    assert lines == [
        "no batch norm: no training clips are needed",
        "the initial weights differ: x; random weights; y; licence apache-2.0",
    ]
    average([paths[0], paths[0]], tmp_path / "soup.pt", overwrite=True, log=lines.append)
    assert checkpoint.load_run(tmp_path / "soup.pt")["weights_from"] == first


def test_other_networks_data_and_names_are_refused(trained, tmp_path):
    config, (path, *_) = trained
    state, other, out = checkpoint.load_run(path), tmp_path / "other.pt", tmp_path / "soup.pt"
    names = state["data_config"]["class_names"]

    def refused(message, *paths, change=None, **options):
        checkpoint.save(other, {**state, **(change or {})})
        with pytest.raises(UserError, match=re.escape(message)):
            average(paths or [path, other], out, **options)
        assert not out.exists()

    image = image_network(tmp_path / "image.pt", 0)
    refused(f"{image} differs from {path}: model.name is 'timm/test_vit', not 'resnet3d_rs_26', ", path, image)
    for entry, key, value, message in (
        ("model_args", "temporal_padding", "replicate", "model.temporal_padding is 'replicate', not null; "),
        ("data_config", "num_frames", 8, "data.num_frames is 8, not 4; average"),
        ("data_config", "class_names", [*names[:7], "x"], "class 7 is 'x', not 'zoom_out'; "),
    ):
        refused(f"{other} differs from {path}: {message}", change={entry: {**state[entry], key: value}})
    weights = {**state["ema"], "head.bias": torch.full((8,), torch.nan)}
    refused(f"{other}: its weights are not finite", change={"ema": weights})
    refused("at least two checkpoints", path)
    refused("does not fit this config: data.num_frames is 8", overrides=["data.num_frames=8"])
    held_out = [f"data.{key}={value}" for key, value in {"root": "", "train": f"{config.data.root}/train"}.items()]
    refused("the one held out from its training files is not that of", val=True, overrides=held_out)
    refused("no val split", val=True, overrides=[*held_out, "data.val_fraction=0"])
    out.mkdir()
    with pytest.raises(UserError, match="soup.pt exists; give another --out, or add --overwrite"):
        average([path, path], out)
