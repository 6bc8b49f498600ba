"""Networks to try things on: our own definitions in PyTorch of well-known architectures, with seeded weights.

They are not trained. Seeded weights are enough to count cycles and to prove hardware exact; batch norms get statistics
that keep activations alive, as training would.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import nn

__all__ = ["MODELS", "ResNet8", "build", "resnet8"]

Model = TypeVar("Model", bound=nn.Module)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size (or divides it by the stride), and its batch norm."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class _Block(nn.Module):
    """Two 3x3 convolutions and what goes around them, added before the last activation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(inputs, outputs, 3, stride), nn.ReLU(), *_conv(outputs, outputs, 3))
        same = (inputs, stride) == (outputs, 1)
        self.skip = nn.Sequential(*([] if same else [nn.Conv2d(inputs, outputs, 1, stride)]))
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        result: torch.Tensor = self.relu(self.body(x) + self.skip(x))
        return result


class ResNet8(nn.Sequential):
    """MLPerf Tiny's image classification network, for inputs (N, 3, 32, 32)."""

    #: One sample's shape.
    input_shape = (3, 32, 32)

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            *_conv(3, 16, 3), nn.ReLU(),
            _Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
        )


def resnet8(classes: int = 10, *, seed: int | None = None) -> ResNet8:
    """Build ResNet-8, with seeded weights if there is a ``seed``, else with PyTorch's own initialization."""
    return build(lambda: ResNet8(classes), seed)


def build(make: Callable[[], Model], seed: int | None) -> Model:
    """Make a model in evaluation mode; a seed settles all parameters and statistics, whatever the global one is."""
    model = make().eval()
    if seed is not None:
        _seed(model.modules(), torch.Generator().manual_seed(seed))
    return model


def _seed(modules: Iterable[nn.Module], generator: torch.Generator) -> None:
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / fan) ** 0.5, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            # Statistics of outputs of about unit variance.
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2, generator=generator)
            nn.init.uniform_(module.running_var, 0.7, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.6, 1.2, generator=generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)


#: Every network of the zoo, by the name that commands take.
MODELS: dict[str, Callable[..., nn.Module]] = {"resnet8": resnet8}
