"""Check the convolutions of this device, driver and precision at start-up.

Some versions of torch and cuDNN silently return wrong results for convolutions in low precision, see pytorch#163539 and
#167024. A test on another machine cannot detect that.
"""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from video_rs.distributed.device import autocast, describe, parameter_dtype
from video_rs.errors import MachineError, first_line, is_out_of_memory

TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "fp16": 5e-3, "bf16": 2e-2}
"""Maximum relative error in the Euclidean norm, by precision. Correct kernels have an error of 3e-7 in float32, 4e-4 in
fp16 and 3e-3 in bf16 (on a CPU); TF32 instead of float32 has 3e-4."""

PARTS = ("output", "gradient of the input", "gradient of the weights")


def check_convolutions(model: nn.Module, precision: str) -> None:
    """Compare one convolution of each kind, forward and both gradients, with float64 on the CPU.

    This uses small clips and takes less than a second. Errors that occur only with large clips are not detected.

    Args:
        model: a network on the device to check.
        precision: see ``video_rs.distributed.device``.

    Raises:
        MachineError: a convolution is wrong or fails.
    """
    for kind, layer in one_of_each_kind(model).items():
        try:
            errors = relative_errors(layer, precision)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise _fault(kind, layer, precision, f"fails ({first_line(error)})") from error
        for part, error in zip(PARTS, errors, strict=True):
            if not error <= TOLERANCE[precision]:  # also true for nan
                found = f"relative error of the {part} {error:.2g}, maximum {TOLERANCE[precision]:g}"
                raise _fault(kind, layer, precision, f"is wrong ({found}; see pytorch#163539)")


def one_of_each_kind(model: nn.Module) -> dict[str, nn.Module]:
    """Return the first convolution of each kind by its name, such as "(1,k,k)" or "(k,1,1) by groups"."""
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            sides = ("k" if size > 1 else "1" for size in module.kernel_size)
            found.setdefault(f"({','.join(sides)}){' by groups' if module.groups > 1 else ''}", module)
    return found


def relative_errors(layer: nn.Module, precision: str) -> list[float]:
    """Return the errors of ``PARTS`` for a copy of a layer with random weights, on its device."""
    generator = torch.Generator().manual_seed(0)

    def random(shape: Iterable[int]) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    device, dtype = layer.weight.device, parameter_dtype(precision)
    exact, tested = copy.deepcopy(layer).to("cpu", torch.float64), copy.deepcopy(layer).to(dtype)
    geometry = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    x = random((2, layer.in_channels, *(max(8, d * (k - 1) + 1 + s) for k, s, d in geometry)))
    with torch.no_grad():
        exact.weight.copy_(random(exact.weight.shape) / math.sqrt(exact.weight[0].numel()))
        tested.weight.copy_(exact.weight)
        gradient = random(exact(x).shape)
    expected = _parts(exact, x, gradient, "float64")
    found = _parts(tested, x.to(device, dtype), gradient.to(device), precision)
    return [((ours.cpu().double() - right).norm() / right.norm()).item() for ours, right in zip(found, expected)]


def _parts(layer: nn.Module, x: Tensor, gradient: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    channels_last = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
    x = x.contiguous(memory_format=channels_last).requires_grad_()
    layer.requires_grad_()
    with autocast(x.device, precision):
        y = layer(x)
    of_x, of_weight = torch.autograd.grad(y, (x, layer.weight), gradient.to(y.dtype))
    return y.detach(), of_x, of_weight


def _fault(kind: str, layer: nn.Module, precision: str, what: str) -> MachineError:
    device, versions = layer.weight.device, f"torch {torch.__version__}"
    advice = "install another version of torch and of its libraries"
    if device.type == "cuda":
        versions += f", cuDNN {torch.backends.cudnn.version()}"
    if precision not in ("float32", "float64"):
        advice += ", or train with train.precision=float32"
    return MachineError(f"a {kind} convolution in {precision} on {describe(device)} ({versions}) {what}: {advice}")
