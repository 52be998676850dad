"""``torch.compile``: one graph, the same numbers, and one line if the compiler fails."""

import copy
import shutil
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from video_rs.errors import MachineError
from video_rs.models.architecture import GARDEN_3D, RESNET_RS_2D, RESNET_RS_3D
from video_rs.models.layers import keyed_uniform
from video_rs.models.resnet_rs import ResNetRS
from video_rs.signals import StopSignals
from video_rs.training.ema import EMA
from video_rs.training.losses import CrossEntropy
from video_rs.training.lr_schedule import learning_rate
from video_rs.training.optim import create
from video_rs.training.schedule import Schedule
from video_rs.training.trainer import Trainer, _explain_compiler_error

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler: apt install g++")


@pytest.fixture(autouse=True)
def fresh(one_thread, tmp_path, monkeypatch):
    """Start without compiled code."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network(architecture, blocks=(1, 1)):
    """Return a network whose residual branches are not zero and whose running statistics are averages."""
    torch.manual_seed(0)
    model = ResNetRS(architecture, blocks, 5, width=0.125, dropout=0.2, drop_path=0.3)
    for name, weight in model.named_parameters():
        if name.endswith("conv3.norm.weight"):
            nn.init.uniform_(weight, 0.1, 0.3)
    return model


@pytest.mark.parametrize(
    ("architecture", "stages"),
    [
        pytest.param(RESNET_RS_2D, (), id="2d", marks=pytest.mark.exhaustive),
        pytest.param(RESNET_RS_3D, (1,), id="3d", marks=pytest.mark.slow),
        pytest.param(GARDEN_3D, (), id="garden", marks=pytest.mark.exhaustive),
    ],
)
def test_the_network_is_one_graph(architecture, stages):
    model = network(architecture)
    model.set_grad_checkpointing(stages)
    clips = torch.randn(2, 3, 1 if architecture is RESNET_RS_2D else 4, 32, 32)
    other, keys = copy.deepcopy(model), torch.arange(2)
    compiled = torch.compile(other, fullgraph=True, dynamic=False, backend="aot_eager")
    results = [each(clips, keys) for each in (model, compiled)]
    for result in results:
        result.sum().backward()
    torch.testing.assert_close(*results, rtol=0, atol=0)
    for (buffer, value), of_other in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(value, of_other), buffer


@needs_compiler
@pytest.mark.exhaustive
@pytest.mark.parametrize(("stream", "size"), [(0, 333), (3, 40), (3, 1)])
def test_dropout_draws_the_same(stream, size):
    """Integers wrap at 64 bits; compilers can assume that they do not."""
    keys = torch.randint(-(2**63), 2**63 - 1, (16,))
    compiled = torch.compile(keyed_uniform, fullgraph=True, dynamic=False)
    assert torch.equal(compiled(keys, stream, size), keyed_uniform(keys, stream, size))


def trainer(compile, architecture, blocks, stages=()):
    model = network(architecture, blocks)
    model.set_grad_checkpointing(stages)
    schedule = Schedule(num_samples=8, num_steps=3, batch_size=8, micro_batch=4)
    return Trainer(
        model,
        schedule,
        criterion=CrossEntropy(0.1),
        optimizer=create("sgd", model, momentum=0.9, nesterov=True, weight_decay=1e-4),
        learning_rate=learning_rate(0.05, 3, 0),
        ema=EMA(model, 0.9),
        mixup=0.2,
        compile=compile,
    )


def steps(trainer, frames, count):
    """Return the loss and the gradients of each step."""
    found = []
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        clips = torch.randint(0, 256, (8, frames, 32, 32, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 5, (8,), generator=generator)
        trainer.train_step({"clip": clips[i : i + 4], "label": labels[i : i + 4]} for i in (0, 4))
        found.append([torch.tensor(trainer.metrics.means()[0]), *(p.grad.clone() for p in trainer.model.parameters())])
        trainer.metrics.clear()
    return found


@needs_compiler
@pytest.mark.parametrize(
    ("architecture", "blocks", "stages"),
    [
        pytest.param(RESNET_RS_3D, (1,), (1,), id="3d, one block", marks=pytest.mark.slow),
        pytest.param(RESNET_RS_3D, (1, 1), (1,), id="3d", marks=pytest.mark.exhaustive),
        pytest.param(RESNET_RS_2D, (1, 1), (), id="2d", marks=pytest.mark.exhaustive),
    ],
)
def test_compiled_equals_eager(architecture, blocks, stages):
    frames = 1 if architecture is RESNET_RS_2D else 4
    eager, compiled = trainer(False, architecture, blocks), trainer(True, architecture, blocks, stages)
    for expected, found in zip(steps(eager, frames, 2), steps(compiled, frames, 2), strict=True):
        for value, other in zip(expected, found, strict=True):
            assert (value - other).norm() <= 1e-4 * value.norm() + 1e-9
    for of_eager, of_compiled in ((eager.model, compiled.model), (eager.ema.model, compiled.ema.model)):
        assert list(of_eager.state_dict()) == list(of_compiled.state_dict())
        for name, value in of_eager.state_dict().items():
            torch.testing.assert_close(of_compiled.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_a_compiler_that_is_missing(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    job = trainer(True, RESNET_RS_2D, (1,))
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    with pytest.raises(MachineError, match="torch.compile failed .*train.compile=false") as caught:
        steps(job, 1, 1)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in job.model.state_dict().items())


def test_a_stop_signal_ends_the_process_while_it_compiles(monkeypatch):
    """It takes minutes, and an error in its midst would leave torch in an undefined state."""
    busy = []

    def compiled(network, **options):
        def forward(clips, keys):
            busy.append(StopSignals.active.busy)
            return network(clips, keys)

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    job = trainer(True, RESNET_RS_2D, (1,))
    with StopSignals():
        steps(job, 1, 2)
        assert StopSignals.active.busy == ""
    assert busy == ["the network is compiled"] * 2 + [""] * 2  # of two micro-batches
    code = "import os, time; from video_rs.signals import *\n"
    code += "with exit_on_signals(), StopSignals(), ended_by_signals('it compiles'):\n"
    code += "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (75, "error: received SIGTERM while it compiles; restart to resume\n")
    assert time.monotonic() - start < 20  # 3 seconds and the start of a process, on a busy machine


def test_other_errors_keep_their_traceback():
    _explain_compiler_error(RuntimeError("a bug of ours"))
