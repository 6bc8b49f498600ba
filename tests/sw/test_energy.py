"""Energy: every count is that of the hardware, every figure the published one."""

from collections import Counter
from dataclasses import asdict, replace
from importlib import import_module

import numpy as np
import pytest

from nomul.compiler import compile_graph
from nomul.driver import StreamDevice
from nomul.energy import PARTS, EnergyError, EnergyModel, Work, energy, estimate_baseline, layer_work
from nomul.estimate import estimate, estimate_network
from nomul.graph import Conv, Graph, Pool, Tensor
from nomul.scalesim import estimate_by
from nomul.shapes import network_shape
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.timing import WeightSource

from ..graphs import input_codes
from ..hw.test_accelerator import MEMORY, PythonTransport, tiny_network
from .small import CONFIG, small_program

# Counts --------------------------------------------------------------------------------------------------------------


def windows(config: ArrayConfig, rng: np.random.Generator) -> Graph:
    """Both strides of the window unit, its maximum, and a residual."""
    def common(name, source, target, kernel, stride, **more):
        return {"name": name, "input": source, "output": target, "kernel": (kernel, kernel), "stride": (stride, stride),
                "padding": (kernel // 2,) * 4, "dilation": (1, 1), "bias": rng.integers(-300, 300, 4),
                "multiplier": np.ones(4, dtype=np.int64), "shift": np.full(4, 5), "low": -128, "high": 127} | more

    def weights(*shape):
        return rng.choice(config.format.levels, shape).astype(np.int32)

    nodes = (
        Conv(**common("point", "x", "a", 1, 1), weights=weights(4, 4, 1, 1)),
        Conv(**common("half", "a", "b", 3, 2), weights=weights(4, 1, 3, 3), groups=4),
        Conv(**common("depth", "b", "c", 3, 1), weights=weights(4, 1, 3, 3), groups=4),
        Pool(**common("max", "c", "d", 3, 1), kind="max"),
        Conv(**common("last", "d", "y", 1, 1, skip="c"), weights=weights(4, 4, 1, 1)),
    )
    sizes = {"x": 6, "a": 6, "b": 3, "c": 3, "d": 3, "y": 3}
    tensors = tuple(Tensor(name, 4, size, size, 0, 0) for name, size in sizes.items())
    return Graph(config.format, config.act_bits, config.gain_terms, tensors, nodes, "x", "y", (4, 3, 3))


class Probe:
    """Counts what the parts of an accelerator do in the cycles of a run."""

    def __init__(self, monkeypatch):
        self.parts, self.counts = {}, Counter()
        for module, name in (("accelerator", "BlockRAM"), ("accelerator", "Sequencer"), ("accelerator", "Accumulator"),
                             ("accelerator", "ChannelUnit"), ("accelerator", "WindowUnit"),
                             ("accelerator", "OutputStage"), ("accumulator", "BlockRAM"), ("output", "BlockRAM"),
                             ("sequencer", "BlockRAM"), ("window", "BlockRAM")):
            home = import_module(f"nomul_hw.{module}")
            monkeypatch.setattr(home, name, self._recording(getattr(home, name), f"{module}.{name}"))

    def _recording(self, kind, key):
        def make(*args, **options):
            made = kind(*args, **options)
            self.parts.setdefault(key, []).append(made)
            return made
        return make

    def watch(self, transport: PythonTransport, dut):
        """Count from now on, in cycles in which the machine is busy."""
        parts, config = self.parts, dut.config
        memories = parts["accelerator.BlockRAM"]
        named = {"weight": memories[2:], "accumulator": parts["accumulator.BlockRAM"],
                 "descriptor": parts["sequencer.BlockRAM"], "line": parts.get("window.BlockRAM", []),
                 "activation": memories[:2], "parameter": parts["output.BlockRAM"]}
        (output,) = parts["accelerator.OutputStage"]
        signals = [("busy", parts["accelerator.Sequencer"][0].busy, 1),
                   ("sums", parts["accelerator.Accumulator"][0].upcoming.valid, config.cols),
                   ("pooled", parts["accelerator.ChannelUnit"][0].token.valid, config.depth),
                   ("requantized", output.parts, config.requantize_lanes),
                   ("residuals", output.parts.any() & output.layer.skip, config.requantize_lanes)]
        signals += [("window", unit.token.valid, config.depth) for unit in parts.get("accelerator.WindowUnit", [])]
        for name, rams in named.items():
            for ram in rams:
                signals += [(f"{name}_reads", ram.read_enable, ram.width),
                            (f"{name}_writes", ram.write_enable, ram.width // ram.parts)]
                if ram.second:
                    signals.append((f"{name}_reads", ram.second_enable, ram.width))
        if config.weights == "stream":
            signals.append(("streamed", dut.weights.valid & dut.weights.ready, config.weight_word_bits))

        async def count(ctx):
            while True:
                _, _, busy, *values = await ctx.tick().sample(*(signal for _, signal, _ in signals))
                if busy:
                    for (name, _, worth), value in zip(signals[1:], values, strict=True):
                        self.counts[name] += value.bit_count() * worth

        transport.simulator.add_testbench(count, background=True)


@pytest.mark.parametrize("make, config", [
    (tiny_network, ArrayConfig("exp4", 2, 3, memory=MEMORY)),
    (tiny_network, ArrayConfig("ternary", 2, 2, lanes=2, requantize_lanes=1, memory=MEMORY)),
    (tiny_network, ArrayConfig("exp4", 2, 3, weights="stream", memory=replace(MEMORY, weights=9))),
    (windows, ArrayConfig("pot3z", 2, 2, memory=replace(MEMORY, lines=6))),
], ids=["conv", "chunks", "stream", "windows"])
def test_counts_are_those_of_the_hardware(make, config, monkeypatch):
    """Every operation and every bit of a run, in Amaranth's simulator, with zero difference."""
    rng = np.random.default_rng(0)
    program = compile_graph(make(config, rng), config)
    probe, built = Probe(monkeypatch), []
    accelerator = import_module("tests.hw.test_accelerator")
    original = accelerator.Accelerator
    monkeypatch.setattr(accelerator, "Accelerator", lambda *given: built.append(original(*given)) or built[-1])
    transport = PythonTransport(config, source=WeightSource([1]) if config.weights == "stream" else None)
    probe.watch(transport, built[0])
    StreamDevice(transport).run(program, input_codes(program.graph, rng, 1))
    total = sum(estimate(program).work, Work())
    found = probe.counts
    if make is windows:
        ops = {layer.values["op"] for layer in program.layers}
        assert len(ops) == 3 and any(layer.values.get("pair") for layer in program.layers)
        assert total.residuals and total.line_reads
    expected = {name: value for name, value in asdict(total).items() if name not in ("products", "multiples", "host")}
    # A position in the window unit is nine products of a channel, or four comparisons.
    words = {op: sum(layer_work(config, layer.values).activation_reads // config.act_word_bits
                     // (1 + layer.values.get("pair", 0)) * config.depth
                     for layer in program.layers if layer.values["op"] == op) for op in (3, 4)}
    assert found.pop("window", 0) == sum(words.values())
    found["pooled"] += 4 * words[4]
    if config.weights == "stream":  # in and out of the queue
        found["weight_reads"] = found["weight_writes"] = found["streamed"]
    found = {name: found[name] for name in expected}
    assert found == expected
    assert total.products == total.sums * config.depth + 9 * words[3]


def test_pieces_add_up():
    program = small_program()
    shape, small = network_shape(program.graph), replace(CONFIG, memory=replace(CONFIG.memory, activations=12))
    schedule = estimate_network(shape, small)
    assert schedule.runs is not None and schedule.host.host == 32 * schedule.host_words
    compiled = import_module("nomul.compiler").compile_network(program.graph, small).estimate()
    assert compiled.work == schedule.work
    # Programs that follow each other may share weights: only those at hand tell.
    assert replace(compiled.host, host=0) == replace(schedule.host, host=0)
    assert compiled.host.host == 32 * compiled.host_words <= schedule.host.host
    whole = program.estimate()
    assert estimate_network(shape, CONFIG).work == whole.work
    # Pieces do the network's products and write its tensors once; inputs and outputs of pieces go to the host and back.
    assert sum(work.products for work in schedule.work) >= sum(work.products for work in whole.work)
    assert schedule.host.activation_writes > whole.host.activation_writes


# Figures -------------------------------------------------------------------------------------------------------------


def test_published_figures():
    model = EnergyModel()
    assert (model.add(8), model.add(32), model.multiply(8, 8)) == (0.03, pytest.approx(0.1), 0.2)
    assert (model.shift(8), model.shift(32), model.multiply(4, 8)) == (0.024, pytest.approx(0.13), 0.1)
    assert model.add(4) == 0.015 and model.add(20) == pytest.approx(0.065)
    for size, access in ((8 << 10, 10), (32 << 10, 20), (1 << 20, 100)):
        assert model.memory_bit(8 * size) * 64 == pytest.approx(access)
    assert model.memory_bit(8 << 12) * 64 == pytest.approx(10 / 2**0.5) and model.memory_bit(0) > 0
    assert model.memory_bit(8 << 22) * 64 == pytest.approx(100 * 5 ** (2 / 5))
    assert model.outside * 16 == 200


def test_a_product_of_every_kind():
    model = EnergyModel()
    ternary, pot3 = ArrayConfig("ternary", rows=2), ArrayConfig("pot3z", rows=2)
    int8 = ArrayConfig("int8", rows=2, pe="multiplier")
    widths = [sum(config.sum_bits(row) for row in (0, 1)) / 2 for config in (ternary, pot3, int8)]
    assert model.product(ternary) == pytest.approx(model.add(widths[0]))
    assert model.product(pot3) == pytest.approx(0.024 + model.add(widths[1]))
    assert model.product(int8) == pytest.approx(0.2 + model.add(widths[2]))


def test_energy_of_a_program():
    program = small_program()
    result = energy(program.estimate())
    assert [layer.name for layer in result.layers] == ["features.0", "pool", "classifier", "host"]
    assert result.total == pytest.approx(sum(result.parts.values())) and tuple(result.parts) == PARTS
    assert result.on_chip == result.total - result.parts["outside"]
    assert result.layers[0].parts["outside"] == 0 < result.layers[-1].parts["outside"]
    assert result.layers[1].parts["pools"] > 0 == result.layers[1].parts["products"]
    free = energy(program.estimate(), EnergyModel(outside=1e-9))
    assert free.on_chip == pytest.approx(result.on_chip) and free.total < result.total
    data = result.to_dict()
    assert data["layers"][0]["work"]["products"] == result.layers[0].work.products
    # By hand: the sums of all columns, 24 bits each.
    add = 0.03 + 0.07 * 16 / 24
    assert result.parts["sums"] == pytest.approx(sum(layer.work.sums for layer in result.layers) * add)


def test_memories_as_large_as_needed():
    shape = network_shape(small_program().graph)
    result = estimate_network(shape, CONFIG, fit=False)
    assert energy(result, fit=False).parts["weights"] < energy(result).parts["weights"]


def test_the_baseline_multiplies():
    shape, config = network_shape(small_program().graph), ArrayConfig("ternary", rows=4, cols=4)
    ours, theirs = (energy(make(shape, config, fit=False), fit=False) for make in (estimate_network, estimate_baseline))
    assert (theirs.config.pe, theirs.config.format.name) == ("multiplier", "int8")
    assert ours.layers[0].work.products == theirs.layers[0].work.products
    assert theirs.parts["weights"] > 3 * ours.parts["weights"] and theirs.parts["products"] > ours.parts["products"]
    assert theirs.parts["activations"] == ours.parts["activations"]
    tight = replace(config, memory=replace(CONFIG.memory, weights=20))  # too few for codes of 8 bits in planes
    assert estimate_baseline(shape, tight).config.memory.weights >= 20


@pytest.mark.parametrize("choices", [{"add_8": 0}, {"outside": -1}, {"memory": ((8, 1.0),)},
                                     {"memory": ((9, 1.0), (8, 2.0))}, {"memory": ((8, 1.0), (9, 0.0))}])
def test_impossible_figures_are_refused(choices):
    with pytest.raises(EnergyError, match="must be"):
        EnergyModel(**choices)


def test_other_models_do_not_say_what_is_moved():
    other = estimate_by("overlapped", network_shape(small_program().graph), CONFIG)
    with pytest.raises(EnergyError, match="the model overlapped does not say"):
        energy(other)


def test_work_adds_up():
    assert Work(products=1, host=2) + Work(products=3) * 2 == Work(products=7, host=2)
    assert MemoryConfig().lines == 0
