"""The driver: what it refuses before a word is sent. What it sends is tested on the RTL, in tests/sim."""

import re
from dataclasses import replace

import numpy as np
import pytest

from nomul.compiler import compile_graph
from nomul.driver import Device, DeviceError, StreamDevice
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import DESCRIPTOR_WORDS, Opcode, Target, target_depth
from tests.graphs import input_codes, random_graph


class Scripted:
    """A transport that answers the identity, and zeros to all else."""

    def __init__(self, config: ArrayConfig, identity: int, baked: int = 0):
        self.config = config
        self.identity = [identity, baked]
        self.sent: list[np.ndarray] = []

    def transfer(self, words: np.ndarray, replies: int) -> np.ndarray:
        self.sent.append(words)
        if len(self.sent) > 1:
            return np.zeros(replies, dtype=np.uint32)
        assert words.tolist() == [Opcode.READ | Target.IDENTITY << 8, 0, 2] and replies == 2
        return np.array(self.identity, dtype=np.uint32)

    def feed(self, words: np.ndarray) -> None:
        raise AssertionError("the weights are loaded")


CONFIG = ArrayConfig("ternary", rows=4, cols=4)


def test_refuses_a_device_of_another_configuration() -> None:
    message = (f"the device answers as 0000beef, expected {CONFIG.identity:08x} (ternary_4x4): it was generated from "
               "another configuration")
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        StreamDevice(Scripted(CONFIG, 0xBEEF))


def test_refuses_a_program_for_another_array() -> None:
    other = ArrayConfig("ternary", rows=4, cols=8)
    graph = random_graph(np.random.default_rng(1), fmt="ternary", act_bits=8, gain_terms=2)
    transport = Scripted(CONFIG, CONFIG.identity)
    device = StreamDevice(transport)
    assert isinstance(device, Device)
    message = (f"the program was compiled for ternary_4x8 ({other.identity:08x}), the device is ternary_4x4 "
               f"({CONFIG.identity:08x}): compile it again")
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        device.run(compile_graph(graph, other), input_codes(graph, np.random.default_rng(2), 1))
    assert len(transport.sent) == 1


@pytest.mark.parametrize("target", [Target.PROGRAM, Target.WEIGHT, Target.ACTIVATION_1])
def test_refuses_a_program_that_reaches_too_far(target: Target) -> None:
    """The host port's counts wrap where the deepest memory ends: nothing must be sent."""
    graph = random_graph(np.random.default_rng(1), fmt="ternary", act_bits=8, gain_terms=2)
    program = compile_graph(graph, CONFIG)
    depth = target_depth(CONFIG, target)
    if target is Target.PROGRAM:
        end = depth + DESCRIPTOR_WORDS
        program = replace(program, layers=program.layers[:1] * (CONFIG.memory.layers + 1))
    elif target is Target.WEIGHT:
        end = depth + 1
        program = replace(program, weights=np.zeros(end, dtype=np.uint32))
    else:
        end = depth + 2
        place = replace(program.placements[graph.output], bank=1, address=depth + 1, words=1)
        program = replace(program, placements={**program.placements, graph.output: place})
    transport = Scripted(CONFIG, CONFIG.identity)
    device = StreamDevice(transport)
    message = (f"the program reaches word {end - 1:,} of {target.name}, which has {depth:,} words on ternary_4x4: it "
               "is damaged")
    with pytest.raises(DeviceError, match=f"^{message}$"):
        device.run(program, input_codes(graph, np.random.default_rng(2), 1))
    assert len(transport.sent) == 1


def test_refuses_inputs_of_another_shape_or_type() -> None:
    graph = random_graph(np.random.default_rng(1), fmt="ternary", act_bits=8, gain_terms=2)
    program = compile_graph(graph, CONFIG)
    device = StreamDevice(Scripted(CONFIG, CONFIG.identity))
    codes = input_codes(graph, np.random.default_rng(2), 1)
    shape = ", ".join(map(str, graph.tensor(graph.input).shape))
    for wrong in (codes.astype(np.int16), codes[0], codes[:0], codes[..., :-1]):
        message = f"input must be int8 codes of shape (batch, {shape}), not {wrong.dtype} of shape {wrong.shape}"
        with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
            device.run(program, wrong)


def test_a_built_in_program_is_not_loaded() -> None:
    graphs = [random_graph(np.random.default_rng(seed), fmt="ternary", act_bits=8, gain_terms=2) for seed in (1, 2)]
    program, other = (compile_graph(graph, CONFIG) for graph in graphs)
    transport = Scripted(CONFIG, CONFIG.identity, program.contents.identity)
    device = StreamDevice(transport)
    device.run(program, input_codes(graphs[0], np.random.default_rng(2), 1))
    first = transport.sent[1]
    assert first[0] & 0xFF == Opcode.WRITE and first[0] >> 8 in (Target.ACTIVATION_0, Target.ACTIVATION_1)
    message = (f"the device has the program {program.contents.identity:08x} built in and cannot load another, "
               f"{other.contents.identity:08x}")
    with pytest.raises(DeviceError, match=f"^{message}$"):
        device.run(other, input_codes(graphs[1], np.random.default_rng(2), 1))
    assert len(transport.sent) == 2
