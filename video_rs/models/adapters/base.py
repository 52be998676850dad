"""Wrap networks of other packages for training and evaluation: ``timm/<name>`` and ``pytorchvideo/<name>``.

A package is imported when one of its networks is created. The wrapper stores the network as ``network`` and implements
``video_rs.models.base.VideoModel``, with random numbers that are a function of ``keys``.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from video_rs.data_config import DataConfig
from video_rs.errors import MachineError, UserError, first_line, one_line
from video_rs.models.base import VideoModel, channels_last, check_input

PREFIX = "network."
"""Prefix of the other package's names in our state dicts."""
HOW_TO_RESIZE = (
    "choose another size with data_config=DataConfig(...), or data.num_frames, data.train_size and data.test_size in a "
    "config"
)


class NoClasses(UserError):
    """The network has no classifier, and the number of classes was not given."""


class External(VideoModel):
    """A network of another package. Subclasses implement :meth:`features` and :meth:`head`.

    Args:
        name: name for ``create_model``, e.g. "timm/resnet50".
        network: the network of the other package.
        num_classes: number of logits.
        data_config: data config for training and testing.
        native: data config that the public weights expect.
        classifier: name of the last linear layer, if :meth:`get_classifier` is not overridden.

    Attributes:
        network: as given.
        built_for: the given data config. ``data_config`` may be replaced later, but the sizes cannot change.
    """

    module_prefix = PREFIX

    def __init__(
        self,
        name: str,
        network: nn.Module,
        num_classes: int,
        data_config: DataConfig,
        *,
        native: DataConfig,
        classifier: str = "",
    ) -> None:
        super().__init__(num_classes, data_config)
        self.model_args, self.classifier = {"name": name}, classifier
        self.network, self.built_for, self.native = network, data_config, native

    def features(self, clips: Tensor) -> Tensor:
        """Return the features of clips ``[N, C, T, H, W]`` of a valid size, in the layout of the network."""
        raise NotImplementedError

    def head(self, features: Tensor, pre_logits: bool) -> Tensor:
        """Return logits or pooled features."""
        raise NotImplementedError

    def logits(self, clips: Tensor) -> Tensor:
        """Return logits of clips of a valid size; pooled features if there are no classes."""
        return self.head(self.features(clips), pre_logits=self.num_classes == 0)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return logits ``[N, num_classes]``.

        Args:
            x: clips ``[N, C, T, H, W]``, or images ``[N, C, H, W]``, which are treated as clips of one frame.
            keys: ``[N]`` int64. In training, all random numbers (dropout, drop path) are a function of the keys of the
                whole batch. If None, they are drawn from torch's generator.

        Raises:
            UserError: the network cannot take ``x``.
        """
        with self._drawn_from(keys):
            return self.logits(self._checked(x))

    def forward_features(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the features before pooling, in the network's layout; arguments as for :meth:`forward`."""
        with self._drawn_from(keys):
            return self.features(self._checked(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False, *, keys: Tensor | None = None) -> Tensor:
        with self._drawn_from(keys):
            return self.head(x, pre_logits)

    def _checked(self, x: Tensor) -> Tensor:
        check_input(x, self.built_for.in_channels)
        clips = x.unsqueeze(2) if x.ndim == 4 else x
        self.check(*clips.shape[2:])
        return clips

    def _drawn_from(self, keys: Tensor | None) -> contextlib.AbstractContextManager:
        return drawn_from(keys) if self.training and keys is not None else contextlib.nullcontext()

    def no_weight_decay(self) -> set[str]:
        return {PREFIX + name for name in getattr(self.network, "no_weight_decay", set)()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int] | dict:
        matcher = self.network_groups(coarse)
        if not matcher:
            return {}
        from timm.models import group_parameters

        depths = group_parameters(self.network, matcher, reverse=True)
        return lambda name: depths[name.removeprefix(PREFIX)]

    def network_groups(self, coarse: bool) -> Any:
        """Return the ``group_matcher`` of ``network``, by its own names; None if it has none."""

    def check_built_for(self, num_frames: int, height: int, width: int) -> None:
        """Raise UserError for clips of a size that the network was not built for."""
        frames, size = self.built_for.num_frames, self.built_for.train_size
        if (num_frames, height, width) != (frames, size, size):
            raise UserError(
                f"{self.name} was built for {_clips(frames, size, size)} and cannot take "
                f"{_clips(num_frames, height, width)}; {HOW_TO_RESIZE}"
            )

    def to(self, *args: Any, **kwargs: Any) -> External:
        """Like ``nn.Module.to``, but a channels-last format applies to both 4-D and 5-D kernels."""
        if kwargs.get("memory_format") in (torch.channels_last, torch.channels_last_3d):
            del kwargs["memory_format"]
            channels_last(self)
        return super().to(*args, **kwargs)

    @property
    def public_description(self) -> str:
        """Description of the public weights and their input size, for messages."""
        own = self.native
        sizes = f"data.num_frames={own.num_frames} data.train_size={own.train_size} and {own.in_channels} channels"
        return f"pretrained of {self.name}, for {sizes},"


def _clips(num_frames: int, height: int, width: int) -> str:
    kind = f"clips of {num_frames} frames" if num_frames > 1 else "images"
    return f"{kind} of {height}x{width}"


def refuse_clips(name: str, num_frames: int) -> None:
    """Raise UserError if the image network ``name`` gets clips of several frames."""
    if num_frames > 1:
        raise UserError(
            f"{name} is an image network and cannot take clips of {num_frames} frames; set data.num_frames=1, "
            "or choose a video network (resnet3d_rs_*, pytorchvideo/*)"
        )


def import_package(name: str, module: str) -> ModuleType:
    """Import a module of the package of network ``name``.

    Raises:
        ModuleNotFoundError: the package or one of its dependencies is missing. Commands report the name.
        UserError: the package is installed but cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # they use torch.jit
            return importlib.import_module(module)
    except Exception as error:  # a torchvision built for another torch raises RuntimeError or OSError
        if isinstance(error, ModuleNotFoundError) and "." not in (error.name or "."):
            raise  # the package is missing, not a module of another version
        raise UserError(
            f"{name} needs the package {module.partition('.')[0]}, which is installed but cannot be imported "
            f"({first_line(error)}); install a matching pair of torch and torchvision from one index"
        ) from None


def downloading(name: str) -> contextlib.AbstractContextManager:
    """Convert any error while downloading the public weights of network ``name`` to a MachineError."""
    return one_line(f"the public weights of {name} could not be downloaded", into=MachineError)


@contextlib.contextmanager
def drawn_from(keys: Tensor) -> Iterator[None]:
    """Seed torch's generators from ``keys`` in this context, and restore them afterwards.

    Only the generators of the host and of the keys' device are changed. On a GPU, this synchronizes once per
    micro-batch, because generators are seeded from the host.

    Args:
        keys: ``[N]`` int64, on the device that draws. Their order matters.
    """
    weights = 2 * torch.arange(len(keys), device=keys.device) + 1  # makes the seed depend on the order
    seed = int((keys * weights).sum())
    generators = _generators(keys.device)
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generators(device: torch.device) -> list[torch.Generator]:
    """Return the default generators for operations on a device, the host's first."""
    cuda = device.type == "cuda"
    return [torch.default_generator, *([torch.cuda.default_generators[device.index]] if cuda else [])]
