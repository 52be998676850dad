"""``video-rs models``: the table, one network, docs/models.md, and what it says to names that don't exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from video_rs.cli.common import run
from video_rs.cli.main import dispatch
from video_rs.cli.models import ARCHITECTURES, _beside, markdown, row
from video_rs.models.adapters.pytorchvideo import ENTRIES
from video_rs.models.presets import PRESETS
from video_rs.models.registry import list_models

DOCS = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def models(capsys, *arguments: str) -> list[str]:
    assert run(dispatch, ["models", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_table_has_the_references_figures_beside_ours(capsys):
    header, *lines = models(capsys, "garden_slowonly_50*")
    assert " ".join(lines[0].split()) == (
        "garden_slowonly_50 Garden SlowOnly 8x224x224 32,454,096 32,454,096 (+0) 41.741 41.74 (+0.00 %) 703 "
        "74.1 Kinetics-400, tensorflow/models"
    )
    assert lines[1].startswith("garden_slowonly_50_16x4 ") and "16x224x224" in lines[1] and lines[2] == ""
    assert "half of the papers' FLOPs" in " ".join(lines[3:])
    for heading in ("parameters", "reference GMACs", "MiB"):  # right-aligned under their headings
        end = header.index(heading) + len(heading)
        assert all(line[end - 1] != " " and line[end] == " " for line in lines[:2])


def test_differences_show():
    preset = PRESETS["garden_r3d_50"]
    smaller = dataclasses.replace(preset.reference, parameters=preset.reference.parameters + 7, gmacs=100.0)
    cells = row(dataclasses.replace(preset, reference=smaller))
    assert cells[4] == "32,491,735 (-7)" and cells[6] == "100 (-8.97 %)"
    assert _beside(1.99999, 2.0) == "2 (+0.00 %)" and _beside(2.02, 2.0) == "2 (+1.00 %)"


def test_one_network_stage_by_stage(capsys):
    text = "\n".join(models(capsys, "garden_resnet_rs_50"))
    assert "garden_resnet_rs_50: Garden image architecture, 160x160, 35,693,961 parameters, 2.279 GMACs\n" in text
    assert re.search(r"stages\.1 +512x20x20 +1,746,432 +0\.525  4 x \[1x1, 128; 3x3, 128; 1x1, 512\], SE, stri", text)
    assert "On test crops, 160x160: 2.279 GMACs\n" in text
    assert "  dropout 0.25\n  drop path 0\n  RandAugment 2 layers, magnitude 10\n" in text
    assert "Reference: 35,693,961 parameters, 2.279 GMACs (tf-models-official 2.20.0" in text
    assert "  ImageNet, 160x160: top-1 79.1, top-5 94.5 (tensorflow/models MODEL_GARDEN.md)\n" in text
    assert "  short_side 183\n  test_size 160\n  filter bilinear\n" in text


def test_a_video_network_on_test_crops(capsys):
    text = "\n".join(models(capsys, "garden_resnet3d_rs_50"))
    assert "On test crops, 32x256x256: 114.966 GMACs\n" in text
    assert "  drop path 0.1 (by stage: 0.04, 0.06, 0.08, 0.1)\n  RandAugment none\n" in text


def test_a_network_of_another_package(capsys):
    pytest.importorskip("timm")
    text = "\n".join(models(capsys, "timm/resnet18"))
    assert text.startswith("timm/resnet18: 224x224, 11,689,512 parameters, 1.814 GMACs\n")
    assert re.search(r"layer2 +128x28x28 +525,568 +0\.411", text)
    assert "Data config" in text and "mean [0.485, 0.456, 0.406]" in text
    assert "Public weights: timm/resnet18.a1_in1k, licence apache-2.0\n" in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet3d_rs50", ["resnet3d_rs50", "did you mean resnet3d_rs_50"]),
        ("resnet9*", ["resnet9*", "lists them all"]),
        ("jax/resnet50", ["jax/resnet50"]),
        ("jax/*", ["jax/*", "begin with timm/ or pytorchvideo/"]),
        ("timm/zz*", ["no model matches 'timm/zz*'", "'timm/*' lists all of timm"]),
        ("slow_r*", ["no model matches 'slow_r*'", "'pytorchvideo/slow_r*' lists 1"]),
        ("timm/garden_r3d*", ["no model matches 'timm/garden_r3d*'", "'garden_r3d*' lists 2"]),
        ("pytorchvideo/resnetrs*", ["no model matches 'pytorchvideo/resnetrs*'", "'timm/resnetrs*' lists 7"]),
        ("slow_r50", ["no model 'slow_r50'; did you mean pytorchvideo/slow_r50?"]),
        ("jax/slow_r50", ["begin with timm/ or pytorchvideo/; did you mean pytorchvideo/slow_r50?"]),
    ],
)
def test_unknown_names_are_one_line(capsys, name, words):
    assert run(dispatch, ["models", name]) == 2
    out, error = capsys.readouterr()
    assert not out and len(error.splitlines()) == 1 and all(word in error for word in words)


@pytest.mark.parametrize("name", ["resnet3d_rs_50", "timm/resnet18", "pytorchvideo/*"])
def test_only_the_tables_are_markdown(capsys, name):
    assert run(dispatch, ["models", "--markdown", name]) == 2
    assert capsys.readouterr().err == (
        "error: --markdown is for the table of our own networks: give a pattern such as 'garden_*', or none\n"
    )


def test_names_of_another_packages_networks(capsys):
    pytest.importorskip("pytorchvideo")
    assert run(dispatch, ["models", "pytorchvideo/*"]) == 0
    out, error = capsys.readouterr()
    assert (
        out.splitlines() == [f"pytorchvideo/{name}" for name in ENTRIES] and "NAME prints one stage by stage" in error
    )


def test_a_network_without_classes_of_its_own(capsys):
    pytest.importorskip("timm")
    text = "\n".join(models(capsys, "timm/resnet50_clip_gap"))
    assert "Shown with 1000 classes, as the network has no default; set model.num_classes\n" in text
    assert text.startswith("timm/resnet50_clip_gap: 224x224, 25,") and "Data config" in text


def test_tables_on_a_terminal(capsys, monkeypatch):
    """A line for each network, whatever the width: no number is cut. In files and pipes nothing is bold."""
    piped = models(capsys, "garden_slowonly_50*")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    shown = models(capsys, "garden_slowonly_50*")
    assert shown[0] != piped[0] and shown[1:] == piped[1:]
    assert len(piped[0]) > 120 and not any("\x1b" in line for line in piped)


def test_the_documentation_names_pytorchvideos():
    section = DOCS.read_text().partition("## Networks of other packages")[2].partition("\n## ")[0]
    assert all(f"`{name}`" in section for name in ENTRIES) and "`forward_features`" in section


def test_the_documentation_is_as_generated():
    start, end = "<!-- generated: video-rs models --markdown -->\n", "<!-- end of generated -->\n"
    written = DOCS.read_text().partition(start)[2].partition(end)[0]
    assert written.splitlines() == "\n".join(markdown(list_models())).splitlines()


def test_the_documentation_knows_all_architectures():
    text = DOCS.read_text()
    assert {preset.architecture for preset in PRESETS.values()} == set(ARCHITECTURES)
    architectures = text[text.index("## Architectures") : text.index("## Cost")]
    assert all(name.removesuffix(", inflated") in architectures for name in ARCHITECTURES.values())
    assert text.rindex("\n## ") == text.index("\n## Checked against TensorFlow")
