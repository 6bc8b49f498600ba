"""Schedules: networks in pieces compute what they compute as a whole, in the cycles and words that were estimated."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nomul.compiler import CompileError, Program, compile_graph, compile_network
from nomul.driver import DeviceError, StreamDevice, host_words
from nomul.estimate import estimate_alone, estimate_network
from nomul.files import FileFormatError, load_program, save_program
from nomul.graph import Concat, Conv, Graph, Node
from nomul.schedule import Schedule
from nomul.shapes import network_shape
from nomul.verify import verify
from nomul_hw.arithmetic import act_range
from nomul_hw.config import ArrayConfig
from nomul_sim import golden
from nomul_sim.devices import GoldenDevice
from nomul_sim.random_arrays import NETWORK_CONFIGS
from nomul_sim.random_networks import random_network
from tests.machine import Machine

from .small import CONFIG, small_graph


class Counting(Machine):
    """Counts the words of the host streams."""

    words = 0

    def transfer(self, words: np.ndarray, replies: int) -> np.ndarray:
        self.words += len(words) + replies
        return super().transfer(words, replies)


def squeezed(graph: Graph, config: ArrayConfig, rng: np.random.Generator) -> ArrayConfig:
    """An array that holds a part of what it takes to hold the graph."""
    program = compile_graph(graph, config)
    activations = max(place.address + place.words for place in program.placements.values())
    memory = replace(config.memory, activations=max(2, int(activations * rng.choice([0.4, 0.7]))),
                     weights=max(16, int(len(program.weights) * rng.choice([0.3, 2]))))
    return replace(config, memory=memory)


def schedules(count: int) -> list[tuple[Schedule, np.ndarray]]:
    """Random networks that do not fit as a whole, and inputs."""
    found = list[tuple[Schedule, np.ndarray]]()
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        config = NETWORK_CONFIGS[seed % len(NETWORK_CONFIGS)]
        case = random_network(config, rng)
        try:
            program = compile_network(case.graph, squeezed(case.graph, config, rng), word_cycles=seed % 2)
        except CompileError:
            continue
        if isinstance(program, Schedule):
            found.append((program, case.inputs))
        if len(found) == count:
            return found
    raise AssertionError


SCHEDULES = schedules(12)


@pytest.mark.parametrize("schedule, inputs", SCHEDULES)
def test_pieces_compute_what_the_whole_computes(schedule: Schedule, inputs: np.ndarray) -> None:
    graph, expected = schedule.graph, golden.run(schedule.graph, inputs)
    np.testing.assert_array_equal(GoldenDevice().run(schedule, inputs).outputs, expected[graph.output])
    machine = Counting(schedule.config, np.random.default_rng(0))
    device = StreamDevice(machine)
    result = device.run(schedule, inputs)
    np.testing.assert_array_equal(result.outputs, expected[graph.output])
    estimate = schedule.estimate()
    assert all(counters == estimate.accounting for counters in result.counters) and len(result.counters) == len(inputs)

    # Every program is loaded once for a batch, in no more words than it takes.
    device, machine.words = StreamDevice(machine), 0
    machine.words = 0
    device.run(schedule, inputs[:1])
    assert machine.words == host_words(schedule) == estimate.host_words

    nodes = {node.name: node for node in graph.computing}
    for layers in (device.run_layers(schedule, inputs[0]), GoldenDevice().run_layers(schedule, inputs[0])):
        names = []
        for name, output, counters in layers:
            np.testing.assert_array_equal(output, expected[nodes[name].output][0])
            assert not counters or counters == estimate_alone(schedule, name)
            names.append(name)
        assert names == list(nodes)


def test_there_is_everything() -> None:
    """What the pieces of these networks are."""
    steps = [step for schedule, _ in SCHEDULES for step in schedule.steps]
    graphs = [step.program.graph for step in steps]
    assert any(len(step.turns) > 1 for step in steps)
    assert any(step.turns[0][graph.output].channel for step, graph in zip(steps, graphs, strict=True))
    assert any(graph.more_inputs for graph in graphs)
    assert any(len(graph.nodes) > 1 and len(step.turns) > 1 for step, graph in zip(steps, graphs, strict=True))
    assert any(isinstance(node, Concat) for graph in graphs for node in graph.nodes)
    assert any(isinstance(node, Concat) and not any(node.name in step.nodes for step in schedule.steps)
               for schedule, _ in SCHEDULES for node in schedule.graph.nodes)
    assert any(step.program.input_window != (1, 1) for step in steps)


@pytest.mark.parametrize("schedule, inputs", SCHEDULES[:4])
def test_every_step_counts_what_was_estimated(schedule: Schedule, inputs: np.ndarray) -> None:
    device = StreamDevice(Machine(schedule.config, np.random.default_rng(0)))
    rng = np.random.default_rng(1)
    for step in schedule.steps:
        graph = step.program.graph
        codes = tuple(rng.integers(*act_range(graph.act_bits), (1, *graph.tensor(name).shape), dtype=np.int8)
                      for name in graph.inputs)
        result = device.run(step.program, codes)
        assert result.counters == (step.program.estimate().accounting,)
        np.testing.assert_array_equal(result.outputs, golden.run(graph, codes)[graph.output])


def test_shapes_are_enough_to_estimate() -> None:
    for schedule, _ in SCHEDULES:
        if all(not isinstance(node, Conv) or (node.format is None and node.groups == 1)
               for node in schedule.graph.computing):
            compiled = compile_network(schedule.graph, schedule.config)
            found = estimate_network(network_shape(schedule.graph), schedule.config)
            assert isinstance(compiled, Schedule)
            assert found.layers == compiled.estimate().layers and found.runs == compiled.runs
            assert found.host_words is not None and found.host_words >= host_words(compiled)


def test_verification() -> None:
    for schedule, inputs in SCHEDULES[:3]:
        device = StreamDevice(Machine(schedule.config, np.random.default_rng(0)))
        found = verify(schedule, inputs, device)
        assert found.ok and [layer.name for layer in found.layers] == [node.name for node in schedule.graph.computing]


# Compiling ---------------------------------------------------------------------------------------------------------


def test_what_fits_is_a_program() -> None:
    program = compile_network(small_graph(), CONFIG)
    assert isinstance(program, Program)
    np.testing.assert_array_equal(program.weights, compile_graph(small_graph(), CONFIG).weights)


def test_other_mistakes_are_told_as_ever() -> None:
    graph = small_graph()
    narrow = replace(CONFIG, act_bits=4, memory=replace(CONFIG.memory, activations=2))
    with pytest.raises(CompileError, match="the network has 8-bit activations, the array 4-bit ones"):
        compile_network(graph, narrow)
    first = graph.nodes[0]
    assert isinstance(first, Node)
    wild = replace(graph, nodes=(replace(first, bias=first.bias + (1 << 30)), *graph.nodes[1:]))
    with pytest.raises(CompileError, match=r"layer 'features\.0': a sum could reach"):
        compile_network(wild, CONFIG)


def test_programs_of_neighbouring_bands_share_what_is_loaded() -> None:
    memory = replace(CONFIG.memory, activations=12)
    schedule = compile_network(small_graph(), replace(CONFIG, memory=memory))
    assert isinstance(schedule, Schedule)
    first, second = (step.program for step in schedule.steps[:2])
    assert schedule.steps[0].nodes == schedule.steps[1].nodes == ("features.0",)
    machine = Counting(schedule.config, np.random.default_rng(0))
    device = StreamDevice(machine)
    device.load(first)
    machine.words = 0
    device.load(second)
    assert machine.words == 3 + len(second.descriptors)


def test_a_device_takes_all_inputs_of_a_piece() -> None:
    program = next(step.program for schedule, _ in SCHEDULES for step in schedule.steps
                   if step.program.graph.more_inputs)
    graph = program.graph
    inputs = [np.zeros((2, *graph.tensor(name).shape), dtype=np.int8) for name in graph.inputs]
    device = StreamDevice(Machine(program.config, np.random.default_rng(0)))
    with pytest.raises(DeviceError, match=f"the network has {len(inputs)} inputs, not 1"):
        device.run(program, inputs[0])
    with pytest.raises(DeviceError, match="all inputs must have as many samples as the first, 1, not 2"):
        device.run(program, (inputs[0][:1], *inputs[1:]))
    with pytest.raises(golden.GoldenError, match=f"The graph has {len(inputs)} inputs, not 1"):
        golden.run(graph, inputs[0])
    with pytest.raises(golden.GoldenError, match="All inputs must have as many samples as the first, 1"):
        golden.run(graph, (inputs[0][:1], *inputs[1:]))


# Files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule, inputs", SCHEDULES[:6])
def test_saved_and_loaded(schedule: Schedule, inputs: np.ndarray, tmp_path: Path) -> None:
    save_program(schedule, tmp_path / "a")
    again = load_program(tmp_path / "a")
    assert isinstance(again, Schedule) and again.config == schedule.config
    save_program(again, tmp_path / "b")
    for name in ("manifest.json", "program.safetensors", "graph/graph.json", "graph/graph.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert again.estimate() == schedule.estimate() and host_words(again) == host_words(schedule)
    device = StreamDevice(Machine(schedule.config, np.random.default_rng(0)))
    np.testing.assert_array_equal(device.run(again, inputs).outputs,
                                  golden.run(schedule.graph, inputs)[schedule.graph.output])
    for step in again.steps:  # each of its programs is one
        if step.program.graph.more_inputs:
            save_program(step.program, tmp_path / "c")
            assert load_program(tmp_path / "c").graph.inputs == step.program.graph.inputs


def test_a_program_replaces_a_schedule_and_the_other_way_round(tmp_path: Path) -> None:
    schedule, program = SCHEDULES[0][0], compile_network(small_graph(), CONFIG)
    for each in (schedule, program, schedule):
        save_program(each, tmp_path / "a")
        assert type(load_program(tmp_path / "a")) is type(each)


@pytest.mark.parametrize("change, message", [
    (lambda step: step["turns"].clear(), "its turns do not run one program"),
    (lambda step: step["turns"][0]["x"].update(rows=[2, 1]), "is no part of the tensor 'x'"),
    (lambda step: step["turns"][0]["x"].update(channels=[0, 99]), "is no part of the tensor 'x'"),
    (lambda step: step["nodes"][0].update(padding=[1, 2, 3]), "padding must be a list of 4 integers"),
    (lambda step: step["nodes"][0].update(name="ghost"), "ghost"),
])
def test_damaged_schedules(change, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small_graph()
    renamed = replace(graph, input="x", tensors=(replace(graph.tensors[0], name="x"), *graph.tensors[1:]),
                      nodes=(replace(graph.nodes[0], input="x"), *graph.nodes[1:]))  # type: ignore[call-arg]
    schedule = compile_network(renamed, replace(CONFIG, memory=replace(CONFIG.memory, activations=12)))
    save_program(schedule, tmp_path / "a")
    manifest = tmp_path / "a" / "manifest.json"
    document = json.loads(manifest.read_text())
    change(document["steps"][0])
    resign(manifest, document)
    with pytest.raises(FileFormatError, match=message):
        load_program(tmp_path / "a")


def resign(path: Path, document: dict) -> None:
    """Write a document as another writer might have."""
    document.pop("sha256")
    text = json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"
    document["sha256"] = hashlib.sha256(text).hexdigest()
    path.write_bytes(json.dumps(document, sort_keys=True, indent=1).encode() + b"\n")
