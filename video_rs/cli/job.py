"""A training run as objects: everything between a config and ``Trainer.fit``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import video_rs
from video_rs import checkpoint, runtime
from video_rs.cli import build
from video_rs.config import Config
from video_rs.data.loader import clip_loader, view_loader
from video_rs.data.records import Records
from video_rs.data.sampler import BatchStream
from video_rs.download import shown
from video_rs.errors import UserError
from video_rs.evaluation.metrics import summarize, summarize_multi_label
from video_rs.evaluation.multiview import score
from video_rs.models.init import init_from
from video_rs.training import losses, optim
from video_rs.training.ema import EMA
from video_rs.training.ledger import Ledger
from video_rs.training.log import RunLog
from video_rs.training.loop import Trainer
from video_rs.training.plan import Plan


class Job:
    """All the objects of one training run, built from a config."""

    def __init__(self, config: Config, saved: dict[str, Any] | None = None) -> None:
        runtime.set_up(config.train.threads, config.train.deterministic)
        self.config = config
        self.device = runtime.select_device(config.train.device)
        self.precision = runtime.select_precision(config.train.precision, self.device)
        self.records = build.build_records(config, ("train", "val"))
        build.check_media(config, self.records["train"])
        build.check_labels(self.records["val"], "val")
        names = build.class_names(config, self.records["train"])
        self.model = build.build_model(config, names)
        self.started_from = "" if saved else _init_from(self.model, config)
        self.model.to(
            self.device, runtime.parameter_dtype(self.precision), memory_format=torch.channels_last_3d
        )  # the memory order in which clips arrive
        self.trainer = _trainer(config, self.model, self.records["train"], self.precision)
        self._val_dataset = build.view_dataset(config, self.records["val"], clips=1, crops=1)
        if saved:
            self._resume(saved)

    def loader(self, start_step: int) -> DataLoader:
        """Micro-batches of clips from ``start_step`` to the end of the run."""
        plan, records = self.trainer.plan, self.records["train"]
        stream = BatchStream(
            len(records),
            batch_size=plan.batch_size,
            num_steps=plan.num_steps,
            seed=plan.seed,
            start_step=start_step,
            micro_batch=plan.micro_batch,
            labels=records.labels if self.config.train.balanced_sampling else None,
            repeats=self.config.data.repeats,
        )
        dataset = build.train_dataset(self.config, records)
        dataset.skip = frozenset(self.trainer.ledger.hung)
        return clip_loader(dataset, stream, pin_memory=self.device.type == "cuda", **_loading(self.config))

    def validate(
        self, model: torch.nn.Module, check: Callable[[], None], say: Callable[[str], None] = print
    ) -> dict[str, float]:
        """Top-1, top-5 and loss on one centre view of every validation sample; of label sets mAP, hit@1 and loss."""
        scores = score(
            model,
            view_loader(self._val_dataset, **_loading(self.config)),  # which keeps in mind what hung
            device=self.device,
            precision=self.precision,
            views_per_forward=self.config.test.batch_size,
            progress=lambda _: check(),
        )
        if not scores.scored.any():
            raise UserError(f"no validation sample could be scored; the first: {scores.errors[0][1]}")
        if scores.errors:
            index, reason = scores.errors[0]
            first = f"{self.records['val'].path(index)}: {reason}"
            say(f"validation: {len(scores.errors)} not scored, counted as wrong; the first: {first}")
        # a sample that cannot be scored counts as wrong, or the best weights would be those that fail most
        if model.contract.multi_label:
            figures = summarize_multi_label(scores.probs, scores.labels, scores.scored)
            return {"map": figures["map_all"], "hit1": figures["hit1_all"], "loss": figures["loss"]}
        figures = summarize(scores.probs, scores.labels, scores.scored, model.contract.class_names)
        return {"top1": figures["top1_all"], "top5": figures["top5_all"], "loss": figures["loss"]}

    def fit(self, folder: Path, log: RunLog) -> None:
        """Trains to the end; see ``Trainer.fit``."""
        validate = partial(self.validate, say=log.say)
        self.trainer.fit(self.loader, validate, folder=folder, log=log, identity=self.identity())

    def identity(self) -> dict[str, Any]:
        """What each checkpoint carries besides the trainer's state."""
        return {
            "format": checkpoint.FORMAT,
            "config": self.config.to_dict(),
            "model_args": build.model_args(self.config, self.model.num_classes),
            "contract": self.model.contract.to_dict(),
            "fingerprint": {split: records.fingerprint() for split, records in self.records.items()},
            "versions": {"video_rs": video_rs.__version__, "torch": str(torch.__version__)},
        }

    def _resume(self, saved: dict[str, Any]) -> None:
        """Takes up the state of a checkpoint. Raises UserError when the data are not those it was trained on."""
        for split, fingerprint in self.identity()["fingerprint"].items():
            if saved["fingerprint"][split] != fingerprint:
                raise UserError(
                    f"the {split} data are not those of the run in {self.config.out} "
                    f"(then {saved['fingerprint'][split]}, now {fingerprint}); restore them, or choose another out="
                )
        self.trainer.load_state_dict(saved)

    def summary(self) -> list[str]:
        """The start-up lines: device, network, data, steps."""
        config, plan, model = self.config, self.trainer.plan, self.model
        parameters = sum(p.numel() for p in model.parameters())
        lines = [
            f"device: {runtime.describe(self.device)}; precision {self.precision}; "
            f"{runtime.loader_workers(config.data.workers)} loader workers",
            f"model: {config.model.name}, {parameters:,} parameters, {model.num_classes} classes",
            *(f"{split}: {records.describe()}" for split, records in self.records.items()),
            f"clips: {config.data.num_frames} frames x stride {config.data.stride}, {config.data.train_size} px; "
            f"batch {plan.batch_size} in micro-batches of {plan.micro_batch}",
            f"steps: {plan.num_steps} ({plan.epoch(plan.num_steps):.4g} epochs), learning rate up to "
            f"{_peak_rate(config):.4g} = {config.optim.lr:g} x {plan.batch_size} / {config.optim.lr_batch}",
        ]
        if config.data.multi_label and (smoothing := config.train.label_smoothing):
            targets = f"{smoothing / 2:g} and {1 - smoothing / 2:g}"
            lines.append(
                f"label smoothing {smoothing:g}: targets are {targets} for every class; 0 is usual for many classes"
            )
        source = shown(config.train.init_from)
        return lines + ([f"started from {source}: {self.started_from}"] if self.started_from else [])


def _trainer(config: Config, model: torch.nn.Module, records: Records, precision: str) -> Trainer:
    run = config.train
    num_samples = len(records) * config.data.repeats
    per_epoch = num_samples / run.batch_size
    plan = Plan(
        num_samples=num_samples,
        num_steps=run.max_steps or optim.num_steps(num_samples, run.batch_size, run.epochs),
        batch_size=run.batch_size,
        micro_batch=min(run.micro_batch or run.batch_size, run.batch_size),
        seed=run.seed,
        val_every=run.val_every,
        log_every=run.log_every,
        checkpoint_minutes=run.checkpoint_minutes,
    )
    return Trainer(
        model,
        plan,
        criterion=_criterion(config, model, records),
        optimizer=optim.sgd(
            model,
            momentum=config.optim.momentum,
            nesterov=config.optim.nesterov,
            weight_decay=config.optim.weight_decay,
        ),
        learning_rate=optim.learning_rate(
            _peak_rate(config), plan.num_steps, config.optim.warmup_epochs * per_epoch, config.optim.schedule
        ),
        ema=EMA(model, run.ema_decay) if run.ema_decay else None,
        precision=precision,
        mixup=config.data.mixup,
        cutmix=config.data.cutmix,
        clip_grad_norm=config.optim.clip_grad_norm,
        ledger=Ledger(len(records), config.data.max_broken),
    )


def _criterion(config: Config, model: torch.nn.Module, records: Records) -> torch.nn.Module:
    run = config.train
    if config.data.multi_label:
        return losses.BinaryCrossEntropy(run.label_smoothing)
    class_weights = None
    if run.class_weights == "balanced":
        class_weights = losses.balanced_class_weights(records.labels, model.num_classes).to(next(model.parameters()))
    return losses.CrossEntropy(run.label_smoothing, class_weights)


def _loading(config: Config) -> dict[str, Any]:
    return {"workers": runtime.loader_workers(config.data.workers), "timeout": config.data.timeout}


def _peak_rate(config: Config) -> float:
    return config.optim.lr * config.train.batch_size / config.optim.lr_batch


def _init_from(model: torch.nn.Module, config: Config) -> str:
    if not config.train.init_from:
        return ""

    report = init_from(model, config.train.init_from, method=config.train.inflate)
    changed = config.contract().differences(model.contract, ("mean", "std", "filter"))
    if changed:
        wrong = ", ".join(f"data.{key} is {ours}, they expect {theirs}" for key, (ours, theirs) in changed.items())
        raise UserError(
            f"the config does not fit the weights {shown(config.train.init_from)}: {wrong}; set the config to theirs"
        )
    return str(report)
