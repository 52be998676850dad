"""The training loop.

One optimizer step is one global batch, taken as micro-batches of uint8 clips ``[N, T, H, W, C]`` that become floats on
the device. All that the run needs to go on is in ``Trainer.state_dict()``; all that is random is a function of (seed,
step). Hence a run that was stopped at any step and resumed ends with the same weights, bit for bit, as one that was
never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from video_rs import checkpoint, runtime
from video_rs.data.mixing import mix
from video_rs.data.transforms import normalize
from video_rs.errors import StuckWorker, UserError, VideoRSError
from video_rs.rng import keyed_rng, sample_keys
from video_rs.training.ema import EMA, average_buffers
from video_rs.training.faults import Interrupted, StopSignals
from video_rs.training.ledger import Ledger
from video_rs.training.log import RunLog, duration
from video_rs.training.plan import Plan

SHOWN = {"map": "mAP", "hit1": "hit@1"}  # figures that a log file calls otherwise
Validate = Callable[[nn.Module, Callable[[], None]], dict[str, float]]


class Trainer:
    """A network in training, with everything that changes while it trains.

    Args:
        model: a network with ``contract``, on its device, called as ``model(clips, keys)``.
        plan: see :class:`Plan`.
        criterion: logits and targets to one loss per sample.
        optimizer: its learning rate is set before every step from ``learning_rate(step)``.
        ema: the average that is validated and kept as the best weights; None to use the network itself.
        precision: see ``video_rs.runtime``.
        mixup, cutmix: alphas, 0 for off.
        clip_grad_norm: largest norm of the whole gradient, 0 for off.
        ledger: of the files that cannot be read, with the limit of what the run bears.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        learning_rate: Callable[[int], float],
        ema: EMA | None = None,
        precision: str = "float32",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        clip_grad_norm: float = 0.0,
        ledger: Ledger | None = None,
    ) -> None:
        self.model, self.plan, self.criterion = model, plan, criterion
        self.optimizer, self.learning_rate, self.ema = optimizer, learning_rate, ema
        self.device = next(model.parameters()).device
        self.precision = precision
        self.mixup, self.cutmix, self.clip_grad_norm = mixup, cutmix, clip_grad_norm
        self.multi_label = model.contract.multi_label
        self.merit = "map" if self.multi_label else "top1"  # of a validation: what the best weights are best in
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

        self.step = 0
        self.saved = -1  # the last step whose state is in last.pt
        self.best = (-1.0, 0.0)  # figure of merit and minus the loss of the best validation
        self.validated = 0  # the last step that was validated
        self.ledger = ledger or Ledger()
        self._meter = torch.zeros(3, dtype=torch.float64, device=self.device)  # sums of loss, hits, samples

    # One optimizer step ----------------------------------------------------------------------------------------------

    def train_step(self, micro_batches: Iterable[dict[str, Any]]) -> None:
        """One optimizer step on one global batch, whose parts are taken as they are needed.

        When they fail to come (VideoRSError), the state is as it was before the step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        in_parts = self.plan.batch_size > self.plan.micro_batch  # else nothing changes before all has come
        changing = [self._meter, *self.model.buffers()] if in_parts else []  # nothing else does before an update
        before = [tensor.clone() for tensor in changing]
        broken = []
        try:
            for number, batch in enumerate(micro_batches):
                self._forward_backward(batch, number)
                broken += batch["broken"]
        except VideoRSError:
            for tensor, value in zip(changing, before, strict=True):
                tensor.copy_(value)
            raise
        self.ledger.note(broken)
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            average_buffers(self.model)
            self.ema.update(self.model)
        self.step += 1

    def _forward_backward(self, batch: dict[str, Any], number: int) -> None:
        contract, dtype = self.model.contract, runtime.parameter_dtype(self.precision)
        labels = batch["label"].to(self.device, non_blocking=True)
        clips = normalize(batch["clip"].to(self.device, non_blocking=True), contract.mean, contract.std, dtype=dtype)
        if self.multi_label:  # classes that the network has beyond the data's are nobody's
            labels = F.pad(labels.to(dtype), (0, self.model.num_classes - labels.shape[1]))
        targets = labels
        if self.mixup or self.cutmix:
            rng = keyed_rng(self.plan.seed, "mix", self.step, number)
            if not self.multi_label:
                targets = F.one_hot(labels, self.model.num_classes).to(dtype)
            clips, targets = mix(clips, targets, rng, self.mixup, self.cutmix)
        positions = torch.arange(len(labels)) + number * self.plan.micro_batch
        keys = torch.from_numpy(sample_keys(self.plan.seed, self.step, positions.numpy()))
        with runtime.autocast(self.device, self.precision):
            logits = self.model(clips, keys.to(self.device, non_blocking=True))
            losses = self.criterion(logits, targets)
        self.scaler.scale(losses.sum() / self.plan.batch_size).backward()
        with torch.no_grad():  # read by the host at log steps only
            top = logits.argmax(1)
            hits = (labels.gather(1, top[:, None])[:, 0] > 0 if self.multi_label else top == labels).double()
            self._meter += torch.stack([losses.double().sum(), hits.sum(), torch.ones_like(hits).sum()])

    def mean_loss(self) -> float:
        """Mean loss of the samples since the last report (waits for the device)."""
        loss_sum, _, samples = self._meter.tolist()
        return loss_sum / samples

    # The run ---------------------------------------------------------------------------------------------------------

    def fit(
        self,
        loader_from: Callable[[int], Iterable[dict[str, Any]]],
        validate: Validate,
        *,
        folder: Path,
        log: RunLog,
        identity: Mapping[str, Any],
    ) -> None:
        """Trains from ``self.step`` to the end.

        Args:
            loader_from: micro-batches from a step on.
            validate: called with the network to validate and a function to call often, which raises when the run is to
                stop; returns ``top1``, or ``map`` where samples have several labels (0 to 1), and other figures.
            folder: gets ``last.pt`` and ``best.pt``.
            identity: what every checkpoint carries besides the state: config, model_args, contract, ...

        Raises:
            Interrupted: a signal came; the state is saved.
            StuckWorker: a training file hangs; the state is saved, and the file is not opened when the run is resumed.
            MachineError: a loader process was killed, the state is saved; or a whole row of validation files hangs, the
                state before the validation is saved.
            UserError: too many files are broken, the state is saved; or the loss is no longer finite, the last good
                checkpoint is intact.
        """
        self._folder, self._log, self._identity = folder, log, identity
        with StopSignals() as signals:
            try:
                if self.step and self.plan.validates(self.step) and self.validated < self.step:
                    self._validate(validate, signals)  # the run was stopped before or in this validation
                self._train(loader_from, validate, signals)
            except Interrupted as stop:
                self.save()
                raise Interrupted(signals.received) from stop

    def _train(self, loader_from: Callable, validate: Validate, signals: StopSignals) -> None:
        parts = self.plan.batch_size // self.plan.micro_batch
        clock, saved = _Clock(self.step), time.monotonic()
        self.ledger.check(self._folder, self.step)
        batches = iter(loader_from(self.step))
        while self.step < self.plan.num_steps:
            try:
                self.train_step(clock.waiting_for(batches, parts))
                self.ledger.check(self._folder, self.step)
            except VideoRSError as error:
                self._stop_for(error)
                signals.check()  # somebody who waited for a hanging file may have lost patience
                raise
            self._log.bar.update()
            if self.step % self.plan.log_every == 0 or self.step == self.plan.num_steps:
                self._report(clock)
                clock = _Clock(self.step)
            if self.plan.ends_epoch(self.step) or time.monotonic() - saved > 60 * self.plan.checkpoint_minutes:
                self.save()
                saved = time.monotonic()
            if self.plan.validates(self.step):
                self._validate(validate, signals)
                clock = _Clock(self.step)
            signals.check()

    def _stop_for(self, error: VideoRSError) -> None:
        """Saves the state when the data cannot be had; nothing of a first step that only a person can mend."""
        if isinstance(error, StuckWorker) and error.path:
            self.ledger.note_hung(error.path)
        if self.step or isinstance(error, StuckWorker):
            self.save()
        self.ledger.check(self._folder, self.step)  # to start again would be no use

    def _validate(self, validate: Validate, signals: StopSignals) -> None:
        self._require_finite()
        figures = validate(self.ema.model if self.ema else self.model, signals.check)
        epoch = self.plan.epoch(self.step)
        self.validated = self.step
        is_best = (figures[self.merit], -figures["loss"]) > self.best
        self.best = max(self.best, (figures[self.merit], -figures["loss"]))
        self._log.metrics("val", self.step, epoch, figures)
        text = "  ".join(
            f"{k} {v:.4f}" if k == "loss" else f"{SHOWN.get(k, k)} {100 * v:.2f} %" for k, v in figures.items()
        )
        self._log.say(f"epoch {epoch:.2f}  validation: {text}{'  (best)' if is_best else ''}")
        if is_best:
            weights = (self.ema or self.model).state_dict()
            best = {**self._identity, "model": weights, "ema": None, "step": self.step, "figures": figures}
            checkpoint.save(self._folder / "best.pt", best)
        self.save()

    def _report(self, clock: _Clock) -> None:
        self._require_finite()
        loss_sum, hits, samples = self._meter.tolist()
        self._meter.zero_()
        elapsed = max(time.monotonic() - clock.started, 1e-9)
        rate = (self.step - clock.step) * self.plan.batch_size / elapsed
        hit = "hit1" if self.multi_label else "accuracy"  # hit1: the top class is one of the sample's
        figures = {
            "loss": loss_sum / samples,
            hit: hits / samples,
            "lr": self.optimizer.param_groups[0]["lr"],
            "clips_per_second": rate,
            "data_wait": clock.waited / elapsed,
        }
        epoch = self.plan.epoch(self.step)
        left = (self.plan.num_steps - self.step) * self.plan.batch_size / rate
        self._log.metrics("train", self.step, epoch, figures)
        text = (
            f"loss {figures['loss']:.4f}  {SHOWN.get(hit, hit)} {100 * figures[hit]:.1f} %  lr {figures['lr']:.4g}  "
            f"{rate:.1f} clips/s  waiting for data {100 * figures['data_wait']:.0f} %"
        )
        self.ledger.write(self._folder)
        self._log.bar.set_postfix_str(text)
        self._log.say(f"step {self.step}/{self.plan.num_steps}  epoch {epoch:.2f}  {text}  {duration(left)} left")

    def _require_finite(self) -> None:
        """The losses so far, and the weights that the last update made of them."""
        norms = torch._foreach_norm([p.detach() for p in self.model.parameters()])
        if not (self._meter[0].isfinite() and torch.stack(norms).isfinite().all()):
            raise UserError(
                f"loss or weights are no longer finite at step {self.step}; lower optim.lr, raise optim.warmup_epochs "
                f"or set optim.clip_grad_norm. {self._folder / 'last.pt'} holds the last good state, if there is one"
            )

    # State -----------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes ``last.pt``, unless the loss or the weights are no longer finite."""
        self._require_finite()
        checkpoint.save(self._folder / "last.pt", {**self._identity, **self.state_dict()})
        self.saved = self.step
        self.ledger.write(self._folder)

    def state_dict(self) -> dict[str, Any]:
        """All that changes during a run."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "ema_updates": self.ema.updates if self.ema else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "validated": self.validated,
            "meter": self._meter,
            **self.ledger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.load_state_dict(state["ema"], state["ema_updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.saved = state["step"]
        self.step, self.best, self.validated = state["step"], tuple(state["best"]), state["validated"]
        self.ledger.load_state_dict(state)
        self._meter.copy_(state["meter"])


class _Clock:
    """Since when, and from which step, the next log line counts."""

    def __init__(self, step: int) -> None:
        self.started, self.step, self.waited = time.monotonic(), step, 0.0

    def waiting_for(self, batches: Iterator[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
        """The next ``count`` of the batches; the time each takes to come counts as waiting for data."""
        for _ in range(count):
            asked = time.monotonic()
            batch = next(batches)
            self.waited += time.monotonic() - asked
            yield batch
