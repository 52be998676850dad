"""One optimizer step on one global batch, taken as micro-batches of uint8 clips ``[N, T, H, W, C]``.

All random numbers are a function of (seed, step, position in the global batch), and ``Trainer.state_dict()`` contains
everything that a step changes. A step with a non-finite loss, gradient or batch norm statistic changes nothing: it is
detected and skipped on the device, and the host is notified when it reads the metrics.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from video_rs.data.transforms.crops import normalize
from video_rs.data.transforms.mixing import draw_mix, mix
from video_rs.distributed.device import (
    ToDevice,
    all_reduce,
    autocast,
    compiles_graphs,
    flush,
    parameter_dtype,
    synchronize,
)
from video_rs.distributed.memory import free_memory, largest_that_fits, limited, too_large
from video_rs.distributed.world import World
from video_rs.errors import MachineError, UserError, VideoRSError, first_line, is_out_of_memory
from video_rs.models.sync_batch_norm import ONE_VALUE
from video_rs.rng import sample_keys
from video_rs.signals import ended_by_signals
from video_rs.training.buffers import Buffers
from video_rs.training.ema import EMA
from video_rs.training.metrics import StepMetrics
from video_rs.training.optim import load_optimizer, step_unless
from video_rs.training.schedule import Schedule

SMALLEST_SCALE = 2.0**-10  # minimum loss scale for float16, reached after 26 consecutive skipped steps
MAX_FLAGS = 256  # steps whose flags stay on the device
PROBLEMS = ("weights are not finite", "no fp16 loss scale is left: gradients are not finite even with the smallest")
"""Reasons that prevent further steps, in the order of :meth:`Trainer.problems`."""


@dataclass(eq=False, repr=False)
class Trainer:
    """A network, its optimizer, its EMA, and all other state that a training step changes.

    Args:
        model: a network with ``data_config``, on its device, called as ``model(clips, keys)``.
        schedule: see :class:`Schedule`.
        criterion: loss function of logits and targets, with one loss per sample.
        optimizer: the optimizer. The learning rate of each group is set to ``learning_rate(step)`` times its
            ``lr_scale`` before every step.
        learning_rate: learning rate as a function of the step, from 0.
        ema: moving average of the weights, or None.
        precision: see ``video_rs.distributed.device``.
        mixup, cutmix: alpha of the Beta distributions; 0 to turn them off.
        clip_grad_norm: maximum gradient norm; 0 to turn it off.
        augment: called with uint8 clips on the device and the ``rngs`` of the batch to augment them, see
            ``TrainTransform.finish_batch``; None if the loader augments.
        compile: train with ``torch.compile``. ``model`` itself is not changed.
        world: the ranks that share each batch. All ranks have the same state after each step.
    """

    model: nn.Module
    schedule: Schedule
    _: KW_ONLY
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    ema: EMA | None = None
    precision: str = "float32"
    mixup: float = 0.0
    cutmix: float = 0.0
    clip_grad_norm: float = 0.0
    augment: Callable[[Tensor, Sequence[np.random.Generator]], Tensor] | None = None
    compile: bool = False
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        model, schedule = self.model, self.schedule
        self.device = next(model.parameters()).device
        self._to_device = ToDevice(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.step = 0
        self.metrics = StepMetrics(schedule.per_rank_batch, min(schedule.log_every, MAX_FLAGS), self.device)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._buffers = Buffers(model)
        self._has_ddp = not compiles_graphs(self.device)
        self._network: nn.Module | None = None  # made in the first step
        self._compiled: set[tuple[torch.Size, bool]] = set()  # sizes of clips that need no compilation any more

    def _wrapped(self) -> nn.Module:
        """Wait for all ranks and return the wrapped network. Each rank keeps its own batch norm statistics."""
        network = self.model
        if self.world.size > 1 and self._has_ddp:
            devices = [self.device] if self.device.type == "cuda" else None
            new, old = "forward_sync_buffers", "broadcast_buffers"  # torch 2.9 has only the old one
            name = new if new in signature(DistributedDataParallel).parameters else old
            warnings.filterwarnings("ignore", "Grad strides do not match")  # harmless for 1x1x1 kernels
            network = DistributedDataParallel(network, devices, gradient_as_bucket_view=True, **{name: False})
        return _compiled(network) if self.compile else network

    def train_step(self, micro_batches: Iterable[dict[str, Any]]) -> None:
        """Take one optimizer step over ``schedule.accumulation_steps`` micro-batches, which are fetched one at a time.

        If an error is raised, the state is unchanged: an error of ``micro_batches``, PeersLost for a lost rank, or
        MachineError if a micro-batch does not fit in memory, with a size that does.
        """
        rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        self.metrics.begin()
        before, batch, is_full, is_first = self._buffers.read(), {}, False, self._network is None
        seen = torch.zeros_like(before)  # sum of the buffers after each micro-batch
        flush(self.device)  # pending operations would become part of this step's graph
        try:
            with self.world.guard(f"step {self.step + 1}"):
                if self._network is None:
                    self._network = self._wrapped()
                for number, batch in enumerate(micro_batches):
                    is_last = number == self.schedule.accumulation_steps - 1
                    alone = self.world.size == 1 or not self._has_ddp
                    syncing = contextlib.nullcontext() if is_last or alone else self._network.no_sync()
                    with syncing, limited(self.device, self.world.local_size), self._compiling(batch, is_last):
                        self._forward_backward(batch, number)
                    if self.schedule.accumulation_steps > 1:
                        seen += self._buffers.read()
                    flush(self.device)
                if not batch:
                    raise ValueError("a step needs at least one micro-batch")
                if is_first and compiles_graphs(self.device):  # raises here if memory is too small
                    synchronize(self.device)
                if self.world.size > 1 and not self._has_ddp:
                    all_reduce([p.grad for p in self._trained if p.grad is not None], 1 / self.world.size)
                buffers = self._buffers.after_step(seen, self.schedule.accumulation_steps)
                buffers, sums = self._share(buffers, self.metrics.of_step)
        except (VideoRSError, RuntimeError, MemoryError, ValueError) as error:
            self._buffers.write(before)
            is_full = is_out_of_memory(error)
            if not is_full:
                if "more than 1 value per channel" in str(error):
                    raise UserError(ONE_VALUE.format(f"train.micro_batch={self.schedule.micro_batch}")) from None
                _explain_compiler_error(error)
                raise
            free_memory(error)
        if is_full:  # outside of the except block, where the error would keep tensors alive
            failure = self._out_of_memory(batch)
            self._buffers.write(before)
            raise failure
        self._update(before, buffers, sums)
        flush(self.device)
        self.step += 1

    @contextlib.contextmanager
    def _compiling(self, batch: dict[str, Any], is_last: bool) -> Iterator[None]:
        """Let a stop signal end the process while a new clip size is compiled, which takes minutes."""
        size = (batch["clip"].shape, is_last)  # the last micro-batch of several has another graph, with the all-reduce
        is_new = self.compile and size not in self._compiled
        with ended_by_signals("the network is compiled") if is_new else contextlib.nullcontext():
            yield
        self._compiled.add(size)

    def smaller_micro_batches(self) -> list[int]:
        """Return the smaller micro-batches that the batch can be divided into, in ascending order."""
        schedule, unit = self.schedule, 2 * self.schedule.repeats if self.mixup or self.cutmix else 1
        return [n for n in range(unit, schedule.micro_batch, unit) if schedule.per_rank_batch % n == 0]

    def _out_of_memory(self, batch: dict[str, Any]) -> MachineError:
        """Return the error for a micro-batch that does not fit in memory. A single process tries smaller sizes."""
        sizes, reason = self.smaller_micro_batches(), f" at step {self.step + 1}"

        def attempt(size: int) -> None:
            self.metrics.begin()
            self.optimizer.zero_grad(set_to_none=True)
            with limited(self.device):
                self._forward_backward({key: batch[key][:size] for key in ("clip", "label", "rngs") if key in batch}, 0)
            synchronize(self.device)

        if self.world.size > 1:
            fits = max(sizes, default=0)
        else:
            self._network = self.model  # torch.compile would compile each size
            fits = largest_that_fits(sizes, attempt)
            reason += f": {fits} would fit" if fits else ""
        self.optimizer.zero_grad(set_to_none=True)
        return too_large(self.schedule.micro_batch, reason, fits)

    def _forward_backward(self, batch: dict[str, Any], number: int) -> None:
        data_config, dtype = self.model.data_config, parameter_dtype(self.precision)
        clips, labels = self._to_device(batch["clip"], batch["label"])
        if self.augment:
            clips = self.augment(clips, batch["rngs"])
        clips = normalize(clips, data_config.mean, data_config.std, dtype=dtype)
        if data_config.multi_label:  # the network may have more classes than the data
            labels = F.pad(labels.to(dtype), (0, self.model.num_classes - labels.shape[1]))
        first = number * self.schedule.micro_batch
        place, targets = self.world.rank * self.schedule.per_rank_batch + first, labels  # in the global batch
        if self.mixup or self.cutmix:
            if not data_config.multi_label:
                targets = F.one_hot(labels, self.model.num_classes).to(dtype)
            run, kinds = self.schedule, (self.mixup, self.cutmix)
            draws = draw_mix(run.seed, self.step, run.batch_size, *clips.shape[-2:], *kinds, run.repeats)
            clips, targets = mix(clips, targets, draws.part(place, len(labels)))
        number_of = np.arange(len(labels))
        table = np.stack([sample_keys(self.schedule.seed, self.step, place + number_of), first + number_of])
        keys, positions = torch.from_numpy(table).to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            logits = self._network(clips, keys)
            losses = self.criterion(logits, targets)
        # the loss is the mean over the global batch, and gradients are averaged over ranks
        self.scaler.scale(losses.sum() * self.world.size / self.schedule.batch_size).backward()
        with torch.no_grad():
            top = logits.argmax(1)  # correct if it is at least half of the target, as mixed clips have two classes
            correct = top == targets if targets.ndim == 1 else targets.gather(1, top[:, None])[:, 0] >= 0.5
            self.metrics.add(losses.double(), correct.double(), positions)

    @torch.no_grad()
    def _update(self, before: Tensor, buffers: Tensor, sums: Tensor) -> None:
        """Update weights and EMA on the device, unless loss, gradient or a buffer is not finite."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._trained if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(self._trained, self.clip_grad_norm, norm)
        # batch norm maps an overflow of its variance to 0: the loss stays finite
        lost = ~sums[0].isfinite() | (before.isfinite() & ~buffers.isfinite()).any()
        skip = lost | ~norm.isfinite()
        self._buffers.write(torch.where(skip, before, buffers))
        step_unless(self.optimizer, skip)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.model, skip)
        # with float16, gradient overflow is normal, and the scaler reduces its scale
        self.metrics.end(self.step, sums, lost if self.scaler.is_enabled() else skip)

    def _share(self, buffers: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Average buffers and add up sums over ranks, in one all-reduce."""
        if self.world.size == 1:
            return buffers, sums.clone()
        message = torch.cat([buffers, sums])
        all_reduce([message])
        return message[:-3] / self.world.size, message[-3:]

    def problems(self) -> list[bool]:
        """Return a flag for each of ``PROBLEMS``. Waits for the device."""
        overflows = self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE
        return [not is_finite(self.state_dict()), overflows]

    def state_dict(self) -> dict[str, Any]:
        """Return all state that a step changes."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "ema_updates": int(self.ema.updates) if self.ema else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            **self.metrics.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.load_state_dict(state["ema"], state["ema_updates"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.metrics.load_state_dict(state)


def is_finite(state: Any) -> bool:
    """Return True if all floating-point tensors in nested dicts and lists have a finite norm. Waits for the device."""
    tensors = [value for value in tree_leaves(state) if torch.is_tensor(value)]
    floating = [value.detach() for value in tensors if value.is_floating_point() and value.numel()]
    return bool(nn.utils.get_total_norm(floating).isfinite())


def _compiled(network: nn.Module) -> nn.Module:
    """Compile a network with ``torch.compile``, which compiles each clip shape.

    Wrap DistributedDataParallel, as recommended by torch: the compiler then splits the graph at the all-reduces, which
    overlap with computation.
    """
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # else more sizes run eagerly
    return torch.compile(network, dynamic=False)


def _explain_compiler_error(error: BaseException) -> None:
    """Raise MachineError for an error of the compiler itself."""
    if any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__):
        raise MachineError(
            f"torch.compile failed ({type(error).__name__}: {first_line(error)}); use train.compile=false, or fix "
            "the compiler"
        ) from error
