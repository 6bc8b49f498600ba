"""Networks to try things on: our own definitions in PyTorch of well-known architectures, with seeded weights.

They are not trained. Seeded weights are enough to count cycles and to prove hardware exact; batch norms get the
statistics of what reaches them, so that activations stay alive in deep networks as training would keep them.

Parameters come in the order of the references; where a reference is known by its state dictionary (ResNet-18, -20 and
-50), names are the same too. Networks that come from TensorFlow pad as it does.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import torch
from torch import nn
from torch.nn import functional

__all__ = ["MODELS", "Network", "autoencoder", "build", "ds_cnn", "mobilenet_v1", "mobilenet_v1_025", "mobilenet_v2",
           "resnet8", "resnet18", "resnet20", "resnet50", "samples", "squeezenet"]

#: Values of all inputs together that the statistics of batch norms are taken from; two samples at the least.
STATISTICS_VALUES = 1 << 17


class Network(nn.Sequential):
    """A network of the zoo: modules in execution order, in evaluation mode when :func:`build` made it.

    Parameters
    ----------
    input_shape : tuple of int
        One sample's shape: (channels, height, width) or (features,).
    *parts, **named : nn.Module
        The modules.
    """

    def __init__(self, input_shape: tuple[int, ...], *parts: nn.Module, **named: nn.Module) -> None:
        super().__init__(*parts)
        for name, part in named.items():
            self.add_module(name, part)
        self.input_shape = input_shape


def build(make: Callable[[], Network], seed: int | None) -> Network:
    """Make a network in evaluation mode; a seed settles all parameters and statistics, whatever the global one is."""
    network = make().eval()
    if seed is not None:
        _seed(network, seed)
    return network


def samples(shape: tuple[int, ...], count: int, *, seed: int = 0) -> torch.Tensor:
    """Make random inputs (count, *shape), float32: smooth images of 8 bits with values in 0..1, or normal features."""
    generator = torch.Generator().manual_seed(seed)
    if len(shape) == 1:
        return torch.randn(count, *shape, generator=generator)
    coarse = torch.rand(count, shape[0], 8, 8, generator=generator).double()
    fine = torch.rand(count, *shape, generator=generator).double()
    images = 0.8 * functional.interpolate(coarse, shape[1:], mode="bilinear") + 0.2 * fine
    return (torch.round(255 * images) / 255).float()


def _seed(network: Network, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / fan) ** 0.5, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1, generator=generator)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.2, generator=generator)
            nn.init.normal_(module.bias, 1.0, 0.2, generator=generator)
    # The network itself tells what its layers see, each with those before it in place.
    hooks = [module.register_forward_pre_hook(_take_statistics) for module in network.modules()
             if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    hooks += [module.register_forward_hook(_normalize) for module in network.modules()
              if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None]
    count = max(2, STATISTICS_VALUES // prod(network.input_shape))
    with torch.no_grad():
        network.double()(samples(network.input_shape, count, seed=seed).double())
    network.float()
    for hook in hooks:
        hook.remove()


def _take_statistics(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Set a batch norm's mean and variance to those of its input."""
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    assert module.running_mean is not None and module.running_var is not None
    variance, mean = torch.var_mean(inputs[0], _axes(inputs[0]))
    # A channel that hardly varies here may do so on other inputs.
    variance = variance.clamp(min=0.1 * float(variance.mean()))
    module.running_mean.copy_(_coarse(mean, variance.sqrt()))
    module.running_var.copy_(_coarse(variance, variance))


def _normalize(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Let a layer with a bias make outputs of about 0 on average and of about unit variance.

    Without that, deep networks make nearly the same of all inputs.
    """
    assert isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None
    deviation, mean = torch.std_mean(output, _axes(output), keepdim=True)
    deviation = deviation.mean()
    mean, scale = _coarse(mean, deviation), _coarse(1 / deviation, 1 / deviation)
    module.weight.mul_(scale)
    module.bias.copy_((module.bias - mean.flatten()) * scale)
    return (output - mean) * scale


def _axes(values: torch.Tensor) -> list[int]:
    """All axes but the channels'."""
    return [axis for axis in range(values.ndim) if axis != 1]


def _coarse(values: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Round to about three digits of numbers of a size: no rounding error of the machine at hand reaches a network."""
    step = torch.exp2(torch.floor(torch.log2(size)) - 8)
    return torch.round(values / step) * step


# Parts ---------------------------------------------------------------------------------------------------------------


class _SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding ``SAME``: sizes are divided by the stride and rounded up.

    Of an odd number of zeros, the larger part comes after the map.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride))."""
        sides = list[int]()
        for axis in (1, 0):
            size, kernel, stride = x.shape[2 + axis], self.kernel_size[axis], self.stride[axis]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, sides))


def _same(inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, *, groups: int = 1,
          bias: bool = False, activation: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    """A convolution as TensorFlow pads it, its batch norm and an activation."""
    return [_SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=bias), nn.BatchNorm2d(outputs),
            activation()]


def _separable(inputs: int, outputs: int, stride: int, *, bias: bool, activation: type[nn.Module]) -> list[nn.Module]:
    """A depthwise and a pointwise convolution, each with batch norm and activation."""
    return [*_same(inputs, inputs, 3, stride, groups=inputs, bias=bias, activation=activation),
            *_same(inputs, outputs, 1, bias=bias, activation=activation)]


def _head(features: int, classes: int) -> list[nn.Module]:
    """The average of a map, and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size, or divides it by the stride."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class _Residual(nn.Module):
    """Convolutions with batch norms, and a shortcut that is added before the last activation.

    Parameters
    ----------
    inputs : int
        Channels.
    convolutions : sequence of (int, int, int)
        Output channels, kernel and stride of each.
    shortcut : nn.Module, optional
        The identity unless given.
    """

    def __init__(self, inputs: int, convolutions: Sequence[tuple[int, int, int]],
                 shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.count = len(convolutions)
        for at, (outputs, kernel, stride) in enumerate(convolutions, 1):
            self.add_module(f"conv{at}", _conv(inputs, outputs, kernel, stride))
            self.add_module(f"bn{at}", nn.BatchNorm2d(outputs))
            inputs = outputs
        self.downsample = nn.Identity() if shortcut is None else shortcut
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = x
        for at in range(1, self.count + 1):
            y = self.get_submodule(f"bn{at}")(self.get_submodule(f"conv{at}")(y))
            y = y + self.downsample(x) if at == self.count else y
            y = self.relu(y)
        return y


class _Subsample(nn.Module):
    """The shortcut that has no weights: every other pixel, channels of zeros around those there are."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C + more, H / 2, W / 2)."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


class _Inverted(nn.Module):
    """MobileNetV2's block: wider, depthwise, narrower, the last without activation; added to its input if it can be."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = factor * inputs
        wider = _same(inputs, wide, 1, activation=nn.ReLU6) if factor > 1 else []
        self.body = nn.Sequential(*wider, *_same(wide, wide, 3, stride, groups=wide, activation=nn.ReLU6),
                                  *_same(wide, outputs, 1)[:2])
        self.adds = (inputs, stride) == (outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y: torch.Tensor = self.body(x)
        return x + y if self.adds else y


class _Fire(nn.Module):
    """SqueezeNet's block: few channels, then many, one half from 1x1 and one from 3x3 convolutions."""

    def __init__(self, inputs: int, few: int, many: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, few, 1)
        self.expand1x1 = nn.Conv2d(few, many // 2, 1)
        self.expand3x3 = nn.Conv2d(few, many // 2, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, many, H, W)."""
        x = self.relu(self.squeeze(x))
        return torch.cat([self.relu(self.expand1x1(x)), self.relu(self.expand3x3(x))], 1)


# Networks ------------------------------------------------------------------------------------------------------------


def resnet8(classes: int = 10, *, seed: int | None = None) -> Network:
    """MLPerf Tiny's image classification: ResNet-8 for (N, 3, 32, 32)."""
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return _Residual(inputs, [(outputs, 3, stride), (outputs, 3, 1)],
                         nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else None)

    return build(lambda: Network(
        (3, 32, 32), _conv(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), block(16, 16, 1), block(16, 32, 2),
        block(32, 64, 2), *_head(64, classes)), seed)


def ds_cnn(classes: int = 12, *, seed: int | None = None) -> Network:
    """MLPerf Tiny's keyword spotting: DS-CNN for (N, 1, 49, 10), 49 frames of 10 coefficients."""
    return build(lambda: Network(
        (1, 49, 10), *_same(1, 64, (10, 4), 2, bias=True),
        *(part for _ in range(4) for part in _separable(64, 64, 1, bias=True, activation=nn.ReLU)),
        *_head(64, classes)), seed)


def mobilenet_v1_025(classes: int = 2, *, seed: int | None = None) -> Network:
    """MLPerf Tiny's visual wake words: MobileNetV1 with a quarter of the channels for (N, 3, 96, 96)."""
    return build(lambda: _mobilenet_v1(96, 4, classes, bias=True, activation=nn.ReLU), seed)


def mobilenet_v1(classes: int = 1000, *, size: int = 224, divisor: int = 1, seed: int | None = None) -> Network:
    """MobileNetV1 for (N, 3, size, size), its channels divided by ``divisor``."""
    return build(lambda: _mobilenet_v1(size, divisor, classes, bias=False, activation=nn.ReLU6), seed)


def _mobilenet_v1(size: int, divisor: int, classes: int, *, bias: bool, activation: type[nn.Module]) -> Network:
    inputs = 32 // divisor
    parts = _same(3, inputs, 3, 2, bias=bias, activation=activation)
    for outputs, stride in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2),
                            (1024, 1)]:
        parts += _separable(inputs, outputs // divisor, stride, bias=bias, activation=activation)
        inputs = outputs // divisor
    return Network((3, size, size), *parts, *_head(inputs, classes))


def autoencoder(*, seed: int | None = None) -> Network:
    """MLPerf Tiny's anomaly detection: a deep autoencoder for (N, 640), 5 frames of 128 mel bands."""
    def make() -> Network:
        sizes = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
        parts = list[nn.Module]()
        for inputs, outputs in pairwise(sizes):
            parts += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        return Network((640,), *parts, nn.Linear(sizes[-1], 640))

    return build(make, seed)


def resnet20(classes: int = 10, *, seed: int | None = None) -> Network:
    """ResNet-20 of the CIFAR experiments for (N, 3, 32, 32), with shortcuts that have no weights (option A)."""
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return _Residual(inputs, [(outputs, 3, stride), (outputs, 3, 1)],
                         _Subsample(outputs - inputs) if stride > 1 else None)

    return build(lambda: Network(
        (3, 32, 32), conv1=_conv(3, 16, 3), bn1=nn.BatchNorm2d(16), relu=nn.ReLU(),
        **_stages(block, 16, [(16, 3), (32, 3), (64, 3)]),
        **dict(zip(("pool", "flatten", "linear"), _head(64, classes), strict=True))), seed)


def resnet18(classes: int = 1000, *, seed: int | None = None) -> Network:
    """ResNet-18 for (N, 3, 224, 224)."""
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return _Residual(inputs, [(outputs, 3, stride), (outputs, 3, 1)], _projection(inputs, outputs, stride))

    return build(lambda: _resnet(block, [(64, 2), (128, 2), (256, 2), (512, 2)], classes), seed)


def resnet50(classes: int = 1000, *, seed: int | None = None) -> Network:
    """ResNet-50 for (N, 3, 224, 224), strides in the 3x3 convolutions."""
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return _Residual(inputs, [(outputs // 4, 1, 1), (outputs // 4, 3, stride), (outputs, 1, 1)],
                         _projection(inputs, outputs, stride))

    return build(lambda: _resnet(block, [(256, 3), (512, 4), (1024, 6), (2048, 3)], classes), seed)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """The shortcut with weights, None where the identity would do."""
    if (inputs, stride) == (outputs, 1):
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _resnet(block: Callable[[int, int, int], nn.Module], stages: Sequence[tuple[int, int]], classes: int) -> Network:
    return Network(
        (3, 224, 224), conv1=_conv(3, 64, 7, 2), bn1=nn.BatchNorm2d(64), relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, 2, 1), **_stages(block, 64, stages),
        **dict(zip(("avgpool", "flatten", "fc"), _head(stages[-1][0], classes), strict=True)))


def _stages(block: Callable[[int, int, int], nn.Module], inputs: int,
            stages: Sequence[tuple[int, int]]) -> dict[str, nn.Module]:
    """Residual blocks: (channels, blocks) of each stage; all but the first start with a stride of 2."""
    made = dict[str, nn.Module]()
    for at, (outputs, count) in enumerate(stages, 1):
        first = block(inputs, outputs, 1 if at == 1 else 2)
        made[f"layer{at}"] = nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(count - 1)))
        inputs = outputs
    return made


def mobilenet_v2(classes: int = 1000, *, seed: int | None = None) -> Network:
    """MobileNetV2 for (N, 3, 224, 224)."""
    def make() -> Network:
        parts, inputs = _same(3, 32, 3, 2, activation=nn.ReLU6), 32
        for factor, outputs, count, stride in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
                                               (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
            for at in range(count):
                parts.append(_Inverted(inputs, outputs, stride if at == 0 else 1, factor))
                inputs = outputs
        return Network((3, 224, 224), *parts, *_same(320, 1280, 1, activation=nn.ReLU6), *_head(1280, classes))

    return build(make, seed)


def squeezenet(classes: int = 1000, *, seed: int | None = None) -> Network:
    """SqueezeNet 1.0 for (N, 3, 224, 224)."""
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return build(lambda: Network(
        (3, 224, 224), conv1=nn.Conv2d(3, 96, 7, 2), relu1=nn.ReLU(), pool1=pool(),
        fire2=_Fire(96, 16, 128), fire3=_Fire(128, 16, 128), fire4=_Fire(128, 32, 256), pool4=pool(),
        fire5=_Fire(256, 32, 256), fire6=_Fire(256, 48, 384), fire7=_Fire(384, 48, 384), fire8=_Fire(384, 64, 512),
        pool8=pool(), fire9=_Fire(512, 64, 512), conv10=nn.Conv2d(512, classes, 1), relu10=nn.ReLU(),
        pool10=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()), seed)


#: Every network of the zoo, by the name that commands take.
MODELS: dict[str, Callable[..., Network]] = {
    make.__name__: make for make in (resnet8, ds_cnn, mobilenet_v1_025, autoencoder, resnet20, resnet18, resnet50,
                                     mobilenet_v1, mobilenet_v2, squeezenet)
}
