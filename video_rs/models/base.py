"""The interface of a network: what training, evaluation and export ask of it."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models import layers
from video_rs.models.arguments import refuse


class VideoModel(nn.Module):
    """A network that classifies clips ``[N, C, T, H, W]`` or images ``[N, C, H, W]``: the interface, and a base class.

    A subclass sets ``num_features``, makes the module called ``classifier``, and implements :meth:`forward_features`.
    The method names are timm's.

    Args:
        num_classes: number of logits; 0 for pooled features ``[N, num_features]`` in their place.
        data_config: the frames, pixels and classes that the weights expect.

    Attributes:
        num_features: channels of the pooled features.
        native: the data config that the public weights expect.
        classifier: name of the linear layer that gives the logits.
        model_args: the arguments of ``create_model``, which checkpoints carry.
        weights_from: source and licence of the first weights, see ``video_rs.models.weights``; None if random.
    """

    num_features: int
    classifier = "head"
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
            keys: ``[N]`` int64. In training, dropout and drop path are functions of them; None draws them from
                torch's generator.

        Raises:
            UserError: ``x`` has other dimensions or channels.
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
        """Return the layer that gives the logits; ``nn.Identity`` if there are no classes."""
        return self.get_submodule(self.classifier)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier with a new one, of the same dtype and on the same device; 0 removes it."""
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
        self.num_classes = num_classes
        self.data_config = dataclasses.replace(self.data_config, class_names=())
        self.model_args = {**self.model_args, "num_classes": num_classes}

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters without weight decay, besides biases and normalisation."""
        return set()

    def group_matcher(self, coarse: bool = False) -> Any:
        """Return how parameters are grouped by depth, for ``timm.models.group_parameters``; {} if that is unknown.

        Args:
            coarse: group by stage, not by block.
        """
        return {}

    def set_grad_checkpointing(self, stages: Any = True) -> None:
        """Compute activations again in the backward pass; less memory for more time. False or () turns it off.

        Raises:
            UserError: the network cannot do that.
        """
        if stages:
            refuse(self.name, "train.activation_checkpointing", stages if stages is True else list(stages), [])

    def check(self, num_frames: int, height: int, width: int) -> None:
        """Raise UserError for clips of a size that the network cannot take."""

    def public_weights(self) -> dict[str, Tensor]:
        """Return the state dict of the public weights, downloaded if they are not cached.

        Raises:
            UserError: there are none.
            MachineError: they could not be downloaded.
        """
        raise UserError(f"{self.name} has no public weights; train it, or give a file of weights")

    @property
    def public_description(self) -> str:
        """The public weights in words."""
        return f"pretrained of {self.name}"


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return the state-dict names of the classifier's parameters."""
    chosen = {id(parameter) for parameter in model.get_classifier().parameters()}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in chosen)


def channels_last(model: nn.Module) -> nn.Module:
    """Move 4-D and 5-D weights into channels-last memory, in which clips arrive, in place."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim in formats:
            tensor.data = tensor.data.to(memory_format=formats[tensor.ndim])
    return model


def check_input(x: Tensor, channels: int) -> None:
    """Raise UserError unless ``x`` is clips ``[N, C, T, H, W]`` or images ``[N, C, H, W]`` of that many channels."""
    if x.ndim in (4, 5) and x.shape[1] == channels:
        return
    alone = x.ndim in (3, 4) and x.shape[0] == channels
    raise UserError(
        f"the network takes clips [N, {channels}, T, H, W] or images [N, {channels}, H, W]; found {list(x.shape)}"
        + (", a sample alone? x[None] is a batch of one" if alone else "")
    )
