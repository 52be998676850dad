"""Publish a checkpoint on the Hugging Face hub, with a model card."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils._pytree import tree_map_only

from video_rs import __version__, checkpoint
from video_rs.errors import UserError, VideoRSError, first_line, truncate
from video_rs.evaluation.metrics import metric_names
from video_rs.evaluation.report import percent, template
from video_rs.files import atomic_write, read_json
from video_rs.hub import HUB_FILE, format_redacted, network_error, redact_url
from video_rs.models.weights.load import model_from_checkpoint
from video_rs.terminal import has_cursor
from video_rs.training.reports import find_test

CARD = "README.md"
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
LICENCES = ("apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-4.0", "mit")
MAX_CLASS_NAMES = 30  # on the card
_FOLDERS = re.compile(r"(?:^|(?<=\s))(?:[/~]|\.\./).*/")  # of a path outside the working folder, in a text


def push(
    weights: str | Path,
    repo: str,
    *,
    private: bool = False,
    model: nn.Module | None = None,
    warn: Callable[[str], Any] = warnings.warn,
) -> str:
    """Publish a checkpoint on the Hugging Face hub, for ``video_rs.load("hf-hub:owner/name")``.

    All files are uploaded in one commit: the weights for prediction, and the model card, which replaces an earlier one.
    If the upload fails, the files in the repository are unchanged. The token is that of ``hf auth login`` or HF_TOKEN.

    Args:
        weights: see ``video_rs.load``.
        repo: ``owner/name``; created if it does not exist.
        private: make a new repository private.
        model: raise UserError unless its weights are those of the checkpoint.
        warn: called with one line if there is no test report for the model card.

    Returns:
        The URL of the repository.

    Raises:
        UserError: the name, the weights or the token are invalid, or the hub refuses them.
        MachineError: the network or the hub failed.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    _check_name(repo)
    with _one_line(repo):
        if not get_token():
            raise UserError(f"{repo}: there is no token for the hub; {LOGIN}")
    with tempfile.TemporaryDirectory() as folder:
        write_files(folder, weights, repo, model=model, warn=warn)
        files = [CommitOperationAdd(name, Path(folder, name)) for name in (HUB_FILE, CARD)]
        with _one_line(repo):
            api = HfApi(library_name="video_rs", library_version=__version__)
            api.create_repo(repo, private=private or None, exist_ok=True)
            if private and not api.model_info(repo).private:
                raise UserError(f"{repo} exists and is public; make it private on its page, or push without private")
            commit = api.create_commit(repo, files, commit_message=f"Push with video_rs {__version__}")
    return redact_url(commit.repo_url)


def write_files(
    folder: str | Path,
    weights: str | Path,
    repo: str,
    *,
    model: nn.Module | None = None,
    warn: Callable[[str], Any] = warnings.warn,
) -> None:
    """Write the files that :func:`push` uploads, with the same arguments, to a folder that has none of them."""
    _check_name(repo)
    if existing := [path for path in (Path(folder, name) for name in (HUB_FILE, CARD)) if os.path.lexists(path)]:
        raise UserError(f"{existing[0]} exists; give another folder, or delete it")
    state, name = checkpoint.load_run(weights), redact_url(weights)
    network = model_from_checkpoint(state, name)
    if model is not None and not _has_weights(model, network):
        raise UserError(f"{name}: the weights of the classifier were changed; save them and load the new file")
    described = ("config", *checkpoint.RECORD)
    state |= {key: tree_map_only(str, without_folders, state[key]) for key in described if key in state}
    try:
        report = read_json(find_test(str(weights)) / "metrics.json")
    except UserError as error:
        warn(f"no test metrics on the model card: {error}")
        report = None
    checkpoint.save(Path(folder) / HUB_FILE, state)
    with atomic_write(Path(folder) / CARD, "w") as handle:
        handle.write(model_card(network, state, repo, report))


def _check_name(repo: str) -> None:
    """Raise UserError unless the hub accepts the name of a repository."""
    from huggingface_hub.utils import validate_repo_id

    with contextlib.suppress(ValueError):
        validate_repo_id(repo)
        if "/" in repo:
            return
    raise UserError(f"{format_redacted(repo)} is not the name of a repository; use owner/name")


def without_folders(text: str) -> str:
    """Remove the folders of paths outside the working folder, and the credentials and queries of URLs."""
    return _FOLDERS.sub("", redact_url(text))


def model_card(network: nn.Module, state: Mapping[str, Any], repo: str, report: Mapping[str, Any] | None = None) -> str:
    """Return the model card of a checkpoint: Markdown with metadata for the hub.

    Args:
        network: the network of the checkpoint.
        state: the checkpoint.
        repo: ``owner/name``.
        report: the content of metrics.json of its test, if there is one.
    """
    metrics = report or state.get("metrics") or {}
    values = {name: metrics.get(key) for key, name in metric_names(metrics).items()}
    values = {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
    tested = {key: str(text) for key, text in (report or {}).get("about", {}).items() if key != "weights"}
    if report:
        without_files = re.sub(r"(, fingerprint \w+).*", r"\1", tested.get("data", ""))
        tested["data"] = without_folders(without_files)
        tested["scored"] = f"{report.get('num_scored')} of {report.get('num_videos')}"
    config, kind = state["config"], "image" if network.data_config.num_frames == 1 else "video"
    recipe = {key: _without_empty(config[key]) for key in ("model", "data", "optim", "train") if config.get(key)}
    return template(Path(__file__).with_name("model_card.md.j2")).render(
        metadata=_metadata(network, state, repo, kind, values if report else {}, tested),
        repo=repo,
        kind=kind,
        has_classes=network.num_classes > 0,
        network=_describe_network(network),
        metrics={name: percent(value) for name, value in values.items()},
        is_tested=report is not None,
        tested=tested,
        training=_describe_training(state),
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else "",
    )


def _metadata(
    network: nn.Module, state: Mapping[str, Any], repo: str, kind: str, values: Mapping[str, float], tested: Any
) -> str:
    """Return the YAML at the start of the model card."""
    from huggingface_hub import EvalResult, ModelCardData

    task = f"{kind}-classification"
    data = {"task_type": task, "dataset_type": "custom", "dataset_name": tested.get("data", "").partition(": ")[0]}
    results = [
        EvalResult(**data, metric_type="map" if name == "mAP" else "accuracy", metric_name=name, metric_value=value)
        for name, value in values.items()
    ]
    licence = re.sub(r"[^a-z0-9.]+", "-", str((state.get("weights_from") or {}).get("licence") or "").lower()) or None
    is_known = licence is None or licence in LICENCES
    return ModelCardData(
        license=licence if is_known else "other",
        license_name=None if is_known else licence,
        library_name="video_rs",
        pipeline_tag=task,
        tags=["video_rs", network.name],
        model_name=repo.partition("/")[2] if results else None,
        eval_results=results or None,
    ).to_yaml()


def _describe_network(network: nn.Module) -> dict[str, str]:
    data, names = network.data_config, network.data_config.class_names
    clip = f"{data.num_frames} frames, stride {data.stride}" if data.num_frames > 1 else "1 frame"
    return {
        "network": network.name,
        "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
        "input": f"{clip}, {data.test_size} x {data.test_size} pixels",
        "classes": f"{network.num_classes}" + (f": {truncate(names, MAX_CLASS_NAMES)}" if names else ""),
    }


def _describe_training(state: Mapping[str, Any]) -> dict[str, str]:
    data, origin, origins = state["config"].get("data") or {}, state.get("weights_from"), []
    while origin:
        origins.append(f"{origin.get('source')} (licence: {origin.get('licence') or 'unknown'})")
        origin = origin.get("weights_from")
    found = {
        "started from": ", which started from ".join(origins) or "random weights",
        "training data": data.get("train") or data.get("list") or data.get("root"),
        "fingerprint of the data": (state.get("fingerprint") or {}).get("train"),
        "steps": state.get("step"),
        "versions": ", ".join(f"{name} {version}" for name, version in (state.get("versions") or {}).items()),
    }
    return {name: str(value) for name, value in found.items() if value}


def _without_empty(values: Any) -> Any:
    """Return a config without empty values, which have no effect."""
    if not isinstance(values, Mapping):
        return values
    kept = {key: _without_empty(value) for key, value in values.items()}
    return {key: value for key, value in kept.items() if value not in ("", None, [], {})}


def _has_weights(model: nn.Module, network: nn.Module) -> bool:
    own, saved = model.state_dict(), network.state_dict()
    return own.keys() == saved.keys() and all(torch.equal(own[name].cpu(), saved[name]) for name in saved)


@contextlib.contextmanager
def _one_line(repo: str) -> Iterator[None]:
    """Convert errors of huggingface_hub to one line. Hide its notes on retries, and its bars without a terminal."""
    from huggingface_hub import logging, utils

    level, has_bars = logging.get_verbosity(), not utils.are_progress_bars_disabled()
    logging.set_verbosity_error()
    if has_bars and not has_cursor(sys.stderr):
        utils.disable_progress_bars()
    try:
        yield
    except VideoRSError:
        raise
    except Exception as error:  # of the hub, its http library or the system
        raise _error(repo, error) from None
    finally:
        logging.set_verbosity(level)
        if has_bars:
            utils.enable_progress_bars()


def _error(repo: str, error: BaseException) -> VideoRSError:
    """Return the error for one of huggingface_hub, its http library, hf_xet or the system."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if type(error) is RuntimeError and error.__cause__:  # from an upload
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(f"{repo} cannot be pushed while HF_HUB_OFFLINE is set; unset it")
    text = getattr(error, "server_message", None)
    text = text or (str(error) if isinstance(error, ValueError) else first_line(error))
    reason = redact_url(" ".join(text.split()))[:200].rstrip(".")
    of_xet = re.search(r"client error \((\d+)", text)
    status = int(of_xet[1]) if of_xet else getattr(getattr(error, "response", None), "status_code", 0)
    known = {
        401: f"the hub does not accept the token; {LOGIN}",
        403: f"the token may not write there: {reason}; check the owner and the rights of the token",
        404: "no such repository, or it is not yours; check the name",
    }
    if of_xet and status == 404:
        return UserError(f"{repo}: the hub has no Xet storage; set HF_HUB_DISABLE_XET=1")
    if status in known:
        return UserError(f"{repo}: {known[status]}")
    refused = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)
    if refused or 400 <= status < 500 and status not in (408, 429):
        return UserError(f"{repo}: the hub refuses the files: {reason}; correct this and push again")
    return network_error(repo, error, action="uploaded")
