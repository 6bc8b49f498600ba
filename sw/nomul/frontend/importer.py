"""Walk a PyTorch module's exported program into a float graph.

The program is a list of operators in execution order. Each becomes a layer, changes one beside it (a batch norm is
folded, an activation becomes a clamp, an addition is done before that, zeros around a map become padding) or vanishes
(dropout, reshapes). An operator that fits none of these is noted and the walk goes on, so that one error can name them
all; nothing is ever left in float.
"""

import linecache
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .float_graph import FloatConv, FloatGraph, FloatLayer, FloatPool
from .fusion import Step, fuse
from .operators import ADVICE, OPERATORS, Offender, UnsupportedError

if TYPE_CHECKING:
    import torch
    from torch import fx, nn
    from torch.export import ExportedProgram

__all__ = ["export_program", "import_module"]

Shape = tuple[int, int, int]


def import_module(module: "nn.Module", example: "torch.Tensor | npt.NDArray[Any]") -> FloatGraph:
    """Import a module as it behaves in evaluation mode.

    Parameters
    ----------
    module : nn.Module
        Convolutions, linear layers, batch norms, clamp-like activations, pools, additions, concatenations of
        channels, padding with zeros, strided slices, flattens and dropouts. Its training flags are left as they are.
    example : Tensor, shape (N, C, H, W), (N, C, L) or (N, features)
        Inputs that set the shapes; their values do not matter.

    Raises
    ------
    UnsupportedError
        If the module holds anything that the machine cannot run; lists all of it.
    """
    return _Walk(export_program(module, example)).graph()


def export_program(module: "nn.Module", example: "torch.Tensor | npt.NDArray[Any]") -> "ExportedProgram":
    """Export a module in evaluation mode, without operators that write in place."""
    import torch

    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    inputs = torch.as_tensor(example).to(torch.get_default_dtype() if parameter is None else parameter.dtype)
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        # What PyTorch warns of here concerns its own internals, not the user's network.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (inputs,))
            if any(_writes(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedError(f"PyTorch cannot export {type(module).__name__} for an input of shape "
                               f"{tuple(inputs.shape)}: {reason[0]}") from error
    finally:
        for part in training:
            part.training = True
    return program


def _writes(node: "fx.Node") -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _pair(value: Any, dimensions: int, along: int) -> tuple[int, int]:
    """Spell PyTorch's ``n``, ``[n]`` and ``[m, n]`` as a pair; in one dimension the vertical one is ``along``."""
    items = [value] if isinstance(value, int) else list(value)
    return (int(items[0]) if dimensions == 2 else along), int(items[-1])


class _Unsupported(Exception):
    """Why the operator at hand cannot be imported."""


@dataclass
class _Value:
    """What a node of the program computes: the output of a step, in some PyTorch shape.

    ``step`` is None downstream of an offender: operators there are still looked at, but no longer against each other.
    """

    shape: Shape
    step: Step | None
    normalizable: bool = False  #: the value is the bare output of a convolution, which a batch norm may be folded into


class _Walk:
    """One walk over one exported program."""

    def __init__(self, program: "ExportedProgram"):
        self.program = program
        self.offenders: list[Offender] = []
        self.values: dict[str, _Value] = {}
        self.steps: list[Step] = []
        self.parameters: dict[str, npt.NDArray[np.float64]] = {}
        self.owners: dict[str, str] = {}  # path of the module whose weight a parameter is
        self.names: set[str] = set()
        self.batch = 0

    def graph(self) -> FloatGraph:
        """Walk, and return what was found."""
        from torch.export.graph_signature import InputKind

        tensors = {**self.program.state_dict, **self.program.constants}
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                spec = specs[node.name]
                if spec.kind == InputKind.USER_INPUT:
                    self._input(node)
                elif spec.target in tensors:
                    self.parameters[node.name] = tensors[spec.target].detach().cpu().double().numpy()
                    path, _, name = spec.target.rpartition(".")
                    if path and name == "weight":
                        self.owners[node.name] = path
            elif node.op == "call_function":
                self._operator(node)
            elif node.op == "output":
                (results,) = node.args
        if self.offenders:
            raise UnsupportedError("The machine cannot run this network:", self.offenders)
        if len(results) != 1:
            raise UnsupportedError(f"The module has {len(results)} outputs; the machine computes one")
        result = self.values.get(getattr(results[0], "name", ""))
        if result is None or result.step in (None, self.steps[0]):
            raise UnsupportedError("The module computes nothing that the machine could do")
        assert result.step is not None
        return FloatGraph(self.steps[0].shape, fuse(self.steps, result.step), tuple(self._shape_of(results[0])[1:]))

    def _input(self, node: "fx.Node") -> None:
        if self.values:
            raise UnsupportedError("The module has several inputs; the machine takes one")
        batch, *shape = self._shape_of(node)
        if not 1 <= len(shape) <= 3:
            raise UnsupportedError(f"The input must be (N, C, H, W), (N, C, L) or (N, features), not {(batch, *shape)}")
        self.batch = batch
        channels, *middle = shape
        height, width = (1, 1, *middle)[-2:]
        self.values[node.name] = self._step(Step((channels, height, width)))

    def _operator(self, node: "fx.Node") -> None:
        spelling = str(node.target) if hasattr(node.target, "_schema") else getattr(node.target, "__name__", "?")
        inputs = [arg for arg in node.all_input_nodes if arg.name in self.values]
        kind = OPERATORS.get(spelling)
        if not inputs or kind == "check":
            return  # arithmetic on parameters: whoever uses the result is looked at
        source = self.values[inputs[0].name]
        try:
            if kind is None:
                name = spelling.split(".")[1] if spelling.startswith("aten.") else spelling
                raise _Unsupported(ADVICE.get(name, "the machine has nothing like it"))
            if kind not in ("add", "concat") and (len(inputs) > 1 or node.args[0] is not inputs[0]):
                raise _Unsupported("it must read one activation tensor, the output of the layer before it")
            handler: Callable[[fx.Node, fx.Node, _Value], _Value] = getattr(self, f"_{kind}")
            self.values[node.name] = handler(node, inputs[0], source)
        except _Unsupported as why:
            self.offenders.append(_offender(node, spelling, str(why)))
            self.values[node.name] = _Value(source.shape, None)

    # Layers ------------------------------------------------------------------------------------------------------

    def _conv(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        args = _arguments(node)
        weights = self._parameter(args["weight"])
        if args.get("transposed"):
            raise _Unsupported(ADVICE["conv_transpose2d"])
        if weights.ndim not in (3, 4):
            raise _Unsupported(ADVICE["conv3d"])
        flat = weights.ndim - 2
        self._expect_map(source, value, flat)
        if flat == 1:
            weights = weights[:, :, np.newaxis]
        kernel = (weights.shape[2], weights.shape[3])
        dilation = _pair(args["dilation"], flat, 1)
        padding = args["padding"]
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            before = [t // 2 for t in total]
            sides = (*before, total[0] - before[0], total[1] - before[1])
        else:
            vertical, horizontal = (0, 0) if padding == "valid" else _pair(padding, flat, 0)
            sides = (vertical, horizontal, vertical, horizontal)
        return self._append(value, FloatConv(
            self._name(node), kernel, _pair(args["stride"], flat, 1), sides, dilation, weights=weights,
            bias=self._bias(args["bias"], len(weights)), groups=args["groups"]), normalizable=True)

    def _linear(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        args = _arguments(node)
        weights = self._parameter(args["weight"])
        if value.step is not None and self._shape_of(source) != (self.batch, prod(value.shape)):
            raise _Unsupported(f"its input has the shape {self._shape_of(source)}: flatten it to (N, features) first")
        channels, height, width = value.shape
        if value.step is None:  # shapes downstream of an offender are not known
            channels, height, width = weights.shape[1], 1, 1
        return self._append(replace(value, shape=(channels, height, width)), FloatConv(
            self._name(node), (height, width), weights=weights.reshape(-1, channels, height, width),
            bias=self._bias(args["bias"], len(weights))), normalizable=True)

    def _batch_norm(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        args = _arguments(node)
        if args.get("training"):
            raise _Unsupported("it uses the statistics of the batch, not running ones")
        if args["running_mean"] is None or args["running_var"] is None:
            raise _Unsupported("it has no running statistics (track_running_stats=False)")
        mean, var = self._parameter(args["running_mean"]), self._parameter(args["running_var"])
        gamma = np.ones_like(mean) if args["weight"] is None else self._parameter(args["weight"])
        beta = self._bias(args["bias"], len(mean))
        if value.step is None:
            return value
        deviation = np.sqrt(var + args["eps"])
        # A channel that never varies has nothing to scale: it is the constant beta.
        gain = np.divide(gamma, deviation, out=np.zeros_like(gamma), where=deviation > 0)
        shape = self._shape_of(source)
        if len(mean) != value.shape[0] or (len(shape) == 2 and shape[1] != len(mean)):
            raise _Unsupported(f"it normalizes {len(mean)} channels of {value.shape}")
        last = value.step.layer
        if value.normalizable and isinstance(last, FloatConv):
            folded = replace(last, weights=last.weights * gain[:, None, None, None],
                             bias=beta + (last.bias - mean) * gain)
            # Whoever else reads the convolution's bare output still does.
            return self._step(Step(value.shape, value.step.sources, folded))
        return self._append(value, FloatConv(self._name(node), (1, 1), weights=gain.reshape(-1, 1, 1, 1),
                                             bias=beta - mean * gain, groups=len(gain)))

    def _max_pool(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        args, flat = _arguments(node), _dimensions(node)
        self._expect_map(source, value, flat)
        kernel, dilation = _pair(args["kernel_size"], flat, 1), _pair(args["dilation"], flat, 1)
        stride = _pair(args["stride"] or args["kernel_size"], flat, 1)
        before = _pair(args["padding"], flat, 0)
        after = list(before)
        if args["ceil_mode"] and value.step is not None:
            # One more window that hangs over the edge is padding at the bottom and right.
            for axis, size in enumerate((1, *self._shape_of(node)[2:])[-2:]):
                reach = (size - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
                after[axis] = max(after[axis], reach - value.shape[1 + axis] - before[axis])
        return self._append(value, FloatPool(self._name(node), kernel, stride, (*before, after[0], after[1]), dilation,
                                             kind="max"))

    def _average_pool(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        args, flat = _arguments(node), _dimensions(node)
        self._expect_map(source, value, flat)
        kernel, divisor = _pair(args["kernel_size"], flat, 1), args.get("divisor_override")
        vertical, horizontal = _pair(args["padding"], flat, 0)
        if args["ceil_mode"]:
            raise _Unsupported("ceil_mode=True divides windows at the edge by another size; use padding")
        if (vertical or horizontal) and not args["count_include_pad"] and divisor is None:
            raise _Unsupported("count_include_pad=False divides windows at the edge by another size")
        return self._append(value, FloatPool(
            self._name(node), kernel, _pair(args["stride"] or args["kernel_size"], flat, 1),
            (vertical, horizontal, vertical, horizontal), kind="average", divisor=divisor or prod(kernel)))

    def _adaptive_average_pool(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        self._expect_map(source, value, _dimensions(node))
        if value.step is None:
            return value
        size = (1, *self._shape_of(node)[2:])[-2:]
        kernel = (value.shape[1] // size[0], value.shape[2] // size[1])
        if (kernel[0] * size[0], kernel[1] * size[1]) != value.shape[1:]:
            raise _Unsupported(f"windows differ in size from {value.shape[1:]} to {size}: an output of (1, 1), or one "
                               f"that divides the input, would do")
        return self._append(value, FloatPool(self._name(node), kernel, kernel, kind="average", divisor=prod(kernel)))

    def _mean(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        if value.step is None:
            return value
        args, shape = _arguments(node), self._shape_of(source)
        axes = sorted(axis % len(shape) for axis in args["dim"] or [])
        channels, height, width = value.shape
        if (axes, shape[1:]) not in (([2, 3], value.shape), ([2], (channels, height * width))):
            raise _Unsupported(f"only the mean over height and width runs, not over axes {axes} of {shape}")
        return self._append(value, FloatPool(self._name(node), (height, width), kind="average",
                                             divisor=height * width))

    def _add(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        operands: tuple[Any, ...] = node.args[:2]
        if node.kwargs.get("alpha", 1) != 1:
            raise _Unsupported(f"it adds one tensor {node.kwargs['alpha']} times; only plain sums run")
        values = [self.values.get(getattr(operand, "name", "")) for operand in operands]
        if values[0] is None or values[1] is None:
            raise _Unsupported("it adds a constant; only the sum of two activation tensors runs (the bias of a layer "
                               "could hold the constant)")
        if values[0].step is None or values[1].step is None:
            return _Value(value.shape, None)
        shapes = [self._shape_of(operand) for operand in operands]
        if shapes[0] != shapes[1]:
            raise _Unsupported(f"it adds tensors of shapes {shapes[0]} and {shapes[1]}; they must have one shape")
        if values[0].shape != values[1].shape:
            raise _Unsupported(f"its inputs were reshaped from {values[0].shape} and {values[1].shape}")
        return self._step(Step(value.shape, (values[0].step, values[1].step), join="sum",
                               name=partial(self._name, node)))

    def _concat(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        args = _arguments(node)
        operands: Sequence[Any] = args["tensors"]
        values = [self.values.get(getattr(operand, "name", "")) for operand in operands]
        parts = [part for part in values if part is not None]
        if len(parts) < len(values):
            raise _Unsupported("it concatenates a constant; only activation tensors can be concatenated")
        shapes = [self._shape_of(operand) for operand in operands]
        if args.get("dim", 1) % len(shapes[0]) != 1:
            raise _Unsupported(f"it concatenates along axis {args['dim']} of {shapes[0]}, not along the channels")
        steps = [part.step for part in parts if part.step is not None]
        if len(steps) < len(parts):
            return _Value(value.shape, None)
        # Flattened maps of one size are concatenated as if they were maps.
        plain = all(_is_map(shape, part.shape) or len(shape) == 2 for shape, part in zip(shapes, parts, strict=True))
        if not plain or len({part.shape[1:] for part in parts}) > 1:
            raise _Unsupported(f"its inputs were reshaped from {', '.join(str(part.shape) for part in parts)}")
        if len(steps) == 1:
            return replace(value)
        return self._step(Step((sum(part.shape[0] for part in parts), *value.shape[1:]), tuple(steps), join="concat",
                               name=partial(self._name, node)))

    # Values that only move ---------------------------------------------------------------------------------------

    def _pad(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        args = _arguments(node)
        if args.get("mode", "constant") != "constant" or args["value"]:
            raise _Unsupported("only padding with zeros runs")
        if min(args["pad"]) < 0:
            raise _Unsupported("it crops; only strided slices from the start run")
        shape = self._shape_of(source)
        if value.step is None:
            return value
        # Pairs (before, after), the last axis first.
        pairs = [tuple(args["pad"][at : at + 2]) for at in range(0, len(args["pad"]), 2)]
        axes = dict(zip(range(len(shape) - 1, -1, -1), pairs, strict=False))
        if any(axes.pop(0, ())):
            raise _Unsupported("it pads the batch")
        self._expect_map(source, value, len(shape) - 2)
        before, after = axes.pop(1, (0, 0))
        if before or after:
            value = self._pick(node, value, [None] * before + list(range(value.shape[0])) + [None] * after)
        sides = [axes.get(axis, (0, 0)) for axis in (len(shape) - 2, len(shape) - 1)]
        if any(map(any, sides)):
            value = self._move(node, value, padding=(sides[0][0], sides[1][0], sides[0][1], sides[1][1]))
        return replace(value)

    def _slice(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        args, shape, result = _arguments(node), self._shape_of(source), self._shape_of(node)
        axis, step = args["dim"] % len(shape), args["step"]
        start, stop, _ = slice(args["start"], args["end"], step).indices(shape[axis])
        whole = start == 0 and step == 1 and (args["end"] is None or args["end"] >= 1 << 31)
        if axis == 0 and not whole:
            raise _Unsupported("it picks samples of the batch")
        if value.step is None or result == shape:
            return replace(value)
        self._expect_map(source, value, len(shape) - 2)
        if axis == 1:
            return self._pick(node, value, list(range(start, stop, step)))
        if start or result[axis] != -(-shape[axis] // step):
            raise _Unsupported("it crops; only strided slices from the start run")
        return self._move(node, value, stride=(1, step) if axis == len(shape) - 1 else (step, 1))

    def _move(self, node: "fx.Node", value: _Value, *, stride: tuple[int, int] = (1, 1),
              padding: tuple[int, int, int, int] = (0, 0, 0, 0)) -> _Value:
        """Put zeros around a map, or leave pixels out; a layer behind it may do that by itself."""
        return self._append(value, FloatPool(self._name(node), (1, 1), stride, padding, kind="average"))

    def _pick(self, node: "fx.Node", value: _Value, channels: Sequence[int | None]) -> _Value:
        """Make a map of some channels, zeros where None."""
        weights = np.zeros((len(channels), value.shape[0], 1, 1))
        for at, channel in enumerate(channels):
            if channel is not None:
                weights[at, channel] = 1.0
        return self._append(value, FloatConv(self._name(node), (1, 1), weights=weights, bias=np.zeros(len(channels))))

    # Activations and what vanishes -------------------------------------------------------------------------------

    def _clamp(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        args = _arguments(node)
        bounds = [args.get("min"), args.get("max")]
        if any(bound is not None and not isinstance(bound, int | float) for bound in bounds):
            raise _Unsupported("its bounds must be numbers")
        return self._activation(node, value, *bounds)

    def _relu(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        return self._activation(node, value, 0.0, None)

    def _relu6(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        return self._activation(node, value, 0.0, 6.0)

    def _hardtanh(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        args = _arguments(node)
        return self._activation(node, value, args["min_val"], args["max_val"])

    def _activation(self, node: "fx.Node", value: _Value, low: float | None, high: float | None) -> _Value:
        """Clamp what the step before makes."""
        if value.step is None:
            return value
        return self._step(Step(value.shape, (value.step,), clamp=(low, high), name=partial(self._name, node)))

    def _reshape(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        # Reshapes keep the order of the elements. Whoever reads the result checks that it has the shape it should.
        if self._shape_of(node)[:1] != (self.batch,):
            raise _Unsupported("it mixes the samples of the batch")
        return replace(value)

    def _dropout(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        if _arguments(node)["train"]:
            raise _Unsupported("it drops in evaluation too; pass training=self.training")
        return replace(value)

    def _cast(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        if not _arguments(node)["dtype"].is_floating_point:
            raise _Unsupported("activations must stay floating-point numbers until they are quantized")
        return replace(value)

    def _identity(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        return replace(value)

    def _first(self, node: "fx.Node", source: "fx.Node", value: _Value) -> _Value:
        known = OPERATORS.get(str(source.target)) in ("batch_norm", "max_pool")
        if value.step is not None and not (known and node.args[1] == 0):
            raise _Unsupported("only the first result of a batch norm or a pool can be used")
        return replace(value)

    # Helpers -----------------------------------------------------------------------------------------------------

    def _step(self, step: Step, *, normalizable: bool = False) -> _Value:
        self.steps.append(step)
        return _Value(step.shape, step, normalizable)

    def _append(self, value: _Value, layer: FloatLayer, *, normalizable: bool = False) -> _Value:
        if value.step is None:
            return _Value(value.shape, None)
        return self._step(Step(layer.output_shape(*value.shape), (value.step,), layer), normalizable=normalizable)

    def _expect_map(self, source: "fx.Node", value: _Value, dimensions: int = 2) -> None:
        """Refuse what is not a map of so many dimensions."""
        shape = self._shape_of(source)
        if value.step is not None and not (len(shape) == dimensions + 2 and _is_map(shape, value.shape)):
            raise _Unsupported(f"its input was reshaped from {(self.batch, *value.shape)} to {shape}")

    def _parameter(self, node: "fx.Node") -> npt.NDArray[np.float64]:
        if node.name not in self.parameters:
            raise _Unsupported("its parameters are computed in the forward pass; make them plain parameters "
                               "(torch.nn.utils.parametrize.remove_parametrizations)")
        return self.parameters[node.name]

    def _bias(self, node: "fx.Node | None", channels: int) -> npt.NDArray[np.float64]:
        return np.zeros(channels) if node is None else self._parameter(node)

    @staticmethod
    def _shape_of(node: "fx.Node") -> tuple[int, ...]:
        value = node.meta["val"]
        return tuple(int(n) for n in (value[0] if isinstance(value, tuple | list) else value).shape)

    def _name(self, node: "fx.Node") -> str:
        """Path of the module whose weights a node uses, or that it runs in; made unique.

        The operator is added where the module is not PyTorch's own: it may do several things.
        """
        path, kind = _module_of(node)
        operator = str(node.target).split(".")[1].strip("_") if hasattr(node.target, "_schema") else "add"
        stem = (path if kind.startswith("torch.nn.") else f"{path}.{operator}".strip(".")) or operator
        stem = next((self.owners[used.name] for used in node.all_input_nodes if used.name in self.owners), stem)
        name, count = stem, 1
        while name in self.names:
            count += 1
            name = f"{stem}_{count}"
        self.names.add(name)
        return name


def _is_map(shape: tuple[int, ...], layer: Shape) -> bool:
    """Whether a tensor (N, ...) is what a layer of (channels, height, width) made, not a reshape of it."""
    channels, height, width = layer
    return shape[1:] == layer or (shape[1:], height) == ((channels, width), 1) or (
        shape[1:], height, width) == ((channels,), 1, 1)


def _dimensions(node: "fx.Node") -> int:
    """Over how many dimensions an operator's window slides."""
    return 1 if "1d" in str(node.target) else 2


def _arguments(node: "fx.Node") -> dict[str, Any]:
    """Arguments of an operator by name, defaults filled in."""
    found: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if index < len(node.args):
            found[argument.name] = node.args[index]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value if argument.has_default_value() else None
    return found


def _module_of(node: "fx.Node") -> tuple[str, str]:
    """Path and full type name of the innermost module that a node belongs to; the path is empty for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = next(reversed(stack.values()), ("", ""))
    return path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _source_of(node: "fx.Node") -> str:
    """``file:line`` and text of the innermost source line that is the user's own, else PyTorch's."""
    import torch

    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    if not frames:
        return "source unknown"
    library = str(Path(torch.__file__).parent)
    own = [frame for frame in frames if not frame[0].startswith(library)]
    file, line = (own or frames)[-1]
    text = linecache.getline(file, int(line)).strip()
    return f"{file}:{line}" + (f" `{text}`" if text else "")


def _offender(node: "fx.Node", spelling: str, reason: str) -> Offender:
    path, kind = _module_of(node)
    module = f"{path or 'the top module'} ({kind.rpartition('.')[2]})" if kind else path or "the top module"
    return Offender(spelling, module, _source_of(node), reason)
