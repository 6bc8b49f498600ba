"""The comparison itself, against devices that are wrong in known ways."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nomul.compiler import Program, compile_graph
from nomul.driver import Codes, RunResult
from nomul.frontend import FloatConv, FloatGraph
from nomul.graph import Concat, Tensor
from nomul.inputs import random_codes
from nomul.quantize import QuantizeError, quantize
from nomul.quantize.fake_quant import FakeLayer
from nomul.verify import FakeCheck, mismatching_bits, verify
from nomul_hw.timing import run_cycles
from nomul_sim import golden

from .small import CONFIG, small_program

module = import_module("nomul.verify")

PROGRAM = small_program()
CODES = random_codes(PROGRAM.graph, 5, seed=1)


class FakeDevice:
    """Answers as an accelerator would, but for the bits of one layer of one sample, or for one cycle."""

    def __init__(self, *, layer: str = "", sample: int = 0, flip: int = 0, late: int = 0):
        self.layer, self.sample, self.flip, self.late = layer, sample, flip, late

    def _tensors(self, program: Program, codes: Codes, wrong: bool) -> dict[str, Codes]:
        tensors = golden.run(program.graph, codes)
        if wrong:
            target = next(node.output for node in program.graph.nodes if node.name == self.layer)
            tensors[target] = tensors[target].copy()
            tensors[target][self.sample % len(codes), -1, 0, 0] ^= np.int8(self.flip)
        return tensors

    def run(self, program: Program, codes: Codes) -> RunResult:
        last = next(node.name for node in program.graph.nodes if node.output == program.graph.output)
        counters = dict(program.estimate().accounting)
        counters["total"] += self.late
        counters["drain"] += self.late
        outputs = self._tensors(program, codes, bool(self.flip) and self.layer == last)[program.graph.output]
        if self.flip and self.layer != last:  # what is wrong within is wrong at the end too
            outputs = outputs.copy()
            outputs[self.sample, 0] ^= np.int8(1)
        return RunResult(outputs, (counters,) * len(codes))

    def run_layers(self, program: Program, sample: Codes) -> Iterator[tuple[str, Codes, dict[str, int]]]:
        tensors = self._tensors(program, sample[None], bool(self.flip))
        for node in program.graph.computing:
            alone = run_cycles(program.config, [layer.values for layer in program.layers if layer.node == node.name])
            yield node.name, tensors[node.output][0], {"total": sum(cycles["total"] for cycles in alone)}


def test_agreement():
    result = verify(PROGRAM, CODES, FakeDevice())
    assert result.ok and result.first is None
    assert (result.images, result.bits, result.mismatches, result.cycle_differences) == (5, 5 * 3 * 8, 0, 0)
    assert [layer.name for layer in result.layers] == ["features.0", "pool", "classifier"]
    assert result.cycles == (PROGRAM.estimate().cycles,) * 5
    assert result.accounting == result.estimated_accounting


def test_first_difference_is_that_of_the_first_wrong_layer():
    result = verify(PROGRAM, CODES, FakeDevice(layer="pool", sample=3, flip=5))
    assert not result.ok
    assert result.mismatches == 1
    assert [layer.mismatches for layer in result.layers] == [0, 2, 0]
    expected = int(golden.run(PROGRAM.graph, CODES)["b"][3, -1, 0, 0])
    assert str(result.first) == (f"layer 'pool', sample 3, channel 3, row 0, column 0: expected {expected}, "
                                 f"found {int(np.int8(expected) ^ np.int8(5))}")


def test_difference_without_layers():
    result = verify(PROGRAM, CODES, FakeDevice(layer="classifier", sample=2, flip=-1), layers=False)
    assert not result.ok and not result.layers
    assert result.mismatches == 8
    assert result.first is not None and (result.first.layer, result.first.sample) == ("classifier", 2)


def joined() -> Program:
    """The same program, with an output of its last tensor twice: a concatenation has no layers."""
    graph = PROGRAM.graph
    last = graph.tensor(graph.output)
    twice = Tensor("twice", 2 * last.channels, *last.shape[1:], last.exponent, last.zero_point)
    return replace(PROGRAM, graph=replace(
        graph, tensors=(*graph.tensors, twice), nodes=(*graph.nodes, Concat("join", (last.name, last.name), "twice")),
        output="twice", output_shape=twice.shape))


def test_concatenations_are_no_layers():
    result = verify(joined(), CODES, FakeDevice())
    assert result.ok and result.bits == 5 * 6 * 8
    assert [layer.name for layer in result.layers] == ["features.0", "pool", "classifier"]


def test_difference_in_the_output_alone_names_what_wrote_it():
    earlier = replace(PROGRAM, graph=replace(PROGRAM.graph, output="b", output_shape=(4, 2, 2)))
    for program, writer in ((joined(), "join"), (PROGRAM, "classifier"), (earlier, "pool")):
        result = verify(program, CODES, FakeDevice(layer=writer, sample=1, flip=1), layers=False)
        assert result.first is not None and (result.first.layer, result.first.sample) == (writer, 1)


@pytest.mark.parametrize("late", [1, -1])
def test_one_cycle_is_a_difference(late):
    result = verify(PROGRAM, CODES, FakeDevice(late=late))
    assert not result.ok
    assert (result.mismatches, result.cycle_differences, result.first) == (0, 5, None)
    assert result.accounting["drain"] == result.estimated_accounting["drain"] + late


def test_one_wrong_cause_is_a_difference():
    result = verify(PROGRAM, CODES, FakeDevice())
    moved = {**result.accounting, "drain": result.accounting["drain"] - 1, "busy": result.accounting["busy"] + 1}
    assert result.ok and not replace(result, accounting=moved).ok


def test_to_dict_is_plain():
    data = verify(PROGRAM, CODES, FakeDevice(layer="pool", sample=3, flip=5)).to_dict()
    assert data["ok"] is False
    assert data["first_mismatch"]["element"] == [3, 0, 0]
    assert data["layers"][1] == {"name": "pool", "mismatches": 2, "cycles": data["layers"][1]["estimated_cycles"],
                                 "estimated_cycles": data["layers"][1]["estimated_cycles"]}


def test_mismatching_bits():
    a = np.array([[0, -1, 127]], dtype=np.int8)
    assert mismatching_bits(a, a) == 0
    assert mismatching_bits(a, np.array([[1, 0, -128]], dtype=np.int8)) == 1 + 8 + 8


# Fake quantization ---------------------------------------------------------------------------------------------------


def test_fake_quantization_computes_every_layer():
    result = verify(PROGRAM, CODES, FakeDevice())
    assert result.ok and result.suspect is None
    sizes = [int(np.prod(tensor.shape)) for tensor in PROGRAM.graph.tensors]
    assert result.fake == FakeCheck(5 * sum(sizes) * 8, 0, None, None)
    assert verify(joined(), CODES, FakeDevice()).fake.bits == 5 * (sum(sizes) + 6) * 8


def test_in_parts(monkeypatch):
    monkeypatch.setattr(module, "PART_VALUES", 1)
    with planted_in_fake_quantization("pool", sample=None):
        result = verify(PROGRAM, CODES, FakeDevice())
    assert result.fake.mismatches >= 5 and result.fake.first is not None and result.fake.first.sample == 0


@contextmanager
def planted_in_fake_quantization(layer, sample=2):
    """One unit more in one channel of a layer's output."""
    forward = FakeLayer.forward

    def wrong(self, x, skip=None):
        y = forward(self, x, skip)
        if self.node.name == layer:
            y[slice(None) if sample is None else sample, 1, 0, 0] += 2.0**self.target.exponent
        return y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeLayer, "forward", wrong)
        yield


class OwnDevice(FakeDevice):
    """A device that does not follow the golden model when that goes wrong."""

    def __init__(self):
        super().__init__()
        self.right = golden.run

    def _tensors(self, program, codes, wrong):
        return self.right(program.graph, codes)


def test_a_fault_in_each_of_the_three_is_found(monkeypatch):
    with planted_in_fake_quantization("pool"):
        fake = verify(PROGRAM, CODES, FakeDevice())
    assert not fake.ok and fake.first is None and fake.mismatches == 0 and fake.fake.mismatches > 0
    assert fake.fake.first is not None and (fake.fake.first.layer, fake.fake.first.sample) == ("pool", 2)
    assert fake.suspect == "fake quantization"

    device = verify(PROGRAM, CODES, FakeDevice(layer="pool", sample=3, flip=5))
    assert not device.ok and device.fake.mismatches == 0 and device.suspect == "device"

    own, right = OwnDevice(), golden.run
    monkeypatch.setattr(golden, "run", lambda graph, codes: right(replace(graph, nodes=tuple(
        replace(node, bias=node.bias + 8) if node.name == "features.0" else node for node in graph.nodes)), codes))
    model = verify(PROGRAM, CODES, own)
    assert not model.ok and model.mismatches and model.fake.mismatches
    assert model.first is not None and model.first.layer == "features.0" and model.first == model.fake.first
    assert model.suspect == "golden model"
    assert model.to_dict()["fake_quant"]["first"]["layer"] == "features.0"


def test_without_torch_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = verify(PROGRAM, CODES, FakeDevice(layer="classifier", flip=1))
    assert result.fake.skipped == "PyTorch is not installed" and result.fake.bits == 0 and result.suspect is None
    assert verify(PROGRAM, CODES, FakeDevice()).ok


def test_sums_beyond_floating_point_are_not_compared(monkeypatch):
    monkeypatch.setattr(torch, "finfo", lambda dtype: SimpleNamespace(eps=2.0**-7, tiny=2.0**-1000))
    fake = verify(PROGRAM, CODES, FakeDevice()).fake
    assert fake.bits == 0 and fake.skipped is not None and "not exact" in fake.skipped


def test_the_module_that_is_trained():
    rng = np.random.default_rng(0)
    layer = FloatConv("conv", (3, 3), weights=rng.standard_normal((4, 2, 3, 3)), bias=rng.standard_normal(4), low=0.0)
    floats = FloatGraph((2, 4, 4), (layer,), (4, 2, 2))
    network = quantize(floats, rng.standard_normal((8, 2, 4, 4)), format="ternary")
    program = compile_graph(network.graph, CONFIG)
    codes = random_codes(program.graph, 3, seed=0)
    result = verify(program, codes, FakeDevice(), network=network)
    assert result.ok and result.fake.bits == 3 * (32 + 16) * 8
    with torch.no_grad():  # trained on since
        network.others()[0].add_(1.0)
    later = verify(program, codes, FakeDevice(), network=network)
    assert not later.ok and later.suspect == "fake quantization"
    with pytest.raises(QuantizeError, match="not made from this network"):
        verify(PROGRAM, CODES, FakeDevice(), network=network)
