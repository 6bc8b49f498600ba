"""Models and arrays that users hand in."""

import sys

import numpy as np
import pytest

from nomul.inputs import (
    InputError,
    graph_codes,
    load_array,
    load_model,
    parse_clock,
    random_codes,
    save_array,
    save_text,
)

from .small import small_graph

GRAPH = small_graph()

MODEL = """
import torch
from helper import width

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, width)

    def forward(self, x):
        return self.linear(x)

def make():
    return Net()

def broken():
    raise RuntimeError("no such luck")

def number():
    return 3

def needs(argument):
    return Net()

instance = Net()
value = 3
"""


@pytest.fixture
def model_file(tmp_path):
    (tmp_path / "helper.py").write_text("width = 4\n")
    path = tmp_path / "some_model.py"
    path.write_text(MODEL)
    yield path
    sys.modules.pop("some_model", None)
    sys.modules.pop("helper", None)


@pytest.mark.parametrize("name", ["Net", "make", "instance"])
def test_load_model_from_a_file(model_file, name):
    model = load_model(f"{model_file}:{name}")
    assert type(model).__name__ == "Net" and not model.training
    assert str(model_file.parent) not in sys.path


def test_load_model_from_a_module(model_file, monkeypatch):
    monkeypatch.chdir(model_file.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert type(load_model("some_model:make")).__name__ == "Net"


@pytest.mark.parametrize(("name", "message"), [
    ("Nett", r"some_model\.py has no 'Nett'; it has Net, make, broken, number, needs"),
    ("broken", r"some_model\.py:broken: RuntimeError: no such luck \(.*some_model\.py, line 17\)"),
    ("number", r"some_model\.py:number returned something of type int, not a torch\.nn\.Module"),
    ("needs", r"some_model\.py:needs cannot be called without arguments: missing a required argument: 'argument'"),
    ("value", r"some_model\.py:value is of type int, not something that returns a torch\.nn\.Module"),
])
def test_load_model_names_the_fault(model_file, name, message):
    with pytest.raises(InputError, match=message):
        load_model(f"{model_file}:{name}")


@pytest.mark.parametrize(("spec", "message"), [
    ("model.py", r"a model is named as path/to/file\.py:callable or package\.module:callable, not 'model\.py'"),
    ("no/such.py:f", r"no/such\.py: No such file"),
    ("no_such_module_here:f", r"no_such_module_here: no such module; a file is named with its \.py"),
    ("json.nothing:f", r"json\.nothing: no such module"),
])
def test_load_model_names_what_is_missing(spec, message):
    with pytest.raises(InputError, match=message):
        load_model(spec)


def test_load_model_blames_the_user_s_line(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("import torch\nimport no_such_package\n")
    with pytest.raises(InputError, match=r"bad\.py: ModuleNotFoundError: No module named 'no_such_package' .*line 2"):
        load_model(f"{path}:f")


def test_load_model_names_a_syntax_error(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def f(:\n")
    with pytest.raises(InputError, match=r"bad\.py: SyntaxError: invalid syntax \(bad\.py, line 1\)$"):
        load_model(f"{path}:f")


def test_weights(model_file, tmp_path):
    import torch
    from safetensors.torch import save_file

    state = {"linear.weight": torch.ones(4, 2), "linear.bias": torch.zeros(4)}
    save_file(state, tmp_path / "w.safetensors")
    model = load_model(f"{model_file}:make", tmp_path / "w.safetensors")
    assert torch.equal(model.linear.weight, torch.ones(4, 2))

    save_file({"linear.weight": torch.ones(4, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r'w\.safetensors: .*Missing key\(s\) in state_dict: "linear\.bias"'):
        load_model(f"{model_file}:make", tmp_path / "w.safetensors")

    (tmp_path / "w.safetensors").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"w\.safetensors: not a safetensors file"):
        load_model(f"{model_file}:make", tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"no\.safetensors: "):
        load_model(f"{model_file}:make", tmp_path / "no.safetensors")


def test_arrays(tmp_path):
    array = np.arange(6, dtype=np.int8).reshape(2, 3)
    save_array(tmp_path / "new" / "x.npy", array)
    assert np.array_equal(load_array(tmp_path / "new" / "x.npy"), array)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.npy"]


@pytest.mark.parametrize(("content", "message"), [
    (None, r"x\.npy: No such file or directory"),
    (b"text", r"x\.npy: not a NumPy array file"),
    (np.array(["a"]), r"x\.npy: an array of numbers is needed, not of <U1"),
    (np.array([{}]), r"x\.npy: not a NumPy array file"),
    (np.array([1.0, np.nan]), r"x\.npy: the array has values that are not finite numbers"),
])
def test_array_files_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "x.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=message):
        load_array(path)


def test_graph_codes():
    codes = random_codes(GRAPH, 3, seed=0)
    assert graph_codes(GRAPH, codes, source="x") is codes
    assert np.array_equal(graph_codes(GRAPH, codes / 16.0, source="x"), codes)  # the input's scale is 2**-4
    assert graph_codes(GRAPH, codes[0], source="x").shape == (1, 2, 4, 4)
    assert graph_codes(GRAPH, np.full((2, 4, 4), 200, dtype=np.uint8), source="x").max() == 127


@pytest.mark.parametrize("shape", [(2, 4), (3, 4, 4), (5, 2, 4, 5), (0, 2, 4, 4)])
def test_graph_codes_of_another_shape(shape):
    with pytest.raises(InputError, match=r"x\.npy: the network's input has the shape \(batch, 2, 4, 4\), the array \("):
        graph_codes(GRAPH, np.zeros(shape), source="x.npy")


def test_random_codes_have_extremes_and_a_seed():
    codes = random_codes(GRAPH, 50, seed=7)
    assert codes.dtype == np.int8 and codes.shape == (50, 2, 4, 4)
    assert 0.2 < np.mean(codes == -128) < 0.3 and 0.2 < np.mean(codes == 127) < 0.3
    assert np.array_equal(codes, random_codes(GRAPH, 50, seed=7))
    assert not np.array_equal(codes, random_codes(GRAPH, 50, seed=8))


@pytest.mark.parametrize(("text", "megahertz"), [
    ("50MHz", 50), ("50", 50), ("12.5 mhz", 12.5), ("1 GHz", 1000), ("800kHz", 0.8), (" 25M ", 25)])
def test_clocks(text, megahertz):
    assert parse_clock(text) == pytest.approx(megahertz)


@pytest.mark.parametrize("text", ["", "0", "0MHz", "-5", "fast", "5 THz", "1e3", "nan"])
def test_no_clocks(text):
    with pytest.raises(InputError, match="a clock is a frequency such as 50MHz"):
        parse_clock(text)


def test_text_is_written_whole_or_not_at_all(tmp_path):
    save_text(tmp_path / "new" / "a.txt", "×\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "×\n".encode()
    with pytest.raises(InputError, match=r"a\.txt/b\.txt: "):
        save_text(tmp_path / "new" / "a.txt" / "b.txt", "")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
