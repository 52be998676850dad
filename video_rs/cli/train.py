"""Trains a network from a config.

tools/train_net.py --cfg k400_rs50.yaml data.root=/data/k400
tools/train_net.py --cfg motion_rs.yaml
tools/train_net.py --cfg finetune_rs50.yaml data.root=/data/mine train.init_from=runs/k400_rs50/best.pt
tools/train_net.py --cfg k400_rs50.yaml data.root=/data/k400 --dry-run

A run folder that holds a checkpoint of the same config is resumed where it stopped.
"""

from __future__ import annotations

import csv
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_rs import config as configs
from video_rs.cli.common import command, config_parser
from video_rs.config import Config
from video_rs.errors import Preempted, UserError

if TYPE_CHECKING:
    import torch

    from video_rs.data.records import Records
    from video_rs.training.log import RunLog
    from video_rs.training.loop import Trainer


def main(argv: list[str]) -> int:
    """Entry point of ``tools/train_net.py`` and ``video-rs train``."""
    parser = config_parser("train", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="build everything, run one batch, tell what a run costs")
    parser.add_argument("--resume", action="store_true", help="insist that there is a run to resume")
    args = parser.parse_intermixed_args(argv)
    config = configs.load_config(args.cfg, args.overrides)

    if args.dry_run:
        return dry_run(config)
    again = [arg for arg in argv if arg != "--resume"]
    return train(config, again, must_resume=args.resume)


def train(config: Config, argv: list[str], *, must_resume: bool = False) -> int:
    """The whole run; ``argv`` is only for the commands that are printed."""
    from video_rs.training.faults import Interrupted
    from video_rs.training.log import RunLog

    folder = Path(config.out)
    saved = _saved_run(folder, config, must_resume)
    job = Job(config, saved)
    resumed = saved is not None
    del saved  # its tensors are in the job now
    step, steps, validated = job.trainer.step, job.trainer.plan.num_steps, job.trainer.validated
    log = RunLog(folder, step, steps, validated)
    try:
        if resumed and validated == steps:
            log.say(f"{folder} is complete: {steps} steps. For another run choose another out=, or delete the folder")
        else:
            (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
            for line in job.summary():
                log.say(line)
            log.say(
                f"{'resuming' if resumed else 'starting'} at step {step} of {steps}; everything is written to {folder}"
            )
            job.fit(folder, log)
        _report_broken(job.trainer, folder, log)
        log.say(f"best validation top-1 {100 * job.trainer.best[0]:.2f} %, weights in {folder / 'best.pt'}")
        log.say(f"next: {command('test', *argv)}")
    except Interrupted as stop:
        log.say(
            f"interrupted; the state after step {job.trainer.step} is saved. Resume with: {command('train', *argv)}"
        )
        if stop.args[0] == signal.SIGTERM:
            raise Preempted(f"asked to leave (SIGTERM) at step {job.trainer.step}; saved in {folder}") from None
        return 130
    finally:
        log.close()
    return 0


def dry_run(config: Config) -> int:
    """One micro-batch of real data, forth and back, and what the whole run would take; writes nothing."""
    from video_rs import runtime
    from video_rs.training.log import duration

    job = Job(config)
    trainer, plan = job.trainer, job.trainer.plan
    print("\n".join(job.summary()))
    batch = next(iter(job.loader(0)))
    print(f"micro-batch: clips {list(batch['clip'].shape)} {batch['clip'].dtype}, labels {list(batch['label'].shape)}")
    if trainer.device.type == "cuda":
        trainer.train_step([batch])  # the first one also chooses kernels
        runtime.synchronize(trainer.device)
    start = time.monotonic()
    trainer.train_step([batch])
    runtime.synchronize(trainer.device)
    parts = plan.batch_size // plan.micro_batch
    seconds = (time.monotonic() - start) * parts
    loss = trainer.mean_loss()
    memory = runtime.peak_memory(trainer.device)
    print(f"loss {loss:.4f}, peak memory {memory:.2f} GiB")
    print(f"one step of {parts} micro-batches: {seconds:.2f} s without data loading")
    print(f"{plan.num_steps} steps at that rate: {duration(seconds * plan.num_steps)}, validations not counted")
    return 0


class Job:
    """All the objects of one training run, built from a config."""

    def __init__(self, config: Config, saved: dict[str, Any] | None = None) -> None:
        import torch

        from video_rs import runtime
        from video_rs.cli import build

        runtime.set_up(config.train.threads, config.train.deterministic)
        self.config = config
        self.device = runtime.select_device(config.train.device)
        self.precision = runtime.select_precision(config.train.precision, self.device)
        self.records = build.build_records(config, ("train", "val"))
        names = build.class_names(config, self.records["train"])
        self.model = build.build_model(config, names)
        self.started_from = "" if saved else _init_from(self.model, config)
        self.model.to(
            self.device, runtime.parameter_dtype(self.precision), memory_format=torch.channels_last_3d
        )  # the memory order in which clips arrive
        self.trainer = _trainer(config, self.model, self.records["train"], self.precision)
        if saved:
            self._resume(saved)

    def loader(self, start_step: int) -> torch.utils.data.DataLoader:
        """Micro-batches of clips from ``start_step`` to the end of the run."""
        from video_rs import runtime
        from video_rs.cli.build import train_dataset
        from video_rs.data.loader import clip_loader
        from video_rs.data.sampler import BatchStream

        plan, records = self.trainer.plan, self.records["train"]
        stream = BatchStream(
            plan.num_samples,
            batch_size=plan.batch_size,
            num_steps=plan.num_steps,
            seed=plan.seed,
            start_step=start_step,
            micro_batch=plan.micro_batch,
            labels=records.labels if self.config.train.balanced_sampling else None,
        )
        workers = runtime.loader_workers(self.config.data.workers)
        return clip_loader(
            train_dataset(self.config, records), stream, workers=workers, pin_memory=self.device.type == "cuda"
        )

    def validate(self, model: torch.nn.Module, check: Any) -> dict[str, float]:
        """Top-1, top-5 and loss on one centre view of every validation sample."""
        from video_rs import runtime
        from video_rs.cli.build import view_dataset
        from video_rs.data.loader import view_loader
        from video_rs.evaluation.metrics import summarize
        from video_rs.evaluation.multiview import score

        dataset = view_dataset(self.config, self.records["val"], clips=1, crops=1)
        scores = score(
            model,
            view_loader(dataset, workers=runtime.loader_workers(self.config.data.workers)),
            device=self.device,
            precision=self.precision,
            views_per_forward=self.config.test.batch_size,
            progress=lambda _: check(),
        )
        if not scores.scored.any():
            raise UserError(f"no validation sample could be scored; the first: {scores.errors[0][1]}")
        figures = summarize(scores.probs, scores.labels, scores.scored, model.contract.class_names)
        # a sample that cannot be scored counts as wrong, or the best weights would be those that fail most
        return {"top1": figures["top1_all"], "top5": figures["top5_all"], "loss": figures["loss"]}

    def fit(self, folder: Path, log: RunLog) -> None:
        """Trains to the end; see ``Trainer.fit``."""
        self.trainer.fit(self.loader, self.validate, folder=folder, log=log, identity=self.identity())

    def identity(self) -> dict[str, Any]:
        """What each checkpoint carries besides the trainer's state."""
        import torch

        import video_rs
        from video_rs import checkpoint
        from video_rs.cli.build import model_args

        return {
            "format": checkpoint.FORMAT,
            "config": self.config.to_dict(),
            "model_args": model_args(self.config, self.model.num_classes),
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
        from video_rs import runtime

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
        return lines + ([f"started from {config.train.init_from}: {self.started_from}"] if self.started_from else [])


def _trainer(config: Config, model: torch.nn.Module, records: Records, precision: str) -> Trainer:
    from video_rs.training import losses, optim
    from video_rs.training.ema import EMA
    from video_rs.training.loop import Plan, Trainer

    run = config.train
    per_epoch = len(records) / run.batch_size
    plan = Plan(
        num_samples=len(records),
        num_steps=run.max_steps or optim.num_steps(len(records), run.batch_size, run.epochs),
        batch_size=run.batch_size,
        micro_batch=min(run.micro_batch or run.batch_size, run.batch_size),
        seed=run.seed,
        val_every=run.val_every,
        log_every=run.log_every,
        checkpoint_minutes=run.checkpoint_minutes,
    )
    class_weights = None
    if run.class_weights == "balanced":
        class_weights = losses.balanced_class_weights(records.labels, model.num_classes).to(next(model.parameters()))
    return Trainer(
        model,
        plan,
        criterion=losses.CrossEntropy(run.label_smoothing, class_weights),
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
    )


def _peak_rate(config: Config) -> float:
    return config.optim.lr * config.train.batch_size / config.optim.lr_batch


def _init_from(model: torch.nn.Module, config: Config) -> str:
    if not config.train.init_from:
        return ""
    from video_rs.models.convert import init_from

    report = init_from(model, config.train.init_from, method=config.train.inflate)
    changed = config.contract().differences(model.contract, ("mean", "std", "filter"))
    if changed:
        shown = ", ".join(f"data.{key} is {ours}, they expect {theirs}" for key, (ours, theirs) in changed.items())
        raise UserError(
            f"the config does not fit the weights {config.train.init_from}: {shown}; set the config to theirs"
        )
    return str(report)


def _saved_run(folder: Path, config: Config, must_resume: bool) -> dict[str, Any] | None:
    """The checkpoint in the run folder, after a check that it is of this config."""
    path = folder / "last.pt"
    for unfinished in folder.glob(".*.pt.*"):  # what a killed process was writing
        unfinished.unlink()
    if not path.exists():
        if must_resume:
            raise UserError(f"--resume: {path} does not exist; leave --resume out, or name the run folder with out=")
        return None
    from video_rs import checkpoint

    saved = checkpoint.load_run(path)
    if "optimizer" not in saved:
        raise UserError(f"{path} holds weights without a training state; start from it with train.init_from={path}")
    changed = configs.differences(saved["config"], config)
    if changed:
        shown = ", ".join(f"{key} was {old!r}, is now {new!r}" for key, (old, new) in changed.items())
        raise UserError(f"{folder} holds a run of another config ({shown}); choose another out=, or delete the folder")
    return saved


def _report_broken(trainer: Trainer, folder: Path, log: RunLog) -> None:
    if not trainer.broken:
        return
    from video_rs.checkpoint import atomic_write

    with atomic_write(folder / "broken_files.csv", "w") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "reason", "times_replaced"])
        writer.writerows([path, *entry] for path, entry in sorted(trainer.broken.items()))
    log.say(f"{len(trainer.broken)} files could not be read and were replaced by others of their class:")
    for path, (reason, times) in sorted(trainer.broken.items())[:10]:
        log.say(f"  {path} ({times}x): {reason}")
    log.say(f"all of them are in {folder / 'broken_files.csv'}")
