"""Networks of other packages in our trainer, evaluation and benchmarks: ``timm/<name>`` and ``pytorchvideo/<name>``.

The packages are imported where a network of theirs is made, nowhere else. A wrapper holds theirs as ``network`` and
keeps our data configs: clips in, logits out, a data config, randomness that is a function of ``keys``.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import importlib
import warnings
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from video_rs.data_config import DataConfig
from video_rs.errors import MachineError, UserError, first_line, is_out_of_memory
from video_rs.models.architecture import DROP_PATH_RULES
from video_rs.models.resnet_rs import check_input

PACKAGES = ("timm", "pytorchvideo")
PREFIX = "network."
"""What our state dicts put before the names that the other package gives its weights."""
ANOTHER_SIZE = (
    "another size is chosen with data_config=DataConfig(...) in Python, with data.num_frames, data.train_size and "
    "data.test_size in a config"
)


class NoClasses(UserError):
    """A network that ends in features: only its user knows how many classes it should have."""


class External(nn.Module):
    """A network of another package. Subclasses say how clips reach it and where its public weights come from.

    Args:
        name: as for ``create_model``, e.g. "timm/resnet50".
        network: of the other package, with logits for an output.
        num_classes: logits.
        data_config: what the network is trained and tested on.
        native: what its public weights expect to see.
        classifier: names of the modules of ``network`` that depend on the number of classes.

    Attributes:
        name, network, num_classes, data_config, native: as given.
        built_for: the data config as it was given; ``data_config`` may be replaced, but not these sizes.
        weights_from: source and licence of the first weights, see ``video_rs.models.weights``; None if random.
    """

    weights_from: dict[str, Any] | None = None

    def __init__(
        self,
        name: str,
        network: nn.Module,
        num_classes: int,
        data_config: DataConfig,
        *,
        native: DataConfig,
        classifier: Iterable[str],
    ) -> None:
        super().__init__()
        self.name, self.network, self.num_classes = name, network, num_classes
        self.data_config, self.built_for, self.native = data_config, data_config, native
        self._classifier = tuple(classifier)

    @property
    def head_names(self) -> tuple[str, ...]:
        """The state-dict names of the final classifier's parameters."""
        heads = tuple(f"{PREFIX}{module}." for module in self._classifier)
        return tuple(name for name, _ in self.named_parameters() if name.startswith(heads))

    def no_weight_decay(self) -> set[str]:
        """Parameters that the network's authors keep from decaying, by their names here."""
        theirs = getattr(self.network, "no_weight_decay", set)()
        return {PREFIX + name for name in theirs}

    def check_built_for(self, num_frames: int, height: int, width: int) -> None:
        """Raise UserError for clips of another size than the network was built for."""
        frames, size = self.built_for.num_frames, self.built_for.train_size
        if (num_frames, height, width) != (frames, size, size):
            raise UserError(
                f"{self.name} was built for {_clips(frames, size, size)} and cannot take "
                f"{_clips(num_frames, height, width)}, neither to train nor to test; {ANOTHER_SIZE}"
            )

    def logits(self, clips: Tensor) -> Tensor:
        """The network on clips ``[N, C, T, H, W]``, after :meth:`check`."""
        raise NotImplementedError

    def check(self, num_frames: int, height: int, width: int) -> None:
        """Raises UserError for clips of a size that the network cannot take."""

    def public_weights(self) -> dict[str, Tensor]:
        """Return its package's pretrained weights, downloaded where they are not cached.

        Raises:
            UserError: there are none.
            MachineError: they could not be downloaded.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits ``[N, num_classes]``.

        Args:
            x: clips ``[N, C, T, H, W]``, or images ``[N, C, H, W]``: clips of one frame.
            keys: ``[N]`` int64. In training, all that the network draws (dropout, drop path) is a function of the keys
                of the whole batch; without keys it comes from torch's generator.

        Raises:
            UserError: the network cannot take ``x``.
        """
        check_input(x, self.built_for.in_channels)
        clips = x.unsqueeze(2) if x.ndim == 4 else x
        self.check(*clips.shape[2:])
        with drawn_from(keys) if self.training and keys is not None else contextlib.nullcontext():
            return self.logits(clips)

    @property
    def public(self) -> str:
        """The public weights and the sizes that they are for, in words."""
        own = self.native
        sizes = f"data.num_frames={own.num_frames} data.train_size={own.train_size} and {own.in_channels} channels"
        return f"pretrained of {self.name}, for {sizes},"

    def to(self, *args: Any, **kwargs: Any) -> External:
        """As ``nn.Module.to``; channels-last formats of either rank stand for each other, kernel by kernel."""
        memory_format = kwargs.pop("memory_format", None)
        if args or kwargs:
            super().to(*args, **kwargs)
        if memory_format is not None:
            channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}
            chosen = channels_last if memory_format in channels_last.values() else {}
            for tensor in (*self.parameters(), *self.buffers()):
                tensor.data = tensor.data.contiguous(memory_format=chosen.get(tensor.ndim, torch.contiguous_format))
        return self


def _clips(num_frames: int, height: int, width: int) -> str:
    kind = f"clips of {num_frames} frames" if num_frames > 1 else "images"
    return f"{kind} of {height}x{width}"


def refuse_clips(name: str, num_frames: int) -> None:
    """Raise UserError for clips of several frames, which the image network ``name`` cannot take."""
    if num_frames > 1:
        raise UserError(
            f"{name} is an image network and cannot take clips of {num_frames} frames; set data.num_frames=1, "
            "or choose a video network (resnet3d_rs_*, pytorchvideo/*)"
        )


def is_external(name: str) -> bool:
    """Whether a model's name has the form of another package's."""
    return "/" in name


def names(pattern: str) -> list[str]:
    """The networks of another package that match a shell-style ``pattern``, such as "timm/resnet5*"; [] of none.

    Raises:
        ModuleNotFoundError: the package is missing.
        UserError: it is broken.
    """
    of = pattern.partition("/")[0]
    if of not in PACKAGES:
        return []
    module = importlib.import_module(f"video_rs.models.adapters.{of}")
    return [name for name in module.names(pattern) if fnmatch.fnmatchcase(name, pattern)]


def create(
    name: str,
    *,
    width: float = 1.0,
    drop_path_rule: str = DROP_PATH_RULES[0],
    temporal_padding: str | None = None,
    bn_momentum: float | None = None,
    **options: Any,
) -> External:
    """Make a network of another package with fresh weights; arguments as for ``create_model``, None takes its own.

    Raises:
        ModuleNotFoundError: its package is missing.
        UserError: there is no such network, its package is broken, or it has no such setting.
    """
    package = name.partition("/")[0]
    if package not in PACKAGES:
        raise no_package(name)
    if width != 1.0:
        refuse(name, "model.width", width, 1.0)
    if drop_path_rule != DROP_PATH_RULES[0]:
        refuse(name, "model.drop_path_rule", drop_path_rule, DROP_PATH_RULES[0])
    if temporal_padding is not None:
        refuse(name, "model.temporal_padding", temporal_padding, "null")
    model = importlib.import_module(f"video_rs.models.adapters.{package}").create(name, **options)
    if bn_momentum is not None:
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.momentum = bn_momentum
    for size in (model.data_config.train_size, model.data_config.test_size):
        model.check(model.data_config.num_frames, size, size)
    return model.to(memory_format=torch.channels_last_3d)


def no_package(name: str) -> UserError:
    return UserError(f"there is no model {name!r}: networks of other packages begin with timm/ or pytorchvideo/")


def refuse(name: str, key: str, given: Any, instead: Any) -> None:
    """Raises UserError for a setting that a network does not have."""
    raise UserError(f"{name} has no such setting: {key}={given}; set {key}={instead}")


def package(name: str, module: str) -> ModuleType:
    """Import a module of the package that network ``name`` is of.

    Raises:
        ModuleNotFoundError: the package, or another that it needs, is missing; commands name it.
        UserError: it is broken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # their use of torch.jit
            return importlib.import_module(module)
    except Exception as error:  # a torchvision that was built for another torch raises RuntimeErrors and OSErrors
        if isinstance(error, ModuleNotFoundError) and "." not in (error.name or "."):
            raise  # a whole package, not a module that another version has
        raise UserError(
            f"{name} needs the package {module.partition('.')[0]}, which is installed but cannot be imported "
            f"({first_line(error)}): torch and torchvision must be a matching pair, install both anew from one place"
        ) from None


def known(name: str, names: Iterable[str]) -> None:
    """Checks a model's name.

    Args:
        name: as for ``create_model``.
        names: all that there are, in the same form.

    Raises:
        UserError: ``name`` is none of them; the message has the nearest.
    """
    names = list(names)
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:3]
        raise UserError(f"there is no model {name!r}; did you mean {' or '.join(nearest)}?")


@contextlib.contextmanager
def downloading(name: str) -> Iterator[None]:
    """Around what fetches the public weights of a network: whatever a hub client, urllib or the disk may raise.

    Raises:
        MachineError: for all of that.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise MachineError(f"the public weights of {name} could not be downloaded: {first_line(error)}") from error


@contextlib.contextmanager
def drawn_from(keys: Tensor) -> Iterator[None]:
    """Inside, torch's generators draw what the keys say; afterwards they are as they were.

    Only the host's and that of the keys' device: other devices' go on undisturbed. On a GPU this waits for the device,
    once a micro-batch: generators are seeded from the host.

    Args:
        keys: ``[N]`` int64, on the device that draws; their order counts.
    """
    weights = 2 * torch.arange(len(keys), device=keys.device) + 1  # so that their order counts
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
    """Return what operations on a device draw from by default, the host's first."""
    cuda = device.type == "cuda"
    return [torch.default_generator, *([torch.cuda.default_generators[device.index]] if cuda else [])]
