"""Graphs and programs as files that outlive the code that wrote them.

    network.nomul/                   network-ternary_16x16.nomul/
        graph.json                       manifest.json
        graph.safetensors                program.safetensors
                                         graph/    (the graph that it was compiled from, as on the left)

How such a folder is written and proven on reading is the business of :mod:`nomul.container`; this module says what is
in it. Same graph, same bytes; same program, same bytes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import DESCRIPTOR, DESCRIPTOR_WORDS, HOST_BITS, pack, to_host_words
from nomul_hw.formats import WeightFormat

from .container import Arrays, FileFormatError, Layout, Record, integers, read, replace_folder, sign, write
from .graph import Concat, Conv, Graph, Operation, Pool, Tensor

if TYPE_CHECKING:
    from .compiler import Placement, Program

__all__ = ["EXTENSION", "FileFormatError", "graph_hash", "load_graph", "load_program", "save_graph", "save_program"]

_Content = TypeVar("_Content")

#: The usual ending of a folder's name; any other works too.
EXTENSION = ".nomul"

_GRAPH = Layout("nomul.graph", "graph.json", "graph.safetensors", {})
_PROGRAM = Layout("nomul.program", "manifest.json", "program.safetensors", {"graph": _GRAPH})


# Graphs ---------------------------------------------------------------------------------------------------------

def save_graph(graph: Graph, path: str | Path) -> Path:
    """Write a graph to a folder; the same graph always gives the same bytes.

    Parameters
    ----------
    graph : Graph
        The quantized network.
    path : str or Path
        The folder to make. An existing one is replaced if it holds a graph and nothing else.

    Raises
    ------
    FileFormatError
        If the folder cannot be written or holds something else; what was there stays as it was.
    """
    path = Path(path)
    replace_folder(path, _GRAPH, lambda folder: _write_graph(graph, folder))
    return path


def load_graph(path: str | Path) -> Graph:
    """Read a graph from the folder that :func:`save_graph` made.

    Raises
    ------
    FileFormatError
        If there is no graph, it is damaged, or it was written by an incompatible version.
    """
    path = Path(path)
    return _parse(_parse_graph, *read(path, _GRAPH, others={"its graph is in the folder 'graph'": _PROGRAM}))


def graph_hash(graph: Graph) -> str:
    """SHA-256 of everything in a graph, in hex: equal graphs, equal hashes."""
    digest: str = sign(_GRAPH, *_graph_content(graph))["sha256"]
    return digest


def _graph_content(graph: Graph) -> tuple[dict[str, Any], Arrays]:
    """Split a graph into its document and its arrays."""
    arrays: Arrays = {}
    nodes = []
    for node in graph.nodes:
        record: dict[str, Any] = {"name": node.name, "output": node.output}
        nodes.append(record)
        if isinstance(node, Concat):
            record |= {"op": "concat", "inputs": list(node.inputs)}
            continue
        record |= {
            "op": node.kind if isinstance(node, Pool) else "conv",
            "input": node.input,
            **{key: integers(getattr(node, key)) for key in ("kernel", "stride", "padding", "dilation")},
            "low": int(node.low),
            "high": int(node.high),
        }
        arrays |= {f"{node.name}.{key}": getattr(node, key) for key in ("bias", "multiplier", "shift")}
        if node.skip is not None:
            record["skip"] = node.skip
        if isinstance(node, Conv):
            arrays[f"{node.name}.weights"] = node.weights.astype(_weight_dtype(graph.format_of(node)))
            if node.groups != 1:
                record["groups"] = int(node.groups)
            if node.format is not None:
                record["format"] = node.format.to_dict()
    content = {
        "weight_format": graph.format.to_dict(),
        "act_bits": int(graph.act_bits),
        "gain_terms": int(graph.gain_terms),
        "tensors": [{"name": tensor.name, "shape": integers(tensor.shape), "exponent": int(tensor.exponent),
                     "zero_point": int(tensor.zero_point)} for tensor in graph.tensors],
        "nodes": nodes,
        "input": graph.input,
        "output": graph.output,
        "output_shape": integers(graph.output_shape),
    }
    return content, arrays


def _write_graph(graph: Graph, folder: Path) -> str:
    return write(folder, _GRAPH, *_graph_content(graph))


def _parse_graph(content: Record, arrays: Arrays) -> Graph:
    nodes: list[Operation] = []
    for record in content.records("nodes"):
        name, op, output = record.string("name"), record.string("op"), record.string("output")
        if op == "concat":
            nodes.append(Concat(name, record.strings("inputs"), output))
            continue
        common: dict[str, Any] = {
            "name": name, "input": record.string("input"), "output": output,
            "kernel": record.integers("kernel", 2), "stride": record.integers("stride", 2),
            "padding": record.integers("padding", 4), "dilation": record.integers("dilation", 2),
            "low": record.integer("low"), "high": record.integer("high"),
            "skip": record.string("skip") if "skip" in record.values else None,
            **{key: _take(arrays, f"{name}.{key}", np.int64) for key in ("bias", "multiplier", "shift")},
        }
        match op:
            case "conv":
                nodes.append(Conv(
                    **common, weights=_take(arrays, f"{name}.weights", np.int32),
                    groups=record.integer("groups") if "groups" in record.values else 1,
                    format=_parse_format(record, "format") if "format" in record.values else None,
                ))
            case "max" | "sum":
                nodes.append(Pool(**common, kind=op))
            case _:
                raise ValueError(f"node {name!r} has the unknown operator {op!r}")
    if arrays:
        raise ValueError(f"there are arrays that belong to no node: {', '.join(sorted(arrays))}")
    tensors = []
    for record in content.records("tensors"):
        channels, height, width = record.integers("shape", 3)
        tensors.append(Tensor(record.string("name"), channels, height, width, record.integer("exponent"),
                              record.integer("zero_point")))
    return Graph(
        _parse_format(content, "weight_format"), content.integer("act_bits"), content.integer("gain_terms"),
        tuple(tensors), tuple(nodes), content.string("input"), content.string("output"),
        content.integers("output_shape"),
    )


def _parse_format(record: Record, key: str) -> WeightFormat:
    return WeightFormat.from_dict(record.record(key).values)


def _weight_dtype(fmt: WeightFormat) -> type[np.signedinteger[Any]]:
    """Smallest integers that hold every level."""
    for dtype in (np.int8, np.int16):
        if np.iinfo(dtype).min <= fmt.levels[0] and fmt.levels[-1] <= np.iinfo(dtype).max:
            return dtype
    return np.int32


# Programs -------------------------------------------------------------------------------------------------------

def save_program(program: "Program", path: str | Path) -> Path:
    """Write a compiled program, and the graph that it came from, to a folder; same program, same bytes.

    Parameters
    ----------
    program : Program
        The compiled network.
    path : str or Path
        The folder to make. An existing one is replaced if it holds a program and nothing else.

    Raises
    ------
    FileFormatError
        If the folder cannot be written or holds something else; what was there stays as it was.
    """
    path = Path(path)

    def fill(folder: Path) -> None:
        (folder / "graph").mkdir()
        content = {
            "config": program.config.to_dict(),
            "config_hash": program.config.hash,
            "graph": _write_graph(program.graph, folder / "graph"),
            "input_window": [int(size) for size in program.input_window],
            "layers": [{"node": layer.node, "macs": int(layer.macs),
                        "weights": [int(layer.weights.start), int(layer.weights.stop)],
                        "values": {field: int(value) for field, value in layer.values.items()}}
                       for layer in program.layers],
            "placements": {name: {"bank": int(place.bank), "address": int(place.address), "words": int(place.words),
                                  "channels": integers(channel for channel, _ in place.segments),
                                  "lanes": integers(lane for _, lane in place.segments)}
                           for name, place in program.placements.items()},
        }
        write(folder, _PROGRAM, content, {name: getattr(program, name) for name in _MEMORIES})

    replace_folder(path, _PROGRAM, fill)
    return path


def load_program(path: str | Path) -> "Program":
    """Read a program from the folder that :func:`save_program` made.

    Raises
    ------
    FileFormatError
        If there is no program, it is damaged, or it was written by an incompatible version of nomul.
    """
    path = Path(path)
    content, arrays = read(path, _PROGRAM, others={"compile it first": _GRAPH})
    graph_content, graph_arrays = read(path / "graph", _GRAPH, others={})
    if graph_content.string("sha256") != content.string("graph"):
        raise FileFormatError(f"{path / 'graph'}: is not the graph that the program was compiled from")
    graph = _parse(_parse_graph, graph_content, graph_arrays)
    return _parse(lambda content, arrays: _parse_program(content, arrays, graph), content, arrays)


#: The arrays of a program.
_MEMORIES = ("descriptors", "parameters", "weights")


def _parse_program(content: Record, arrays: Arrays, graph: Graph) -> "Program":
    from .compiler import Layer, Program
    from .compiler.input_packing import packing_windows
    from .shapes import network_shape

    config = ArrayConfig.from_dict(content.record("config").values)
    if config.hash != content.string("config_hash"):
        raise ValueError("was compiled for another version of the machine: compile its graph again")
    if config.act_bits != graph.act_bits:
        raise ValueError("its graph has activations of another width than its configuration says")
    layers = [Layer(record.string("node"), {field: record.record("values").integer(field)
                                            for field in record.record("values").values}, record.integer("macs"),
                    range(*record.integers("weights", 2)))
              for record in content.records("layers")]
    placements = {name: _parse_placement(content.record("placements").record(name), config)
                  for name in content.record("placements").values}
    unknown = {layer.node for layer in layers} - {node.name for node in graph.nodes}
    unknown |= set(placements) - {tensor.name for tensor in graph.tensors}
    if unknown:
        raise ValueError(f"its graph has no {', '.join(map(repr, sorted(unknown)))}")
    memories = {name: _take(arrays, name, np.uint32) for name in _MEMORIES}
    if any(array.ndim != 1 for array in memories.values()):
        raise ValueError("its memories must be one-dimensional")
    words = [word for layer in layers
             for word in to_host_words(pack(DESCRIPTOR, layer.values), DESCRIPTOR_WORDS * HOST_BITS)]
    if memories["descriptors"].tolist() != words:
        raise ValueError("its descriptors contradict its layers")
    window = content.integers("input_window", 2)
    if window not in packing_windows(network_shape(graph), config):
        raise ValueError(f"its input cannot be packed by {window}")
    return Program(config=config, graph=graph, layers=tuple(layers), placements=placements,
                   input_window=(window[0], window[1]), **memories)


def _parse_placement(record: Record, config: ArrayConfig) -> "Placement":
    from .compiler import Placement

    channels, lanes = record.integers("channels"), record.integers("lanes")
    place = Placement(record.integer("bank"), record.integer("address"), record.integer("words"),
                      tuple(zip(channels, lanes, strict=True)))
    if place.bank not in (0, 1) or place.address < 0 or place.address + place.words > config.memory.activations:
        raise FileFormatError(f"{record.where}: lies outside the activation memory")
    if place.segments[:1] != ((0, 0),) or list(channels) != sorted(set(channels)) or list(lanes) != sorted(set(lanes)):
        raise FileFormatError(f"{record.where}: its channels are not in order")
    return place


# Both -----------------------------------------------------------------------------------------------------------

def _parse(parser: Callable[[Record, Arrays], _Content], content: Record, arrays: Arrays) -> _Content:
    """Interpret proven contents; what they still get wrong, a writer other than ours did."""
    try:
        return parser(content, arrays)
    except FileFormatError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise FileFormatError(f"{content.where}: {error}") from None


def _take(arrays: Arrays, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    try:
        return arrays.pop(name).astype(dtype, casting="safe")
    except (KeyError, TypeError):
        raise ValueError(f"there is no array {name!r} that fits {np.dtype(dtype)}") from None
