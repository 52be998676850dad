"""A training run as objects: everything between a config and ``Trainer.fit``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import video_rs
from video_rs import checkpoint
from video_rs.data.loader import clip_loader, view_loader
from video_rs.data.sampler import BatchStream
from video_rs.distributed import device as runtime
from video_rs.distributed.self_check import check_convolutions
from video_rs.distributed.world import World
from video_rs.errors import UserError
from video_rs.evaluation.metrics import summarize
from video_rs.evaluation.multiview import OUTPUT_NOT_FINITE, Scores, score
from video_rs.experiment import build, recipe
from video_rs.experiment.config import Config
from video_rs.hub import redact_url
from video_rs.models.sync_batch_norm import convert_sync_batch_norm
from video_rs.models.weights.init_from import init_from
from video_rs.training.ema import EMA
from video_rs.training.incidents import ADVICE, Incidents, Suspect
from video_rs.training.log import RunLog
from video_rs.training.loop import Run
from video_rs.training.precise_bn import with_precise_statistics
from video_rs.training.trainer import Trainer


class Job:
    """All the objects of one training run, built from a config."""

    def __init__(self, config: Config, saved: dict[str, Any] | None = None, world: World | None = None) -> None:
        runtime.configure_torch(config.train.threads, config.train.deterministic)
        self.config, self.world = config, world or World()
        self.device = runtime.select_device(config.train.device)
        self.precision = runtime.select_precision(config.train.precision, self.device)
        self.records = build.build_records(config, ("train", "val"))
        self._train_data = build.video_dataset(config, self.records["train"], is_training=True)
        build.check_labels(self.records["val"], "val")
        names = build.class_names(config, self.records["train"])
        self.model = build.build_model(config, names)
        self.started_from = "" if saved else _init_from(self.model, config)
        if saved:
            self.model.weights_from = saved.get("weights_from")
        self.model.to(
            self.device, runtime.parameter_dtype(self.precision), memory_format=torch.channels_last_3d
        )  # the memory order in which clips arrive
        if self.device.type != "cpu":
            check_convolutions(self.model, self.precision)
        if config.train.sync_bn or not runtime.traits(self.device).keeps_unbiased_variance:
            convert_sync_batch_norm(self.model, local=not config.train.sync_bn)
        self.trainer = self._trainer()
        self.incidents = Incidents(len(self.records["train"]), config.data.max_broken, config.train.max_bad_steps)
        self._views_per_forward = config.test.batch_size
        self._val_dataset = build.view_dataset(config, self.records["val"], clips=1, crops=1)
        if saved:
            self._check_data(saved)
        self._saved = saved

    def _trainer(self) -> Trainer:
        config, records = self.config, self.records["train"]
        schedule = recipe.schedule(config, len(records), self.world.size)
        return Trainer(
            self.model,
            schedule,
            criterion=recipe.criterion(config, self.model, records),
            optimizer=recipe.optimizer(config, self.model),
            learning_rate=recipe.learning_rate(config, schedule),
            ema=EMA(self.model, config.train.ema_decay) if config.train.ema_decay else None,
            precision=self.precision,
            mixup=config.data.mixup,
            cutmix=config.data.cutmix,
            clip_grad_norm=config.optim.clip_grad_norm,
            augment=None if self._finishes_on_host else self._train_data.transform.spatial.finish_batch,
            compile=config.train.compile,
            world=self.world,
        )

    def run(self, folder: Path, log: RunLog) -> Run:
        """The run in a folder, where it was left."""
        run = Run(
            self.trainer,
            folder=folder,
            log=log,
            identity=self.identity(),
            loader_from=self.loader,
            validate=partial(self.validate, info=log.info),
            samples_of=self.samples,
            prepare=self._prepared,
            keep=self.config.train.keep_checkpoints,
            incidents=self.incidents,
        )
        if self._saved:
            run.load_state_dict(self._saved)
            self._saved = None  # its tensors are in the run now
        return run

    def stream(self, start_step: int = 0, **changes: Any) -> BatchStream:
        """Return the samples of this process's micro-batches from ``start_step`` on."""
        schedule, records = self.trainer.schedule, self.records["train"]
        options = {
            "batch_size": schedule.batch_size,
            "num_steps": schedule.num_steps,
            "seed": schedule.seed,
            "micro_batch": schedule.micro_batch,
            **self._ranks(),
            **build.order(self.config, records),
            **changes,
        }
        return BatchStream(len(records), start_step=start_step, **options)

    @property
    def _finishes_on_host(self) -> bool:
        return self.config.data.augment_on == "host"

    def loader(self, start_step: int, *, finished: bool | None = None, **changes: Any) -> DataLoader:
        """The micro-batches of :meth:`stream`, flipped and augmented if ``finished``; None: if the trainer will not."""
        dataset = build.train_dataset(self.config, self.records["train"])
        dataset.skip = frozenset(self.incidents.hung)
        dataset.finishes = self._finishes_on_host if finished is None else finished
        stream = self.stream(start_step, **changes)
        return clip_loader(dataset, stream, pin_memory=self.device.type == "cuda", **self._loading())

    def samples(self, step: int) -> list[Suspect]:
        """What the global batch of a step (from 0) is made of."""
        records = self.records["train"]
        return [Suspect(records.path(key.index), key.epoch, key.copy) for key in self.stream().keys(step)]

    def _prepared(self, model: torch.nn.Module, check: Callable[[], None]) -> torch.nn.Module:
        """The network to validate: with the statistics of batch norm that the config asks for."""
        samples, schedule = self.config.train.precise_bn, self.trainer.schedule
        if not samples:
            return model
        batches = self.loader(0, finished=True, num_steps=math.ceil(samples / schedule.batch_size), phase_ends=())
        return with_precise_statistics(model, batches, self.precision, self.world, check)

    def validate(
        self, model: torch.nn.Module, check: Callable[[], None], info: Callable[[str], None] = print
    ) -> dict[str, float]:
        """Top-1, top-5 and loss on one centre view of every validation sample; of label sets mAP, hit@1 and loss."""
        scores = score(
            model,
            view_loader(self._val_dataset, **self._ranks(), **self._loading()),  # which keeps in mind what hung
            device=self.device,
            precision=self.precision,
            views_per_forward=self._views_per_forward,
            progress=lambda _: check(),
            world=self.world,
            reduced=partial(setattr, self, "_views_per_forward"),
        )
        metrics = None
        with self.world.together("the validation"):
            if scores is not None:
                metrics = self._metrics(scores, info)
        return self.world.gather(metrics, "the validation")[0]

    def _metrics(self, scores: Scores, info: Callable[[str], None]) -> dict[str, float]:
        if not scores.scored.any():
            reason = next((reason for _, reason in scores.errors if reason == OUTPUT_NOT_FINITE), scores.errors[0][1])
            advice = f": {ADVICE}, with another out=" if reason == OUTPUT_NOT_FINITE else ""
            raise UserError(f"no validation sample can be scored, {reason}{advice}")
        if scores.errors:
            index, reason = scores.errors[0]
            first = f"{self.records['val'].path(index)}: {reason}"
            info(f"validation: {len(scores.errors)} not scored, counted as wrong; the first: {first}")
        # a sample that cannot be scored counts as wrong, or the best weights would be those that fail most
        metrics = summarize(scores.probs, scores.labels, scores.scored)
        keys = ("map", "hit1") if "map" in metrics else ("top1", "top5")
        return {**{key: metrics[f"{key}_all"] for key in keys}, "loss": metrics["loss"]}

    def _ranks(self) -> dict[str, int]:
        return {"rank": self.world.rank, "world_size": self.world.size}

    def _loading(self) -> dict[str, Any]:
        data = self.config.data
        return {"workers": runtime.loader_workers(data.workers, self.world.local_size), "timeout": data.timeout}

    def identity(self) -> dict[str, Any]:
        """What each checkpoint carries besides the trainer's state."""
        return {
            "format": checkpoint.FORMAT,
            "config": self.config.to_dict(),
            "model_args": build.model_args(self.config, self.model.num_classes),
            "data_config": self.model.data_config.to_dict(),
            "weights_from": self.model.weights_from,
            "fingerprint": {split: records.fingerprint() for split, records in self.records.items()},
            "versions": {"video_rs": video_rs.__version__, "torch": str(torch.__version__)},
        }

    def _check_data(self, saved: dict[str, Any]) -> None:
        """Raises UserError when the data are not those that the saved run was trained on."""
        for split, fingerprint in self.identity()["fingerprint"].items():
            if saved["fingerprint"][split] != fingerprint:
                raise UserError(
                    f"the {split} data are not those of the run in {self.config.out} "
                    f"(then {saved['fingerprint'][split]}, now {fingerprint}); restore them, or choose another out="
                )

    def log(self, folder: Path, step: int, validated: int) -> RunLog:
        """The log of a run folder, from a step on."""
        project, config = self.config.train.wandb, checkpoint.redact_config(self.config.to_dict())
        return RunLog(folder, step, self.trainer.schedule.num_steps, validated, wandb=project, config=config)


def _init_from(model: torch.nn.Module, config: Config) -> str:
    if not config.train.init_from:
        return ""

    report = init_from(model, config.train.init_from, method=config.train.inflate)
    changed = config.data_config().differences(model.data_config, ("mean", "std", "filter"))
    if changed:
        wrong = ", ".join(f"data.{key} is {ours}, they expect {theirs}" for key, (ours, theirs) in changed.items())
        source = redact_url(config.train.init_from)
        raise UserError(f"the config does not fit the weights {source}: {wrong}; set the config to theirs")
    return str(report)
