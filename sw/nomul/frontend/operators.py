"""The operators that the importer knows, by every spelling, and what to say about the others.

PyTorch makes no promise about the operators that an exported program holds, so this table is the one place that
changes with it; a test records what the supported versions emit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ADVICE", "OPERATORS", "Offender", "UnsupportedError"]

#: Spelling of an operator in an exported program, to the importer's own name for it.
OPERATORS: dict[str, str] = {
    "aten.conv1d.default": "conv",
    "aten.conv1d.padding": "conv",
    "aten.conv2d.default": "conv",
    "aten.conv2d.padding": "conv",
    "aten.convolution.default": "conv",
    "aten.linear.default": "linear",
    "aten.batch_norm.default": "batch_norm",
    "aten._native_batch_norm_legit_no_training.default": "batch_norm",
    "aten.relu.default": "relu",
    "aten.relu_.default": "relu",
    "aten.relu6.default": "relu6",
    "aten.relu6_.default": "relu6",
    "aten.hardtanh.default": "hardtanh",
    "aten.hardtanh_.default": "hardtanh",
    "aten.clamp.default": "clamp",
    "aten.clamp_.default": "clamp",
    "aten.clip.default": "clamp",
    "aten.clip_.default": "clamp",
    "aten.clamp_min.default": "clamp",
    "aten.clamp_min_.default": "clamp",
    "aten.clamp_max.default": "clamp",
    "aten.clamp_max_.default": "clamp",
    "aten.add.Tensor": "add",
    "aten.add_.Tensor": "add",
    "add": "add",
    "aten.cat.default": "concat",
    "aten.concat.default": "concat",
    "aten.concatenate.default": "concat",
    "aten.hstack.default": "concat",
    "aten.pad.default": "pad",
    "aten.constant_pad_nd.default": "pad",
    "aten.slice.Tensor": "slice",
    "aten.max_pool1d.default": "max_pool",
    "aten.max_pool1d_with_indices.default": "max_pool",
    "aten.max_pool2d.default": "max_pool",
    "aten.max_pool2d_with_indices.default": "max_pool",
    "aten.avg_pool1d.default": "average_pool",
    "aten.avg_pool2d.default": "average_pool",
    "aten.adaptive_avg_pool1d.default": "adaptive_average_pool",
    "aten.adaptive_avg_pool2d.default": "adaptive_average_pool",
    "aten.mean.dim": "mean",
    "aten.flatten.using_ints": "reshape",
    "aten.unflatten.int": "reshape",
    "aten.view.default": "reshape",
    "aten._unsafe_view.default": "reshape",
    "aten.reshape.default": "reshape",
    "aten.squeeze.default": "reshape",
    "aten.squeeze.dim": "reshape",
    "aten.squeeze.dims": "reshape",
    "aten.unsqueeze.default": "reshape",
    "aten.dropout.default": "dropout",
    "aten.dropout_.default": "dropout",
    "aten.feature_dropout.default": "dropout",
    "aten.feature_dropout_.default": "dropout",
    "aten.alpha_dropout.default": "dropout",
    "aten.alpha_dropout_.default": "dropout",
    "aten.feature_alpha_dropout.default": "dropout",
    "aten.feature_alpha_dropout_.default": "dropout",
    "aten.clone.default": "identity",
    "aten.contiguous.default": "identity",
    "aten.alias.default": "identity",
    "aten.detach.default": "identity",
    "aten.to.dtype": "cast",
    "aten._to_copy.default": "cast",
    "getitem": "first",
    "aten._assert_tensor_metadata.default": "check",
}

_HOST = "leave it out of the module and apply it to the outputs on the host"
_CLAMP = "use ReLU, ReLU6 or Hardtanh"
_NORM = "use a batch norm"
_LAYOUT = "feature maps stay (channels, height, width)"

#: What would do instead of an operator that the machine does not run, by its name without namespace and overload.
ADVICE: dict[str, str] = {
    "conv3d": "only one- and two-dimensional convolutions run",
    "conv_transpose1d": "use upsampling on the host or a strided convolution",
    "conv_transpose2d": "use upsampling on the host or a strided convolution",
    "adaptive_max_pool1d": "use max_pool1d with the kernel written out",
    "adaptive_max_pool2d": "use max_pool2d with the kernel written out",
    "stack": "concatenate along the channels instead",
    "select": "slice with a range instead", "index": "slice with a range instead",
    "chunk": "slice the channels one part at a time", "split": "slice the channels one part at a time",
    "split_with_sizes": "slice the channels one part at a time",
    "softmax": _HOST, "_softmax": _HOST, "log_softmax": _HOST, "_log_softmax": _HOST, "argmax": _HOST,
    "leaky_relu": _CLAMP, "leaky_relu_": _CLAMP, "prelu": _CLAMP, "_prelu_kernel": _CLAMP, "elu": _CLAMP,
    "elu_": _CLAMP, "selu": _CLAMP, "gelu": _CLAMP, "silu": _CLAMP, "silu_": _CLAMP, "mish": _CLAMP,
    "hardswish": _CLAMP, "hardswish_": _CLAMP, "softplus": _CLAMP,
    "sigmoid": f"{_CLAMP}, or {_HOST}", "hardsigmoid": f"{_CLAMP}, or {_HOST}", "tanh": "use Hardtanh",
    "layer_norm": _NORM, "group_norm": _NORM, "instance_norm": _NORM,
    "permute": _LAYOUT, "transpose": _LAYOUT,
}


@dataclass(frozen=True)
class Offender:
    """One operator that cannot be imported.

    Parameters
    ----------
    operator : str
        As PyTorch spells it.
    module : str
        Path and type of the module that it belongs to, such as ``features.3 (Softmax)``.
    source : str
        ``file:line`` and text of the source line.
    reason : str
        Why not, or what would do.
    """

    operator: str
    module: str
    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} in {self.module}, {self.source}: {self.reason}"


class UnsupportedError(ValueError):
    """A network that the machine cannot run. Lists every offender, not only the first.

    Parameters
    ----------
    message : str
    offenders : sequence of Offender
    """

    def __init__(self, message: str, offenders: Sequence[Offender] = ()):
        self.offenders = tuple(offenders)
        super().__init__("\n".join([message, *(f"  - {offender}" for offender in self.offenders)]))
