"""Too little memory: a real limit on the address space of the command, and what it says would fit."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.integration.test_bad_input import assert_one_line
from video_rs import checkpoint

LIMITED = """
import resource, sys
from video_rs.cli.common import run
from video_rs.cli.{command} import main
import {module}
owner = {module}{owner}
original, calls = owner.{function}, []
def limited(*args, **options):
    calls.append(1)
    if len(calls) == {call}:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + {room}, resource.RLIM_INFINITY))
    result = original(*args, **options)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # enough
    return result
owner.{function} = limited
sys.exit(run(main, sys.argv[1:]))
"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")]


def limited(command, path, module, owner, function, call, room):
    text = LIMITED.format(command=command, module=module, owner=owner, function=function, call=call, room=room << 20)
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back
    options = {"capture_output": True, "text": True, "timeout": 300, "env": environment}
    return subprocess.run([sys.executable, "-c", text, "--cfg", str(path)], **options)


def train(path, call, room):
    return limited("train", path, "video_rs.training.trainer", ".Trainer", "_forward_backward", call, room)


@pytest.fixture
def config(tiny_config):
    """Of a step of eight clips at once, some 30 MiB each."""
    sizes = {"data__num_frames": 8, "data__train_size": 96, "data__short_side": 96, "data__test_size": 96}
    steps = {"train__batch_size": 8, "train__micro_batch": 8, "train__threads": 1}
    return lambda **changes: tiny_config(**{"model__width": 0.5, **sizes, **steps, **changes})


def test_training_names_the_micro_batch_that_fits(config, run_tool, tmp_path):
    path = config()
    done = train(path, call=3, room=150)
    assert_one_line(done, 3, "not enough memory for train.micro_batch=8 at step 3", "would fit")
    fits = re.search(r"restart with train.micro_batch=(\d)", done.stderr)[1]
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 2

    with_fits = run_tool("train_net.py", "--cfg", path, f"train.micro_batch={fits}")
    assert with_fits.returncode == 0, with_fits.stderr
    assert "at step 2 of" in with_fits.stdout


@pytest.mark.exhaustive
def test_not_even_one_clip_fits(config):
    """One clip of this size needs more than is left, and a checkpoint less."""
    done = train(config(model__width=0.25, data__train_size=160, data__short_side=160), call=3, room=35)
    assert_one_line(done, 3, "train.micro_batch=8 at step 3: no smaller one fits", "data.num_frames")


def test_testing_uses_the_views_that_fit(config, run_tool, tmp_path):
    path = config(train__max_steps=1, test__batch_size=24)
    assert run_tool("train_net.py", "--cfg", path).returncode == 0
    done = limited("test", path, "video_rs.evaluation.multiview", "", "_forward", 2, 40)
    assert (
        done.returncode == 0 and "not enough memory for 24 views in one forward pass: continuing with 12" in done.stderr
    )
    under_the_limit = (tmp_path / "run" / "test" / "metrics.json").read_text()
    assert run_tool("test_net.py", "--cfg", path).returncode == 0
    one, other = map(json.loads, (under_the_limit, (tmp_path / "run" / "test" / "metrics.json").read_text()))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5) and one["confusion"] == other["confusion"]
