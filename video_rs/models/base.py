"""The interface of networks for training, evaluation and export."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models import layers
from video_rs.models.arguments import check_numbers, refuse


class VideoModel(nn.Module):
    """Base class of networks that classify clips ``[N, C, T, H, W]`` or images ``[N, C, H, W]``.

    A subclass sets ``num_features``, creates the module called ``classifier``, and implements :meth:`forward_features`.
    The method names are those of timm.

    Args:
        num_classes: number of logits; 0 to return pooled features ``[N, num_features]`` instead.
        data_config: the frames, pixels and classes that the weights expect.

    Attributes:
        num_features: number of channels of the pooled features.
        native: the data config that the public weights expect.
        classifier: name of the linear layer that returns the logits.
        module_prefix: prefix of module names that users may leave out.
        model_args: the arguments of ``create_model``, which are stored in checkpoints.
        weights_from: source and licence of the initial weights, see ``video_rs.models.weights``; None if random.
    """

    num_features: int
    classifier = "head"
    module_prefix = ""
    weights_from: dict[str, Any] | None = None

    def __init__(self, num_classes: int, data_config: DataConfig) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.data_config = self.native = data_config
        self.model_args: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Name for ``create_model``."""
        return self.model_args.get("name", type(self).__name__)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return logits ``[N, num_classes]``; without classes, pooled features ``[N, num_features]``.

        Args:
            x: clips ``[N, C, T, H, W]`` or images ``[N, C, H, W]``.
            keys: ``[N]`` int64, which determine dropout and drop path in training. If None, they are drawn from torch's
                generator.

        Raises:
            UserError: ``x`` has a wrong number of dimensions or channels.
        """
        if self.training:
            keys = layers.resolve_keys(keys, x)
        return self.forward_head(self.forward_features(x, keys), pre_logits=self.num_classes == 0, keys=keys)

    def forward_features(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the features before pooling, ``[N, num_features, ...]``; arguments as for :meth:`forward`."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False, *, keys: Tensor | None = None) -> Tensor:
        """Pool the output of :meth:`forward_features` and classify it.

        Args:
            x: ``[N, num_features, ...]``.
            pre_logits: return the pooled features ``[N, num_features]``.
            keys: as for :meth:`forward`.
        """
        pooled = x.flatten(2).mean(2)
        return pooled if pre_logits else self.get_classifier()(pooled)

    def get_classifier(self) -> nn.Module:
        """Return the layer that computes the logits; ``nn.Identity`` if there are no classes."""
        return self.get_submodule(self.classifier)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier with a new one of the same dtype and device. 0 removes it."""
        check_numbers({"num_classes": num_classes})
        parent, _, child = self.classifier.rpartition(".")
        setattr(self.get_submodule(parent), child, self.new_classifier(num_classes))
        self._set_num_classes(num_classes)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a new linear layer for ``num_features``, of the network's dtype and on its device."""
        if num_classes == 0:
            return nn.Identity()
        like = next(self.parameters())
        layer = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
        return layer

    def _set_num_classes(self, num_classes: int) -> None:
        self.num_classes = num_classes = int(num_classes)  # not NumPy's, which a checkpoint cannot hold
        self.data_config = dataclasses.replace(self.data_config, class_names=())
        self.model_args = {**self.model_args, "num_classes": num_classes}

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters without weight decay, in addition to biases and normalisation."""
        return set()

    def group_matcher(self, coarse: bool = False) -> Any:
        """Return a group matcher for ``timm.models.group_parameters``, or {} if the order of blocks is unknown.

        Args:
            coarse: group by stage instead of by block.
        """
        return {}

    def set_grad_checkpointing(self, stages: Any = True) -> None:
        """Recompute activations in the backward pass to save memory. False or () turns it off.

        Raises:
            UserError: the network does not support it.
        """
        if stages:
            refuse(self.name, "train.activation_checkpointing", stages if stages is True else list(stages), [])

    def stage_modules(self) -> dict[str, str]:
        """Return the names of the stages in order, mapped to the names of their modules. By default, all children."""
        return {name: name for name, _ in self.named_children()}

    def read_maps(self, tensor: Tensor, output: Any, module: str) -> Tensor | None:
        """Convert the output of a layer, or its gradients, to ``[N, C, T, H, W]``.

        Args:
            tensor: the main tensor of the output, or its gradients.
            output: the whole output of the layer.
            module: name of the layer.

        Returns:
            The maps; ``[N, C]`` unchanged; None for any other shape.
        """
        if tensor.ndim == 4:
            return tensor.unsqueeze(2)
        return tensor if tensor.ndim in (2, 5) else None

    def check(self, num_frames: int, height: int, width: int) -> None:
        """Raise UserError for clip sizes that the network does not support."""

    def public_weights(self) -> dict[str, Tensor]:
        """Return the state dict of the public weights, downloaded if they are not cached.

        Raises:
            UserError: there are no public weights.
            MachineError: the weights could not be downloaded.
        """
        raise UserError(f"{self.name} has no public weights; train it, or use a file of weights")

    @property
    def public_description(self) -> str:
        """Name of the public weights, for messages."""
        return f"pretrained of {self.name}"


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return the state-dict names of the classifier's parameters."""
    chosen = {id(parameter) for parameter in model.get_classifier().parameters()}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in chosen)


def channels_last(model: nn.Module) -> nn.Module:
    """Convert 4-D and 5-D weights to the channels-last memory format of the clips, in place."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim in formats:
            tensor.data = tensor.data.to(memory_format=formats[tensor.ndim])
    return model


def check_input(x: Tensor, channels: int) -> None:
    """Raise UserError unless ``x`` is ``[N, C, T, H, W]`` or ``[N, C, H, W]`` with C equal to ``channels``."""
    if x.ndim in (4, 5) and x.shape[1] == channels:
        return
    alone = x.ndim in (3, 4) and x.shape[0] == channels
    raise UserError(
        f"the network takes clips [N, {channels}, T, H, W] or images [N, {channels}, H, W]; found {list(x.shape)}"
        + ("; use x[None] for a single sample" if alone else "")
    )
