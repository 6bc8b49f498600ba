"""Graph and program folders: what is saved comes back, or one sentence says why not."""

import hashlib
import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from nomul.compiler import Program, compile_graph
from nomul.container import FileFormatError
from nomul.files import EXTENSION, graph_hash, load_graph, load_program, save_graph, save_program
from nomul.graph import Concat, Conv, Graph, Pool, Tensor
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.formats import FORMATS, get_format
from tests.graphs import random_graph

GRAPH_FILES = ["graph.json", "graph.safetensors"]
NARROW = ArrayConfig("ternary", act_bits=4)
PROGRAM_FILES = ["manifest.json", "program.safetensors", "graph/graph.json", "graph/graph.safetensors"]


@pytest.fixture
def graph() -> Graph:
    """Convolutions and both pools."""
    for seed in range(100):
        made = random_graph(np.random.default_rng(seed), nodes=4, fmt="ternary", act_bits=8, gain_terms=2)
        if {getattr(node, "kind", "conv") for node in made.nodes} == {"conv", "max", "sum"}:
            return made
    raise AssertionError


@pytest.fixture
def program(graph) -> Program:
    return compile_graph(graph, ArrayConfig("ternary", rows=4, cols=4, memory=MemoryConfig(activations=4096)))


def assert_same(a, b):
    """Compare dataclasses of plain data and arrays to the last bit and type."""
    assert type(a) is type(b)
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert isinstance(y, np.ndarray)
            assert x.dtype == y.dtype and y.flags.writeable
            np.testing.assert_array_equal(x, y)
        elif field.name in ("nodes", "layers"):
            assert len(x) == len(y)
            for inner in zip(x, y, strict=True):
                assert_same(*inner)
        elif isinstance(x, Graph):
            assert_same(x, y)
        else:
            assert x == y


def test_residuals_are_kept(tmp_path):
    graph = next(g for g in (random_graph(np.random.default_rng(s)) for s in range(99))
                 if any(node.skip is not None for node in g.nodes))
    plain = replace(graph, nodes=tuple(replace(node, skip=None) for node in graph.nodes))
    for each in (graph, plain):
        assert [n.skip for n in load_graph(save_graph(each, tmp_path / "g")).nodes] == [n.skip for n in each.nodes]
    assert graph_hash(graph) != graph_hash(plain)


def refused(load, path: Path, message: str) -> None:
    """Check that loading fails with exactly this message."""
    with pytest.raises(FileFormatError, match=f"^{re.escape(message)}$"):
        load(path)


def rewrite(document: Path, change) -> None:
    """Change a document as somebody would who also knows how to sign it."""
    content = json.loads(document.read_text())
    change(content)
    content.pop("sha256")
    text = json.dumps(content, sort_keys=True, indent=1) + "\n"
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    document.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")


def resign_graph(program: Path) -> None:
    """Make a program's manifest point at its graph as it is now."""
    digest = json.loads((program / "graph/graph.json").read_text())["sha256"]
    rewrite(program / "manifest.json", lambda content: content.update(graph=digest))


# Round trips ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fmt", list(FORMATS))
def test_graph_round_trip(tmp_path, fmt):
    for seed in range(3):
        graph = random_graph(np.random.default_rng(seed), nodes=4, fmt=fmt)
        path = save_graph(graph, tmp_path / f"{seed}{EXTENSION}")
        assert path == tmp_path / f"{seed}.nomul"
        assert_same(graph, load_graph(path))
        assert graph_hash(load_graph(path)) == graph_hash(graph)
        assert json.loads((path / "graph.json").read_text())["sha256"] == graph_hash(graph)


def test_mixed_graph_round_trip(tmp_path):
    """Groups, formats of their own and concatenations."""
    for seed in range(20):
        graph = random_graph(np.random.default_rng(seed), nodes=6, mixed=True)
        path = save_graph(graph, tmp_path / "g")
        assert_same(graph, load_graph(path))
        before = (path / "graph.json").read_bytes()
        save_graph(load_graph(path), path)
        assert (path / "graph.json").read_bytes() == before


def test_only_what_is_not_usual_is_written(tmp_path, graph):
    """Groups and formats cost nothing where there are none; uniform formats are written by their bits."""
    nodes = json.loads((save_graph(graph, tmp_path / "g") / "graph.json").read_text())["nodes"]
    assert not any({"groups", "format"} & set(node) for node in nodes)
    index, node = next((i, node) for i, node in enumerate(graph.nodes) if isinstance(node, Conv))
    wide = replace(node, format=get_format("int16"), weights=node.weights * 32767)
    graph = replace(graph, nodes=(*graph.nodes[:index], wide, *graph.nodes[index + 1:]))
    path = save_graph(graph, tmp_path / "g")
    written = json.loads((path / "graph.json").read_text())
    assert written["nodes"][index]["format"] == {"name": "int16", "bits": 16}
    assert written["arrays"][f"{node.name}.weights"]["dtype"] == "int16"
    assert_same(graph, load_graph(path))


def test_program_round_trip(tmp_path, program):
    assert save_program(program, str(tmp_path / "p")) == tmp_path / "p"
    assert_same(program, load_program(str(tmp_path / "p")))
    assert_same(program.graph, load_graph(tmp_path / "p" / "graph"))


def test_same_input_same_bytes(tmp_path, program):
    backwards = replace(program, placements=dict(reversed(program.placements.items())))
    save_program(program, tmp_path / "a")
    save_program(backwards, tmp_path / "b")
    save_program(load_program(tmp_path / "a"), tmp_path / "c")
    for name in PROGRAM_FILES:
        data = (tmp_path / "a" / name).read_bytes()
        assert data == (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_contents_are_plain(tmp_path, graph):
    """Integers and strings, sorted keys, no metadata, small types."""
    path = save_graph(graph, tmp_path / "g")

    def no_float(text):
        raise AssertionError(text)

    text = (path / "graph.json").read_text()
    document = json.loads(text, parse_float=no_float)
    assert (document["format"], document["version"]) == ("nomul.graph", "2.0")
    assert text == json.dumps(document, sort_keys=True, indent=1) + "\n"
    data = (path / "graph.safetensors").read_bytes()
    header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    assert "__metadata__" not in header
    assert {entry["dtype"] for entry in header.values()} == {"I8", "I64"}
    assert set(header) == set(document["arrays"])
    assert sorted(file.name for file in path.iterdir()) == GRAPH_FILES


def test_hash_sees_every_value(graph):
    seen = {graph_hash(graph)}
    node = graph.nodes[0]
    for change in ({"low": node.low + 1} if node.low < node.high else {"high": node.high, "low": node.low - 1},
                   {"bias": node.bias + 1}, {"shift": node.shift + 1}):
        seen.add(graph_hash(replace(graph, nodes=(replace(node, **change), *graph.nodes[1:]))))
    seen.add(graph_hash(replace(graph, gain_terms=3)))
    index, conv = next((i, node) for i, node in enumerate(graph.nodes) if isinstance(node, Conv))
    own = replace(conv, format=get_format("int8"))
    seen.add(graph_hash(replace(graph, nodes=(*graph.nodes[:index], own, *graph.nodes[index + 1:]))))
    last = graph.tensor(graph.output)
    twice = replace(last, name="twice", channels=2 * last.channels)
    for name in ("a", "b"):
        seen.add(graph_hash(replace(graph, tensors=(*graph.tensors, twice),
                                    nodes=(*graph.nodes, Concat(name, (last.name, last.name), "twice")))))
    assert len(seen) == 8


# Writing --------------------------------------------------------------------------------------------------------

def test_replaces_its_own_kind(tmp_path, graph, program):
    path = tmp_path / "made" / "on" / "the way"
    save_graph(random_graph(np.random.default_rng(1)), path)
    save_graph(graph, path)
    assert_same(graph, load_graph(path))
    path = tmp_path / "program"
    path.mkdir()  # an empty folder is nobody's
    save_program(replace(program, graph=graph), path)
    save_program(program, path)
    assert_same(program, load_program(path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "program"]


def test_replaces_what_a_link_points_at(tmp_path, graph):
    (tmp_path / "link").symlink_to("real")
    save_graph(random_graph(np.random.default_rng(1)), tmp_path / "link")
    save_graph(graph, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").is_dir()
    assert_same(graph, load_graph(tmp_path / "real"))


@pytest.mark.parametrize(("extra", "reason"), [
    (["photo.jpg"], "it has no graph.json"),
    (["graph.json", "graph.safetensors", "notes.txt"], "it has the entry notes.txt"),
    (["manifest.json", "program.safetensors"], "it has no graph.json"),
])
def test_never_replaces_anything_else(tmp_path, graph, extra, reason):
    path = tmp_path / "precious"
    path.mkdir()
    for name in extra:
        (path / name).write_text(name)
    message = f"{path}: exists and is not a nomul.graph ({reason}): remove it or choose another name"
    with pytest.raises(FileFormatError, match=f"^{re.escape(message)}$"):
        save_graph(graph, path)
    assert {p.name: p.read_text() for p in path.iterdir()} == {name: name for name in extra}
    assert list(tmp_path.iterdir()) == [path]


def test_never_replaces_a_program_with_more_in_it(tmp_path, program):
    path = save_program(program, tmp_path / "p")
    (path / "graph" / "notes.txt").touch()
    message = (f"{path}: exists and is not a nomul.program (in graph: it has the entry notes.txt): "
               f"remove it or choose another name")
    with pytest.raises(FileFormatError, match=f"^{re.escape(message)}$"):
        save_program(program, path)


def test_unwritable(tmp_path, graph):
    (tmp_path / "file").touch()
    with pytest.raises(FileFormatError, match=f"^{re.escape(str(tmp_path / 'file'))}: exists and is not a folder$"):
        save_graph(graph, tmp_path / "file")
    path = tmp_path / "file" / "below"
    message = f"{path}: cannot be written: {tmp_path / 'file'} is not a folder"
    with pytest.raises(FileFormatError, match=f"^{re.escape(message)}$"):
        save_graph(graph, path)
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / "loop" / "below"
    with pytest.raises(FileFormatError, match=f"^{re.escape(str(path))}: cannot be written: .+$"):
        save_graph(graph, path)


@pytest.mark.parametrize("step", range(6))
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, program, step):
    """The disk is full at the n-th file, or the n-th rename is refused."""
    path = save_program(program, tmp_path / "p")
    before = {name: (path / name).read_bytes() for name in PROGRAM_FILES}
    calls = 0

    def failing(original, first):
        def wrapper(*args):
            nonlocal calls
            calls += 1
            if calls == first:
                raise OSError(28, "No space left on device")
            return original(*args)
        return wrapper

    if step < 4:
        monkeypatch.setattr("os.fsync", failing(lambda fd: None, step + 1))
    else:
        monkeypatch.setattr(Path, "rename", failing(Path.rename, step - 3))
    with pytest.raises(FileFormatError, match=f"^{re.escape(str(path))}: cannot be written: No space left on device$"):
        save_program(replace(program, weights=program.weights[:0]), path)
    monkeypatch.undo()
    assert {name: (path / name).read_bytes() for name in PROGRAM_FILES} == before
    assert list(tmp_path.iterdir()) == [path]


# Reading what is not one ----------------------------------------------------------------------------------------

def test_not_a_folder(tmp_path):
    for load in (load_graph, load_program):
        refused(load, tmp_path / "x", f"{tmp_path / 'x'}: no such folder")
        (tmp_path / "f").touch()
        refused(load, tmp_path / "f", f"{tmp_path / 'f'}: is a file, not a folder")
    refused(load_graph, tmp_path, f"{tmp_path / 'graph.json'}: is missing")
    refused(load_program, tmp_path, f"{tmp_path / 'manifest.json'}: is missing")


def test_wrong_kind(tmp_path, program):
    path = save_program(program, tmp_path / "p")
    refused(load_graph, path, f"{path}: is a nomul.program, not a nomul.graph: its graph is in the folder 'graph'")
    inner = path / "graph"
    refused(load_program, inner, f"{inner}: is a nomul.graph, not a nomul.program: compile it first")
    shutil.copy(inner / "graph.json", path / "manifest.json")
    refused(load_program, path, f"{path / 'manifest.json'}: is a 'nomul.graph', not a nomul.program")


@pytest.mark.parametrize("name", PROGRAM_FILES)
def test_missing_file(tmp_path, program, name):
    path = save_program(program, tmp_path / "p")
    (path / name).unlink()
    refused(load_program, path, f"{path / name}: is missing")


def test_missing_graph_folder(tmp_path, program):
    path = save_program(program, tmp_path / "p")
    shutil.rmtree(path / "graph")
    refused(load_program, path, f"{path / 'graph'}: no such folder")


def test_unreadable(tmp_path, graph):
    path = save_graph(graph, tmp_path / "g")
    (path / "graph.safetensors").unlink()
    (path / "graph.safetensors").mkdir()
    refused(load_graph, path, f"{path / 'graph.safetensors'}: cannot be read: Is a directory")


@pytest.mark.parametrize(("text", "problem"), [
    ("", "is corrupt: Expecting value: line 1 column 1 (char 0)"),
    ("\udcff", "is corrupt: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ("[]", "is corrupt: not an object"),
    ('{"a": 1, "a": 2}', "is corrupt: a key occurs twice"),
    ('{"a": 1.0}', "is corrupt: 1.0 is not an integer"),
    ('{"a": NaN}', "is corrupt: NaN is not an integer"),
    ("[" * 10**6, "is corrupt: maximum recursion depth exceeded while decoding a JSON array from a unicode string"),
    ("{}", "format is missing"),
    ('{"format": 3}', "format must be a string"),
    ('{"format": "\\ud800"}', "format must be a string"),
    ('{"format": "onnx"}', "is a 'onnx', not a nomul.graph"),
    ('{"format": "nomul.graph", "version": "3.0"}', "has version '3.0'; this release of nomul reads 1.x to 2.x"),
    ('{"format": "nomul.graph", "version": "10.0"}', "has version '10.0'; this release of nomul reads 1.x to 2.x"),
    ('{"format": "nomul.graph", "version": "0.1"}', "has version '0.1'; this release of nomul reads 1.x to 2.x"),
    ('{"format": "nomul.graph", "version": "2.7", "sha256": ""}',
     "is corrupt: its SHA-256 does not match its contents"),
])
def test_corrupt_document(tmp_path, graph, text, problem):
    path = save_graph(graph, tmp_path / "g")
    (path / "graph.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(load_graph, path, f"{path / 'graph.json'}: {problem}")


def test_newer_minor_version_loads(tmp_path, graph):
    path = save_graph(graph, tmp_path / "g")
    rewrite(path / "graph.json", lambda content: content.update(version="2.9", unheard_of=["addition"]))
    assert_same(graph, load_graph(path))


def test_version_1_loads(tmp_path):
    """It listed the levels of uniform formats too."""
    graph = random_graph(np.random.default_rng(0), fmt="int4")
    path = save_graph(graph, tmp_path / "g")
    rewrite(path / "graph.json", lambda content: content.update(
        version="1.0", weight_format={"name": "int4", "levels": list(range(-8, 8))}))
    assert_same(graph, load_graph(path))


# Reading damage -------------------------------------------------------------------------------------------------

def change_array(path: Path, name: str, change) -> None:
    arrays = safetensors.numpy.load(path.read_bytes())
    arrays[name] = change(arrays[name])
    path.write_bytes(safetensors.numpy.save(arrays))


def first_conv(graph: Graph) -> Conv:
    return next(node for node in graph.nodes if isinstance(node, Conv))


def test_corrupt_array_is_named(tmp_path, graph):
    path = save_graph(graph, tmp_path / "g")
    name = f"{first_conv(graph).name}.weights"
    file = path / "graph.safetensors"
    intact = file.read_bytes()
    change_array(file, name, lambda array: -array)
    refused(load_graph, path, f"{file}: array {name!r} is corrupt: its SHA-256 does not match")
    file.write_bytes(intact)
    shape = list(first_conv(graph).weights.shape)
    change_array(file, name, lambda array: array.astype(np.float32))
    refused(load_graph, path, f"{file}: array {name!r} is F32{shape}; expected int8{shape}")
    file.write_bytes(intact)
    change_array(file, name, lambda array: array.reshape(-1))
    refused(load_graph, path, f"{file}: array {name!r} is int8[{np.prod(shape)}]; expected int8{shape}")


def test_missing_and_surplus_arrays(tmp_path, graph):
    path = save_graph(graph, tmp_path / "g")
    file = path / "graph.safetensors"
    arrays = safetensors.numpy.load(file.read_bytes())
    file.write_bytes(safetensors.numpy.save({"more": np.zeros(1, np.int8), **arrays}))
    refused(load_graph, path, f"{file}: does not hold the arrays that its document lists: more")
    name = next(iter(arrays))
    del arrays[name]
    file.write_bytes(safetensors.numpy.save(arrays))
    refused(load_graph, path, f"{file}: does not hold the arrays that its document lists: {name}")


def load_like_saved(load, path: Path, saved) -> bool:
    """Load a damaged folder; True if it was refused, an error if anything else came back than was saved."""
    try:
        loaded = load(path)
    except FileFormatError as error:
        assert str(error).startswith(f"{path}") and "\n" not in str(error)
        return True
    assert_same(saved, loaded)
    return False


@pytest.mark.parametrize("name", PROGRAM_FILES)
def test_flipped_bytes(tmp_path, program, name):
    """Whatever byte is wrong, wherever: one sentence, or what was saved."""
    path = save_program(program, tmp_path / "p")
    rng = np.random.default_rng(11)
    intact = (path / name).read_bytes()
    refusals = 0
    for _ in range(60):
        data = bytearray(intact)
        for at in rng.integers(0, len(data), int(rng.integers(1, 3))):
            data[at] ^= int(rng.integers(1, 256))
        (path / name).write_bytes(data)
        refusals += load_like_saved(load_program, path, program)
    assert refusals >= 58  # white space may become other white space


@pytest.mark.parametrize("name", PROGRAM_FILES)
def test_truncated_and_extended(tmp_path, program, name):
    path = save_program(program, tmp_path / "p")
    rng = np.random.default_rng(12)
    intact = (path / name).read_bytes()
    for length in [0, 1, 7, 8, 9, *rng.integers(10, len(intact) - 1, 10)]:
        (path / name).write_bytes(intact[:length])
        assert load_like_saved(load_program, path, program)
    for _ in range(5):
        (path / name).write_bytes(intact + rng.bytes(3) + b"x")
        assert load_like_saved(load_program, path, program)


@pytest.mark.parametrize("name", ["graph/graph.json", "manifest.json"])
def test_signed_nonsense(tmp_path, program, name):
    """Documents with a right hash and any member missing or of any other value: one sentence, never a traceback."""
    path = save_program(program, tmp_path / "p")
    values = [None, True, 0, -1, 2**70, "", "x", [], [0], [None], [-1, 2**70], {}, {"a": 1}]
    rng = np.random.default_rng(13)
    intact = (path / name).read_text()

    def places(value, route=()):
        for key in (value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()):
            yield (*route, key)
            yield from places(value[key], (*route, key))

    for route in [route for route in places(json.loads(intact)) if len(route) < 3 or rng.random() < 0.1]:
        def change(content, route=route):
            *parents, last = route
            for key in parents:
                content = content[key]
            choice = int(rng.integers(-1, len(values)))
            if choice < 0:
                del content[last]
            else:
                content[last] = values[choice]

        (path / name).write_text(intact)
        if route == ("sha256",):
            continue
        rewrite(path / name, change)
        try:
            if name != "manifest.json":
                resign_graph(path)
            loaded = load_program(path)
        except FileFormatError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error), str(error)
        else:  # the change was harmless or made another valid program: it must at least be one
            assert isinstance(loaded, Program)


@pytest.mark.parametrize(("change", "problem"), [
    (lambda c: c["nodes"][0].update(op="softmax"), "node 'layer.0' has the unknown operator 'softmax'"),
    (lambda c: c["nodes"].pop(),
     "there are arrays that belong to no node: layer.3.bias, layer.3.multiplier, layer.3.shift"),
    (lambda c: c["nodes"][0].update(name="other"), "there is no array 'other.bias' that fits int64"),
    (lambda c: c["nodes"][0].update(kernel=[1]), "nodes[0]: kernel must be a list of 2 integers"),
    (lambda c: c["nodes"][0].update(skip=None), "nodes[0]: skip must be a string"),
    (lambda c: c["nodes"][0].update(skip="nothing"),
     "node 'layer.0' adds 'nothing', which is not an earlier tensor of shape (9, 4, 2)"),
    (lambda c: c["nodes"][0].update(stride=[0, 0]),
     "node 'layer.0' has a kernel, stride, dilation or padding out of range"),
    (lambda c: c.update(act_bits=9), "activations have 2 to 8 bits, not 9"),
    (lambda c: c.update(act_bits=True), "act_bits must be an integer"),
    (lambda c: c.update(tensors=[1]), "tensors must be a list of objects"),
    (lambda c: c.update(weight_format=[]), "weight_format must be an object"),
    (lambda c: c.update(input="nothing"), "the input 'nothing' is not a tensor"),
    (lambda c: c["tensors"][0].update(shape=[0, 1, 1]), "tensor 'x' has an empty shape (0, 1, 1)"),
    (lambda c: c["weight_format"].update(levels=[1, 0, -1]),
     "Levels of format 'ternary' must be at least two distinct integers in ascending order, not (1, 0, -1)"),
])
def test_contradicting_graph(tmp_path, graph, change, problem):
    graph = next(g for g in (random_graph(np.random.default_rng(s), nodes=4, fmt="ternary") for s in range(99))
                 if isinstance(g.nodes[3], Pool))
    path = save_graph(graph, tmp_path / "g")
    rewrite(path / "graph.json", change)
    refused(load_graph, path, f"{path / 'graph.json'}: {problem}")


@pytest.mark.parametrize(("at", "change", "problem"), [
    ("conv", {"groups": 2}, "node 'conv' has weights of shape (4, 1, 1, 1); expected (4, 2, 1, 1)"),
    ("conv", {"groups": 0}, "node 'conv' has 0 groups, which do not divide its 4 input and 4 output channels"),
    ("conv", {"groups": "4"}, "nodes[0]: groups must be an integer"),
    ("conv", {"format": "int8"}, "nodes[0]: format must be an object"),
    ("conv", {"format": {}}, "Format name must be a string, not None"),
    ("conv", {"format": {"name": "int99", "bits": 99}}, "A uniform format has 2 to 16 bits, not 99"),
    ("conv", {"format": {"name": "int8", "bits": 8}}, "node 'conv' has weights that are not levels of format 'int8'"),
    ("join", {"inputs": "x"}, "nodes[1]: inputs must be a list of strings"),
    ("join", {"inputs": ["x", 1]}, "nodes[1]: inputs must be a list of strings"),
    ("join", {"inputs": ["x"]}, "node 'join' concatenates 1 tensors; it takes two or more"),
    ("join", {"inputs": ["x", "ghost"]}, "node 'join' reads 'x' and 'ghost' and writes 'z': not in execution order"),
    ("join", {"inputs": ["x", "x", "y"]}, "node 'join' concatenates 4 + 4 + 4 channels, but its output has 8"),
])
def test_contradicting_mixed_graph(tmp_path, at, change, problem):
    grid = {"height": 1, "width": 1, "exponent": 0, "zero_point": 0}
    tensors = (Tensor("x", 4, **grid), Tensor("y", 4, **grid), Tensor("z", 8, **grid))
    weights = np.asarray([200, -3, 0, 255], np.int32).reshape(4, 1, 1, 1)
    conv = Conv("conv", "x", "y", (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), np.zeros(4, np.int64), np.ones(4, np.int64),
                np.zeros(4, np.int64), -128, 127, weights=weights, groups=4, format=get_format("int9"))
    graph = Graph(get_format("ternary"), 8, 2, tensors, (conv, Concat("join", ("x", "y"), "z")), "x", "z", (8,))
    path = save_graph(graph, tmp_path / "g")
    assert_same(graph, load_graph(path))
    rewrite(path / "graph.json", lambda c: next(node for node in c["nodes"] if node["name"] == at).update(change))
    refused(load_graph, path, f"{path / 'graph.json'}: {problem}")


@pytest.mark.parametrize(("change", "problem"), [
    (lambda c: c["config"]["array"].update(acc_bits=25),
     "was compiled for another version of the machine: compile its graph again"),
    (lambda c: c["config"]["array"].update(rows=0), "array.rows must be in 1..256, not 0"),
    (lambda c: c.update(config_hash=NARROW.hash, config=NARROW.to_dict()),
     "its graph has activations of another width than its configuration says"),
    (lambda c: c["layers"][0].update(node="ghost"), "its graph has no 'ghost'"),
    (lambda c: c["placements"].update(ghost=c["placements"]["x"]), "its graph has no 'ghost'"),
    (lambda c: c["placements"]["x"].update(channels=[0, 1], lanes=[0, 0]),
     "placements: x: its channels are not in order"),
    (lambda c: c["placements"]["x"].update(bank=2), "placements: x: lies outside the activation memory"),
    (lambda c: c["placements"]["x"].update(words=4097), "placements: x: lies outside the activation memory"),
    (lambda c: c["layers"].pop(), "its descriptors contradict its layers"),
    (lambda c: c["layers"][0]["values"].update(in_width=7, in_height=77), "its descriptors contradict its layers"),
    (lambda c: c["layers"][0]["values"].update(in_width=2**12), "field in_width must be in 0..4095, not 4096"),
    (lambda c: c["layers"][0]["values"].update(colour=1), "no such field: colour"),
])
def test_contradicting_program(tmp_path, program, change, problem):
    path = save_program(program, tmp_path / "p")
    rewrite(path / "manifest.json", change)
    refused(load_program, path, f"{path / 'manifest.json'}: {problem}")


def test_another_graph(tmp_path, program, graph):
    path = save_program(program, tmp_path / "p")
    save_graph(replace(graph, gain_terms=3), path / "graph")
    refused(load_program, path, f"{path / 'graph'}: is not the graph that the program was compiled from")


def test_wide_weights_keep_their_type(tmp_path):
    """Formats beyond int8 store int16."""
    graph = random_graph(np.random.default_rng(0), fmt="exp5", nodes=6)
    path = save_graph(graph, tmp_path / "g")
    arrays = safetensors.numpy.load((path / "graph.safetensors").read_bytes())
    assert {arrays[f"{n.name}.weights"].dtype for n in graph.nodes if isinstance(n, Conv)} == {np.dtype(np.int16)}
    assert get_format("exp5").max_magnitude > 127
    assert_same(graph, load_graph(path))
