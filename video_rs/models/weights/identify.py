"""Find the preset of weights from their names and the name of the file.

Names and shapes determine the depth, the width and most of the architecture, but not the training resolution or the
stride of the clips. If several presets match, the name of the file or its folder is used; otherwise the preset with the
shortest name is selected. A note states the assumption.
"""

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path

from video_rs.errors import UserError
from video_rs.hub import redact_url
from video_rs.models.presets import PRESETS, Preset
from video_rs.models.registry import find_preset
from video_rs.models.weights.state_dict import blocks_of, describe_blocks


def identify_preset(
    names: Mapping[str, object], pattern: str, path: str | Path, model: str | None = None, frames: int = 0
) -> tuple[Preset, list[str]]:
    """Return the preset that has weights of these names, and notes on assumptions.

    Args:
        names: a state dict with this package's names.
        pattern: pattern of the presets that match the code of the weights, such as "garden_*".
        path: path of the file, whose name may contain the resolution or the clip.
        model: name of the preset, if known.
        frames: temporal extent of the first kernel of a video network; 0 for an image network.

    Raises:
        UserError: there is no such preset.
    """
    if model:
        return matching_preset(model, pattern), []
    blocks = blocks_of(names)
    fitting = [p for p in PRESETS.values() if fnmatch.fnmatchcase(p.name, pattern) and p.blocks == blocks]
    fitting = [p for p in fitting if p.architecture.for_images == (frames == 0)]
    if not fitting:
        kind = "videos" if frames else "images"
        raise UserError(
            f"its network has blocks {describe_blocks(blocks)} for {kind}, and no {pattern} preset has these"
        )
    parts = any(".se." in name for name in names), any(".gating." in name for name in names)
    exact = [p for p in fitting if (p.architecture.se_ratio > 0, p.architecture.self_gating) == parts]
    exact = [p for p in exact if frames in (0, p.architecture.stem_temporal_kernel)]
    return _named_by_file(sorted(exact or fitting, key=lambda preset: len(preset.name)), path)


def matching_preset(model: str, pattern: str) -> Preset:
    """Return a preset by name. Raise UserError if there is none or it does not match ``pattern``."""
    preset = find_preset(model)
    if not fnmatch.fnmatchcase(model, pattern):
        raise UserError(
            f"these weights belong to {pattern}; {model} would return different results with them: "
            "convert them without --model, then start from the result (train.init_from, inflate)"
        )
    return preset


def _named_by_file(presets: list[Preset], path: str | Path) -> tuple[Preset, list[str]]:
    """Return the preset that matches the name of the file or its folder, else the first, and a note."""
    first, *others = presets
    if not others:
        return first, []
    unknown = f"the weights do not determine the {'resolution' if first.architecture.for_images else 'clip'}"
    for part in reversed(re.split(r"[/\\]", redact_url(path))[-3:]):
        named = [preset for preset in presets if re.search(rf"(?<![^\W_]){_tag(preset)}(?![^\W_])", part)]
        if len(named) == 1:
            return named[0], [f"{unknown}: assumed {_described(named[0])}, from the name {part}"]
    also = ", ".join(map(_described, others))
    return first, [f"{unknown}: assumed {_described(first)}; also {also}: give --model"]


def _tag(preset: Preset) -> str:
    """Return the part of published names that denotes the clip or resolution of the preset."""
    data_config = preset.data_config
    images = preset.architecture.for_images
    return f"i{data_config.test_size}" if images else f"{data_config.num_frames}x{data_config.stride}"


def _described(preset: Preset) -> str:
    size = f"{preset.data_config.test_size} px" if preset.architecture.for_images else f"{_tag(preset)} frames"
    return f"{preset.name} ({size})"
