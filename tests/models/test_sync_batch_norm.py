"""Batch norm over ranks equals one batch norm over all their samples."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from video_rs import create_model
from video_rs.errors import UserError
from video_rs.models.sync_batch_norm import SyncBatchNorm3d, convert_sync_batch_norm


def outcome(norm, x, gradient):
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(gradient)
    return y.detach(), x.grad


def compare(rank, processes, norm, shape, device="cpu"):
    """Compare one batch norm on all samples with one over ranks that have a part each."""
    torch.manual_seed(0)
    x = 100 + torch.randn(8, *shape, dtype=torch.float64, device=device)
    gradient = torch.randn_like(x)
    if norm.affine:
        nn.init.normal_(norm.weight)
    synced = convert_sync_batch_norm(copy.deepcopy(norm))
    part = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
    (y, dx), (own_y, own_dx) = outcome(norm, x, gradient), outcome(synced, x[part], gradient[part])
    pairs = [(own_y, y[part]), (own_dx, dx[part]), (synced.running_mean, norm.running_mean)]
    pairs += [(synced.running_var, norm.running_var)]
    for own, whole in zip(synced.parameters(), norm.parameters()):
        dist.all_reduce(own.grad)
        pairs.append((own.grad, whole.grad))
    for own, whole in pairs:
        torch.testing.assert_close(own, whole, rtol=1e-12, atol=1e-11)
    assert synced.num_batches_tracked == 1
    synced.eval()(x[part])  # alone: no process waits for another
    return synced


def work(rank, processes, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    for momentum in (1.0, 0.1):
        compare(rank, processes, nn.BatchNorm3d(5, momentum=momentum).double(), (5, 2, 3, 3))
    compare(rank, processes, nn.BatchNorm2d(5, affine=False).double(), (5, 3, 3))
    compare(rank, processes, nn.BatchNorm1d(5).double(), (5,))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError):  # the backward pass alone
        patch.setattr(dist, "all_reduce", lambda tensor: None)
        compare(rank, processes, nn.BatchNorm3d(5).double(), (5, 2, 3, 3))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_equals_one_batch_norm(tmp_path, processes):
    torch.multiprocessing.spawn(work, (processes, tmp_path / "store"), nprocs=processes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_equals_torchs_on_a_gpu(tmp_path):
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    ours = compare(0, 1, nn.BatchNorm3d(5).double().cuda(), (5, 2, 3, 3), "cuda")
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm3d(5).double().cuda())
    theirs.load_state_dict(ours.state_dict())
    x, gradient = torch.randn(2, 4, 5, 2, 3, 3, dtype=torch.float64, device="cuda")
    for a, b in zip(outcome(ours.train(), x, gradient), outcome(theirs.train(), x, gradient)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    dist.destroy_process_group()


def test_conversion_keeps_the_network(one_thread):
    model = create_model("resnet3d_rs_26", width=0.125, num_classes=3)
    before, x = copy.deepcopy(model.eval()), torch.randn(2, 3, 4, 32, 32)
    convert_sync_batch_norm(model)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.BatchNorm3d)}
    assert kinds == {SyncBatchNorm3d}
    assert model.state_dict().keys() == before.state_dict().keys()
    assert torch.equal(model(x), before(x))
    keys = torch.arange(2)
    model, before = model.train().double(), before.train().double()
    torch.testing.assert_close(model(x.double(), keys), before(x.double(), keys), rtol=1e-9, atol=1e-9)


def test_one_value_per_channel_has_no_variance():
    """It would make the running variance NaN for good, and the loss would not show it."""
    norm = convert_sync_batch_norm(nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(UserError, match=r"one value per channel \(\[1, 3, 1, 1\]\): raise train.micro_batch"):
        norm(torch.randn(1, 3, 1, 1))
    assert norm[0].running_var.isfinite().all()
    assert norm(torch.randn(1, 3, 1, 2)).shape == (1, 3, 1, 2)
