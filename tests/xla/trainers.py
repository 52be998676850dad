"""Trainers of one small network on any device, with the same weights and the same batches."""

import torch
from torch import nn

from video_rs.data_config import DataConfig
from video_rs.distributed.world import World
from video_rs.models.layers import DropPath
from video_rs.models.registry import create_model
from video_rs.models.sync_batch_norm import convert_sync_batch_norm
from video_rs.training import optim
from video_rs.training.ema import EMA
from video_rs.training.losses import CrossEntropy
from video_rs.training.lr_schedule import learning_rate
from video_rs.training.schedule import Schedule
from video_rs.training.trainer import Trainer

CLASSES, SHAPE = 5, (4, 32, 32, 3)
PLAN = Schedule(num_samples=80, num_steps=10, batch_size=8, micro_batch=4, log_every=20)


def network():
    """Return a network with drop path, dropout and nonzero last gammas."""
    torch.manual_seed(0)
    options = {"width": 0.125, "num_classes": CLASSES, "drop_path": 0.2, "dropout": 0.2}
    model = create_model("resnet3d_rs_26", **options).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.1, 0.3)
    return model


class Spoilt(nn.Module):
    """The loss times a factor for each sample of a micro-batch, initially 1."""

    def __init__(self, size, like):
        super().__init__()
        self.criterion, self.factors = CrossEntropy(0.1), torch.ones(size, dtype=like.dtype, device=like.device)

    def forward(self, logits, targets):
        return self.criterion(logits, targets) * self.factors


class SmallNetwork(nn.Module):
    """Two convolutions, which compile fast: XLA gives up on a device that arrives ten seconds late."""

    data_config, num_classes = DataConfig(num_frames=SHAPE[0]), CLASSES

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.SiLU(), nn.Conv3d(4, 8, 1))
        self.norm, self.drop_path, self.head = nn.BatchNorm3d(8), DropPath(0.2, 1), nn.Linear(8, CLASSES)

    def forward(self, clips, keys=None):
        return self.head(self.drop_path(self.norm(self.layers(clips)), keys).amax((2, 3, 4)))


def small_network():
    torch.manual_seed(0)
    return SmallNetwork()


def trainer(device, schedule=PLAN, model=None, *, precision="float32", world=None, sync_bn=False, mixup=0.2):
    model = (model or network()).to(device, torch.float64 if precision == "float64" else torch.float32)
    if sync_bn or torch.device(device).type == "xla":
        convert_sync_batch_norm(model, local=not sync_bn)
    return Trainer(
        model,
        schedule,
        criterion=Spoilt(schedule.micro_batch, next(model.parameters())),
        optimizer=optim.create("sgd", model, momentum=0.9, nesterov=True, weight_decay=1e-4),
        learning_rate=learning_rate(0.02, schedule.num_steps, 2),
        ema=EMA(model, 0.99),
        precision=precision,
        mixup=mixup,
        world=world or World(),
    )


def micro_batches(schedule, step, rank=0):
    """Yield the micro-batches of one step and rank."""
    generator = torch.Generator().manual_seed(step)
    clips = torch.randint(0, 256, (schedule.batch_size, *SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (schedule.batch_size,), generator=generator)
    for first in range(rank * schedule.per_rank_batch, (rank + 1) * schedule.per_rank_batch, schedule.micro_batch):
        part = slice(first, first + schedule.micro_batch)
        yield {"clip": clips[part], "label": labels[part], "broken": []}


def on_host(tensors):
    """Copy a dict of tensors to the CPU, in float64."""
    return {name: value.detach().cpu().double().clone() for name, value in tensors.items()}
