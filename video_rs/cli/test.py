"""Scores a checkpoint on many views of each video, and writes a report.

tools/test_net.py --cfg motion_rs.yaml
tools/test_net.py --cfg k400_rs50.yaml data.root=/data/k400 weights=runs/k400_rs50/best.pt
tools/test_net.py --cfg k400_rs50.yaml data.root=/data/k400 test.clips=1 test.crops=1 test.split=val

It reads <out>/best.pt unless weights= names another file, or the address of one, and writes into <out>/<split>/.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_rs import terminal
from video_rs.cli.common import command, config_parser, counter
from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.experiment.checks import check_timeouts
from video_rs.experiment.config import Config, load_config
from video_rs.hub import fetch, redact_url

if TYPE_CHECKING:
    from video_rs.data.sources.records import Records
    from video_rs.distributed.world import World

TRAINING_ONLY = {"train_size", "class_names"}  # class names are compared by themselves


def main(argv: list[str]) -> int:
    """Entry point of ``tools/test_net.py`` and ``video-rs test``."""
    args = config_parser("test", __doc__).parse_intermixed_args(argv)
    test(load_config(args.cfg, args.overrides))
    return 0


def test(config: Config) -> dict[str, Any]:
    """Score ``test.split`` with the checkpoint, print the metrics and write the report. Return the metrics.

    Alone, or as one of several processes, which have a part of the videos each; the first one prints and writes; the
    others return nothing.

    Raises:
        UserError: the checkpoint is not of this config or these classes, or no video can be scored.
    """
    from video_rs.distributed import device as runtime
    from video_rs.distributed import world as distributed

    world = distributed.start_world(runtime.select_device(config.train.device).type, config.train.peer_timeout)
    try:
        check_timeouts(config, world.size)
        with world.together("the test"):
            return _test(config, world)
    finally:
        world.close()


def _test(config: Config, world: World) -> dict[str, Any]:
    import torch

    from video_rs import checkpoint
    from video_rs.data.loader import view_loader
    from video_rs.distributed import device as runtime
    from video_rs.distributed.self_check import check_convolutions
    from video_rs.evaluation.metrics import summarize
    from video_rs.evaluation.multiview import score
    from video_rs.evaluation.report import write_report
    from video_rs.experiment import build
    from video_rs.models.weights.load import model_from_checkpoint

    weights, split = config.weights or str(Path(config.out) / "best.pt"), config.test.split
    if not config.weights and not Path(weights).exists():
        raise UserError(f"{weights} does not exist; train first, or name a checkpoint with weights=FILE")
    state, file = checkpoint.load_run(weights), fetch(weights)
    # an address with a query, which may be a token, is not repeated
    weights, again = redact_url(weights), weights if weights == redact_url(weights) else str(file)
    records = build.build_records(config, (split,))[split]
    build.check_labels(records, split)
    names = build.class_names(config, records)
    check_fits(config, names, state, weights)
    check_unseen(records, state, weights)
    folder = Path(config.out) / split
    folder.mkdir(parents=True, exist_ok=True)  # before the work, not after it

    runtime.configure_torch(config.train.threads, config.train.deterministic)
    device = runtime.select_device(config.train.device)
    precision = runtime.select_precision(config.train.precision, device)
    model = model_from_checkpoint(state, weights)
    names = model.data_config.class_names or names  # the data's may be mere numbers
    model.to(device, runtime.parameter_dtype(precision), memory_format=torch.channels_last_3d)
    if device.type != "cpu":
        check_convolutions(model, precision)
    dataset = build.view_dataset(config, records, config.test.clips, config.test.crops)
    views = f"{dataset.clips} x {config.test.crops} views (clips x crops)"
    no_test = split == "test" and records.used_as_test
    split_name = "val split (chose the weights; there is no test split)" if no_test else f"{split} split"
    if world.is_main:
        processes = f"; {world.size} processes" if world.size > 1 else ""
        print(f"device: {runtime.describe(device)}; precision {precision}{processes}")
        print(f"model: {config.model.name} from {weights}, step {state.get('step', 'unknown')}")
        print(f"{split_name}: {records.describe()}; {views} each")
        if decoder := build.describe_decoder(config):
            print(f"decoder: {decoder}")

    loader = view_loader(
        dataset,
        workers=runtime.loader_workers(config.data.workers, world.local_size),
        timeout=config.data.timeout,
        rank=world.rank,
        world_size=world.size,
    )
    scores = score(
        model,
        loader,
        device=device,
        precision=precision,
        views_per_forward=config.test.batch_size,
        keep_views=config.test.save_views,
        progress=counter(len(loader), "testing", "videos") if world.is_main else None,
        world=world,
    )
    if scores is None:
        return {}
    if not scores.scored.any():
        index, reason = scores.errors[0]
        raise UserError(f"none of the {len(records)} videos can be scored; the first, {records.path(index)}: {reason}")
    metrics = summarize(scores.probs, scores.labels, scores.scored, names)
    report = write_report(
        folder,
        [records.path(i) for i in range(len(records))],
        scores,
        names,
        metrics,
        run_dir=file.parent,
        title=f"{Path(config.out).name}: {split_name}",
        about={"model": config.model.name, "weights": weights, "views": views, "precision": precision},
        decoder=config.data.decoder,
        warn=lambda text: print(f"warning: {text}"),
    )
    _show(metrics)
    for index, reason in scores.errors[:3]:
        print(f"not scored: {records.path(index)}: {reason}")
    print(f"report: {report}")
    print(f"next: {command('predict', '--weights', again, records.path(int(scores.scored.argmax())))}")
    return metrics


def _show(metrics: dict[str, Any]) -> None:
    """Print the metrics; "of all" counts videos that could not be scored as wrong."""
    from video_rs.evaluation.metrics import metric_names

    rows = [
        [name, *(f"{100 * metrics[key + suffix]:.2f} %" for suffix in ("", "_all"))]
        for key, name in metric_names(metrics).items()
    ]
    print(f"{metrics['num_scored']} of {metrics['num_videos']} scored")
    for line in terminal.table(rows, ("", "of scored", "of all"), right=(1, 2)):
        print(f"  {line}")


def check_fits(config: Config, class_names: tuple[str, ...], state: dict[str, Any], weights: str) -> None:
    """Raises UserError, with both values, where a checkpoint is not what the config and the data call for."""
    data_config, saved = config.data_config(class_names), DataConfig.from_dict(state["data_config"], weights)
    arguments = state["model_args"]
    number = "model.num_classes" if config.model.num_classes else "the number of classes in the data"
    pairs = {
        "model.name": (config.model.name, arguments["name"]),
        "model.width": (config.model.width, arguments.get("width", 1.0)),
        number: (len(class_names), arguments.get("num_classes")),
    }
    pairs |= {f"data.{k}": v for k, v in data_config.differences(saved).items() if k not in TRAINING_ONLY}
    wrong = [f"{key} is {ours} here, {theirs} there" for key, (ours, theirs) in pairs.items() if ours != theirs]
    if wrong:
        beside = Path(weights).parent / "config.yaml"
        where = f", which is also in {beside}" if beside.exists() else ""
        raise UserError(
            f"{weights} is not a checkpoint of this config: {'; '.join(wrong)}; give the config it has{where}"
        )
    _check_names(class_names, saved.class_names, weights)


def check_unseen(records: Records, state: dict[str, Any], weights: str) -> None:
    """Raises UserError where a split made of training files is not the one that was kept from this checkpoint."""
    if records.held_out and (state.get("fingerprint") or {}).get("val") != records.fingerprint():
        raise UserError(
            f"the data has no such split of its own, and the one made from its training files is not the one that "
            f"{weights} was validated on: it may have been trained on these videos; give the data, data.val_fraction "
            "and data.class_names of its run, or name other videos with data.test"
        )


def _check_names(ours: tuple[str, ...], theirs: tuple[str, ...], weights: str) -> None:
    """The same classes in another order would be scored as nonsense; but names that are only numbers say nothing."""
    for index, (name, saved) in enumerate(zip(ours, theirs)):
        if name != saved and str(index) not in (name, saved):
            raise UserError(
                f"class {index} is {name!r} in the data, {saved!r} in {weights}; give the names in the order of the "
                "checkpoint with data.class_names=FILE"
            )
