"""Whether the convolutions of this device, driver and precision are right: seen before a run, not in its accuracy.

Convolutions in low precision have been wrong without a word, see pytorch#163539 and #167024.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from video_rs.distributed import device as runtime
from video_rs.errors import MachineError, first_line, is_out_of_memory

TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "fp16": 5e-3, "bf16": 2e-2}
"""Of each precision, the relative error in the Euclidean norm that is borne: that of right kernels is 3e-7 in float32,
4e-4 in fp16, 3e-3 in bf16 (on a CPU); TF32 in place of float32 has 3e-4."""

PARTS = ("output", "gradient of the input", "gradient of the weights")


def check_convolutions(model: nn.Module, precision: str) -> None:
    """Compares one convolution of each kind, forward and both gradients, with float64 on the CPU.

    The clips are small, so that it takes less than a second: what goes wrong with large ones alone is not seen.

    Args:
        model: on the device that is to be checked.
        precision: see ``video_rs.distributed.device``.

    Raises:
        MachineError: one is wrong, or cannot be computed.
    """
    for kind, layer in one_of_each_kind(model).items():
        try:
            errors = relative_errors(layer, precision)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise _fault(kind, layer, precision, f"fails ({first_line(error)})") from error
        for part, error in zip(PARTS, errors, strict=True):
            if not error <= TOLERANCE[precision]:  # nor is nan
                found = f"relative error of the {part} {error:.2g}, at most {TOLERANCE[precision]:g} is right"
                raise _fault(kind, layer, precision, f"is wrong ({found}; see pytorch#163539)")


def one_of_each_kind(model: nn.Module) -> dict[str, nn.Module]:
    """The first convolution of each kind, such as "(1,k,k)": along what the kernel mixes, and whether by groups."""
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            sides = ("k" if size > 1 else "1" for size in module.kernel_size)
            found.setdefault(f"({','.join(sides)}){' by groups' if module.groups > 1 else ''}", module)
    return found


def relative_errors(layer: nn.Module, precision: str) -> list[float]:
    """Of the three ``PARTS``, in the layer's memory format on its device, of a layer like this with random weights."""
    generator = torch.Generator().manual_seed(0)

    def random(shape: Iterable[int]) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    device, dtype = layer.weight.device, runtime.parameter_dtype(precision)
    exact, tried = copy.deepcopy(layer).to("cpu", torch.float64), copy.deepcopy(layer).to(dtype)
    geometry = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    x = random((2, layer.in_channels, *(max(8, d * (k - 1) + 1 + s) for k, s, d in geometry)))
    with torch.no_grad():
        exact.weight.copy_(random(exact.weight.shape) / math.sqrt(exact.weight[0].numel()))
        tried.weight.copy_(exact.weight)
        gradient = random(exact(x).shape)
    expected = _parts(exact, x, gradient, "float64")
    found = _parts(tried, x.to(device, dtype), gradient.to(device), precision)
    return [((ours.cpu().double() - right).norm() / right.norm()).item() for ours, right in zip(found, expected)]


def _parts(layer: nn.Module, x: Tensor, gradient: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    channels_last = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
    x = x.contiguous(memory_format=channels_last).requires_grad_()
    layer.requires_grad_()
    with runtime.autocast(x.device, precision):
        y = layer(x)
    of_x, of_weight = torch.autograd.grad(y, (x, layer.weight), gradient.to(y.dtype))
    return y.detach(), of_x, of_weight


def _fault(kind: str, layer: nn.Module, precision: str, what: str) -> MachineError:
    """Return the error, with the device, the versions and what to do."""
    device, versions = layer.weight.device, f"torch {torch.__version__}"
    advice = "install another version of torch and of its libraries"
    if device.type == "cuda":
        versions += f", cuDNN {torch.backends.cudnn.version()}"
    if precision not in ("float32", "float64"):
        advice += ", or train with train.precision=float32"
    where = f"in {precision} on {runtime.describe(device)} ({versions})"
    return MachineError(f"a {kind} convolution {where} {what}: {advice}")
