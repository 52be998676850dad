"""Create the objects of a training run from a network, data and options."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import video_rs
from video_rs import checkpoint
from video_rs.data.loader import ViewLoader, clip_loader
from video_rs.data.sampler import BatchStream
from video_rs.data.video_dataset import VideoDataset
from video_rs.data_config import DataConfig, pad_class_names
from video_rs.distributed.device import (
    compiles_graphs,
    configure_torch,
    loader_workers,
    parameter_dtype,
    select_device,
    select_precision,
)
from video_rs.distributed.self_check import check_convolutions
from video_rs.distributed.world import World, check_same
from video_rs.errors import UserError, truncate
from video_rs.evaluation.metrics import validation_metrics
from video_rs.evaluation.multiview import OUTPUT_NOT_FINITE, Scores, score
from video_rs.hub import redact_url
from video_rs.models.sync_batch_norm import convert_sync_batch_norm, revert_sync_batch_norm
from video_rs.models.weights.init_from import init_from
from video_rs.training import recipe
from video_rs.training.combinations import wrong_combinations
from video_rs.training.ema import EMA
from video_rs.training.finetune import unfreeze
from video_rs.training.incidents import Incidents, Suspect
from video_rs.training.inputs import check_inputs, clip_config
from video_rs.training.memory import check_memory
from video_rs.training.options import Options
from video_rs.training.precise_bn import with_precise_statistics
from video_rs.training.run_folder import another_config
from video_rs.training.trainer import Trainer, is_finite


class Job:
    """Trainer, loaders and validation of one training run.

    Args:
        model: a network from ``create_model``. It is moved to the device and trained in place.
        train: training data, with a training transform.
        val: validation data, with an evaluation transform; None for none.
        options: options of the run.
        world: the ranks of the run.
        saved: checkpoint to resume from. ``options.init_from`` is then ignored.

    Attributes:
        started_from: description of the initial weights.
        records: records of the splits, by name.

    Raises:
        UserError: model, data and options are incompatible.
        MachineError: a step needs more memory than is available.
    """

    def __init__(
        self,
        model: nn.Module,
        train: VideoDataset,
        val: VideoDataset | None,
        options: Options,
        world: World | None = None,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        check_inputs(model, train, val)
        multi_label = train.records.multi_label
        facts = {"multi_label": multi_label, "bn_momentum": model.model_args.get("bn_momentum")}
        for error in wrong_combinations(options, **facts, processes=world.size if world else 1):
            raise UserError(error)
        if options.early_stop and val is None:
            raise UserError(f"train.early_stop={options.early_stop}: requires validation data")
        self.model, self.train, self.val, self.options, self.world = model, train, val, options, world or World()
        self.records = {"train": train.records} | ({"val": val.records} if val else {})
        self.device = select_device(options.device)
        self.precision = select_precision(options.precision, self.device)
        configure_torch(options.threads, options.deterministic)
        self.started_from = ""
        with self.world.together("the network"):
            self._prepare_model(saved)
        check_same(self.world, {"model": self.model_args(), "data config": model.data_config.to_dict()})
        # before the EMA copies them
        self.world.broadcast_([*model.parameters(), *model.buffers()], "the first weights")
        self.trainer = self._trainer()
        self.incidents = Incidents(len(train), options.max_broken, options.max_bad_steps)
        self._views_per_forward = options.views_per_forward
        self._views = val.views(clips=1, crops=1) if val else None
        check_memory(self)

    def _prepare_model(self, saved: Mapping[str, Any] | None) -> None:
        """Load the weights to start from, and bring the network to its device in training mode."""
        model, options = self.model, self.options
        unfreeze(model)  # of an earlier run
        revert_sync_batch_norm(model)
        model.train()
        trained_for = model.data_config.class_names
        model.data_config = self._data_config()  # before loading weights, whose head is matched by class names
        if saved:
            model.weights_from = saved.get("weights_from")
        elif options.init_from:
            self.started_from = self._init_from()
        elif trained_for not in ((), model.data_config.class_names):
            self.started_from = f"own weights; the head is kept, for other class names: {truncate(trained_for)}"
        if not is_finite(model.state_dict()):
            raise UserError("model: its weights are not finite; start from other weights")
        model.to(self.device, parameter_dtype(self.precision))
        if self.device.type != "cpu":
            check_convolutions(model, self.precision)
        if options.sync_bn or compiles_graphs(self.device):
            convert_sync_batch_norm(model, local=not options.sync_bn)

    def _init_from(self) -> str:
        """Load the initial weights and return a description of them."""
        own, options = self.model.data_config, self.options
        source = redact_url(options.init_from)
        report = init_from(self.model, options.init_from, method=options.inflate)
        if changed := own.differences(self.model.data_config, ("mean", "std", "filter")):
            wrong = ", ".join(f"data.{key} is {ours}, expected {theirs}" for key, (ours, theirs) in changed.items())
            raise UserError(f"the config does not match the weights {source}: {wrong}; change the config")
        return f"started from {source}: {report}"

    def _data_config(self) -> DataConfig:
        """Return the model's data config with the sampling, sizes and class names of the data."""
        own, names, count = self.model.data_config, self.train.classes, self.model.num_classes
        if own.class_names[: len(names)] == names:
            names = own.class_names[:count]
        test = self.val.transform.spatial if self.val else own
        return dataclasses.replace(
            clip_config(own, self.train),
            train_size=self.train.transform.spatial.size,
            short_side=test.short_side,
            test_size=getattr(test, "size", own.test_size),
            class_names=pad_class_names(names, count),
            multi_label=self.train.records.multi_label,
        )

    def _trainer(self) -> Trainer:
        options, records = self.options, self.train.records
        schedule = recipe.schedule(options, len(records), self.world.size, has_validation=self.val is not None)
        return Trainer(
            self.model,
            schedule,
            criterion=recipe.criterion(options, self.model, records),
            optimizer=recipe.optimizer(options, self.model),
            learning_rate=recipe.learning_rate(options, schedule),
            ema=EMA(self.model, options.ema_decay) if options.ema_decay else None,
            precision=self.precision,
            mixup=options.mixup,
            cutmix=options.cutmix,
            clip_grad_norm=options.clip_grad_norm,
            augment=self.train.transform.spatial.finish_batch if options.augment_on == "device" else None,
            compile=options.compile,
            world=self.world,
        )

    def stream(self, start_step: int = 0, **changes: Any) -> BatchStream:
        """Return the batch sampler of this rank, from ``start_step`` on."""
        names = ("batch_size", "num_steps", "seed", "micro_batch")
        sizes = {name: getattr(self.trainer.schedule, name) for name in names}
        order = recipe.order(self.options, self.train.records)
        return BatchStream(len(self.train), start_step=start_step, **sizes | self._ranks() | order | changes)

    def loader(self, start_step: int, *, finished: bool = False, **changes: Any) -> DataLoader:
        """Return the micro-batches of :meth:`stream`, augmented if ``finished`` or on the host."""
        dataset = self.train.training_samples(
            seed=self.options.seed,
            repeats=self.options.repeats,
            phases=[sizes for _, *sizes in self.options.phases],
            skip={path: self.incidents.files[path][0] for path in self.incidents.hung},
            finishes=finished or self.options.augment_on == "host",
        )
        stream = self.stream(start_step, **changes)
        return clip_loader(dataset, stream, pin_memory=self.device.type == "cuda", **self.loading())

    def samples(self, step: int) -> list[Suspect]:
        """Return the samples of the global batch of a step (from 0)."""
        records = self.train.records
        return [Suspect(records.path(key.index), key.epoch, key.copy) for key in self.stream().keys(step)]

    def prepare(self, model: nn.Module, check: Callable[[], None]) -> nn.Module:
        """Return the network to validate, with precise batch norm statistics if requested."""
        samples, schedule = self.options.precise_bn, self.trainer.schedule
        if not samples:
            return model
        batches = self.loader(0, finished=True, num_steps=math.ceil(samples / schedule.batch_size), phase_ends=())
        return with_precise_statistics(model, batches, self.precision, self.world, check)

    def validate(
        self, model: nn.Module, check: Callable[[], None], info: Callable[[str], None] = print
    ) -> dict[str, float]:
        """Return top-1, top-5 and loss (mAP, hit@1 and loss for multi-label data) on one centre view of each sample.

        Returns an empty dict without validation data. The loss is NaN if no output is finite.
        """
        if self._views is None:
            return {}
        scores = score(
            model,
            ViewLoader(self._views, **self._ranks(), **self.loading()),  # remembers files that hung
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
            reasons = [reason for _, reason in scores.errors]
            if OUTPUT_NOT_FINITE not in reasons:
                raise UserError(f"no validation sample can be scored: {reasons[0]}")
        if scores.errors:
            index, reason = scores.errors[0]
            first = f"{self.records['val'].path(index)}: {reason}"
            info(f"validation: {len(scores.errors)} not scored, counted as wrong; the first: {first}")
        return validation_metrics(scores.probs, scores.labels, scores.scored)

    def _ranks(self) -> dict[str, int]:
        return {"rank": self.world.rank, "world_size": self.world.size}

    def loading(self) -> dict[str, Any]:
        """Return the number of loader processes and their timeout."""
        workers = loader_workers(self.options.workers, self.world.local_size)
        return {"workers": workers, "timeout": self.options.timeout}

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of each split."""
        return {split: records.fingerprint() for split, records in self.records.items()}

    def model_args(self) -> dict[str, Any]:
        """Return the arguments of ``create_model`` for this network."""
        return {**self.model.model_args, "num_classes": self.model.num_classes}

    def identity(self, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the entries of every checkpoint in addition to the state of the run."""
        return {
            "format": checkpoint.FORMAT,
            "config": config or {},
            "model_args": self.model_args(),
            "data_config": self.model.data_config.to_dict(),
            "crops": self._crops(),
            "fingerprint": self.fingerprints(),
            "weights_from": getattr(self.model, "weights_from", None),
            "versions": {"video_rs": video_rs.__version__, "torch": str(torch.__version__)},
        }

    def check_data(self, saved: Mapping[str, Any], folder: object) -> None:
        """Raise UserError if a checkpoint was trained on other data, with another network or other clips."""
        for split, fingerprint in self.fingerprints().items():
            if (before := saved["fingerprint"].get(split)) != fingerprint:
                raise UserError(
                    f"the {split} data differ from those of the run in {folder} (before {before}, now {fingerprint}); "
                    "restore them, or choose another out="
                )
        changed, now = {}, self.identity()
        for entry in ("model_args", "data_config", "crops"):
            before = saved.get(entry, {})  # earlier versions have fewer values
            changed |= {key: (before[key], new) for key, new in now[entry].items() if before.get(key, new) != new}
        if changed:
            raise another_config(folder, changed)

    def _crops(self) -> dict[str, list[float]]:
        spatial = self.train.transform.spatial
        ranges = {"area": spatial.area, "aspect": spatial.aspect, "flip": [spatial.flip]}
        return {name: [float(value) for value in values] for name, values in ranges.items()}
