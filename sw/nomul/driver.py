"""The driver: runs programs on devices, and reads back what they computed.

A :class:`Device` runs a program on a batch of inputs. A :class:`StreamDevice` is one behind a pair of host streams,
whatever carries them: a Verilated model, later a serial line or a bus. The golden model is a device too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import CAUSES, DESCRIPTOR_WORDS, HOST_BITS, Opcode, Target, target_depth, target_word_bits

from .compiler.input_packing import pack_input
from .compiler.packing import pack_words, unpack_words
from .compiler.program import Program
from .compiler.traffic import COMMAND_WORDS, run_words
from .graph import Graph, Tensor
from .schedule import Schedule, layers_by_steps, run_by_steps

__all__ = ["Device", "DeviceError", "RunResult", "StreamDevice", "Transport", "check_inputs", "check_sample",
           "host_words", "tensor_words"]

Words = npt.NDArray[np.uint32]
Codes = npt.NDArray[np.int8]


class DeviceError(RuntimeError):
    """A device that does not do what a program needs: another array, no answer, a wrong answer."""


@dataclass(frozen=True)
class RunResult:
    """What a device computed.

    Parameters
    ----------
    outputs : int8 array, shape (batch, channels, height, width)
        Output codes.
    counters : tuple of mapping, one per sample
        Cycles by cause; empty where the device does not count.
    """

    outputs: Codes
    counters: tuple[Mapping[str, int], ...]


@runtime_checkable
class Device(Protocol):
    """Anything that runs programs."""

    def run(self, program: Program | Schedule, codes: Codes) -> RunResult:
        """Run a program on input codes, int8 (batch, channels, height, width)."""
        ...


class Transport(Protocol):
    """Carries host words to an accelerator and back."""

    @property
    def config(self) -> ArrayConfig:
        """The accelerator at the other end, as far as is known here."""
        ...

    def transfer(self, words: Words, replies: int) -> Words:
        """Send ``words`` and return the ``replies`` words that the accelerator answers.

        Raises
        ------
        DeviceError
            If the answer does not come.
        """
        ...

    def feed(self, words: Words) -> None:
        """Give the weights that every run takes from now on, host words in the order of use.

        Only called for accelerators that do not keep their weights.
        """
        ...


class StreamDevice:
    """An accelerator behind a transport.

    The program stays loaded between calls; another one is loaded when it is first run.

    Parameters
    ----------
    transport : Transport
        How to reach it.

    Raises
    ------
    DeviceError
        If the accelerator that answers is not the one that the transport promises.
    """

    #: Host words sent at most at a time; keeps the memory of long batches bounded.
    CHUNK_WORDS = 1 << 20

    def __init__(self, transport: Transport):
        self.transport = transport
        self._loaded: Program | None = None
        identity, self._baked = map(int, self.transport.transfer(_command(Opcode.READ, Target.IDENTITY, 0, 2), 2))
        if identity != self.config.identity:
            raise DeviceError(f"the device answers as {identity:08x}, expected {self.config.identity:08x} "
                              f"({self.config.name}): it was generated from another configuration")

    @property
    def config(self) -> ArrayConfig:
        """The accelerator's configuration."""
        return self.transport.config

    def load(self, program: Program) -> None:
        """Load descriptors, parameters and weights, unless the program before had the same.

        If a program is part of the accelerator, nothing is loaded.

        Raises
        ------
        DeviceError
            If the program was compiled for another array, reaches beyond its memories, or the accelerator has another
            one built in.
        """
        if program.config.hash != self.config.hash:
            raise DeviceError(f"the program was compiled for {program.config.name} ({program.config.identity:08x}), "
                              f"the device is {self.config.name} ({self.config.identity:08x}): compile it again")
        _check_reach(program)
        if self._baked:
            if program.contents.identity != self._baked:
                raise DeviceError(f"the device has the program {self._baked:08x} built in and cannot load another, "
                                  f"{program.contents.identity:08x}")
            self._loaded = program
            return
        before, self._loaded = self._loaded, None
        for target, words in _differing(program, before):
            self.transport.transfer(self._write(target, 0, words), 0)
        self._loaded = program

    def run(self, program: Program | Schedule, codes: Codes | tuple[Codes, ...]) -> RunResult:
        """Run a program on input codes, int8 (batch, channels, height, width).

        A program whose graph has several inputs takes a tuple of them.
        """
        graph = program.graph
        inputs = check_inputs(codes, graph)
        if isinstance(program, Schedule):
            return run_by_steps(program, inputs[0], self.run)
        target = graph.tensor(graph.output)
        if self._loaded is not program:
            self.load(program)
        self._feed(program)
        run = np.concatenate([
            _command(Opcode.RUN, 0, 0, len(program.layers)),
            _command(Opcode.READ, Target.COUNTER, 0, len(CAUSES)),
            self._read_tensor(program, target),
        ])
        answer_words = len(CAUSES) + self._tensor_host_words(target, program)
        answers = []
        for samples in self._chunks(inputs, program):
            sent = [np.concatenate([*self._write_inputs(program, sample), run]) for sample in samples]
            answers.append(self.transport.transfer(np.concatenate(sent), answer_words * len(sent)))
        replies = np.concatenate(answers).reshape(len(inputs[0]), answer_words)
        counters = tuple(_counters(row) for row in replies[:, :len(CAUSES)])
        return RunResult(self._from_words(replies[:, len(CAUSES):], target, program), counters)

    def run_layers(self, program: Program | Schedule, sample: Codes | tuple[Codes, ...]
                   ) -> Iterator[tuple[str, Codes, dict[str, int]]]:
        """Run one sample layer by layer, int8 (channels, height, width).

        Yields
        ------
        name : str
            Name of the node; concatenations have no layers and no turn.
        output : int8 array, shape (channels, height, width)
            What it wrote.
        counters : dict
            Cycles of the node, run on its own (so that each layer fetches its first descriptor and weights itself).
        """
        graph = program.graph
        inputs = check_sample(sample, graph)
        if isinstance(program, Schedule):
            yield from layers_by_steps(program, inputs[0][0], self.run_layers)
            return
        if self._loaded is not program:
            self.load(program)
        (packed,) = next(self._chunks(inputs, program))
        self.transport.transfer(np.concatenate(self._write_inputs(program, packed)), 0)
        first = 0
        for node in graph.computing:
            count = sum(layer.node == node.name for layer in program.layers)
            target = graph.tensor(node.output)
            self._feed(replace(program, layers=program.layers[first:first + count]))
            words = self.transport.transfer(np.concatenate([
                _command(Opcode.RUN, 0, first * DESCRIPTOR_WORDS, count),
                _command(Opcode.READ, Target.COUNTER, 0, len(CAUSES)),
                self._read_tensor(program, target),
            ]), len(CAUSES) + self._tensor_host_words(target, program))
            first += count
            counters = _counters(words[:len(CAUSES)])
            yield node.name, self._from_words(words[None, len(CAUSES):], target, program)[0], counters

    def _feed(self, program: Program) -> None:
        """Provide what the program's layers take of weights, if they come from outside."""
        if self.config.weights == "stream":
            self.transport.feed(program.weight_stream)

    # Words -----------------------------------------------------------------------------------------------------

    def _host_words(self, target: Target) -> int:
        """Host words of one word of a target."""
        return -(-target_word_bits(self.config, target) // HOST_BITS)

    def _tensor_host_words(self, tensor: Tensor, program: Program) -> int:
        return program.placements[tensor.name].words * self._host_words(Target.ACTIVATION_0)

    def _write(self, target: Target, address: int, words: Words) -> Words:
        """A write command with its data."""
        return np.concatenate([_command(Opcode.WRITE, target, address, len(words) // self._host_words(target)), words])

    def _write_inputs(self, program: Program, sample: Sequence[Codes]) -> list[Words]:
        """Write all inputs of one sample."""
        return [self._write_input(program, name, codes)
                for name, codes in zip(program.graph.inputs, sample, strict=True)]

    def _write_input(self, program: Program, name: str, codes: Codes) -> Words:
        placement = program.placements[name]
        # Next to concatenated tensors it matters what lanes without a channel hold.
        words = tensor_words(program, name, codes, fill=program.graph.tensor(name).zero_point)
        return self._write(_bank(placement.bank), placement.address, words)

    def _read_tensor(self, program: Program, tensor: Tensor) -> Words:
        placement = program.placements[tensor.name]
        return _command(Opcode.READ, _bank(placement.bank), placement.address, placement.words)

    def _from_words(self, words: Words, tensor: Tensor, program: Program) -> Codes:
        """Undo :func:`tensor_words`: (batch, host words) to (batch, channels, height, width)."""
        batch, depth = len(words), self.config.depth
        rows = words.reshape(-1, self._host_words(Target.ACTIVATION_0))
        values = unpack_words(rows, self.config.act_bits, depth).astype(np.int8)
        planes = values.reshape(batch, -1, tensor.height * tensor.width, depth).transpose(0, 1, 3, 2)
        lanes = program.placements[tensor.name].lanes(tensor.channels)
        return planes.reshape(batch, -1, tensor.height, tensor.width)[:, lanes]

    def _chunks(self, inputs: tuple[Codes, ...], program: Program) -> Iterator[list[tuple[Codes, ...]]]:
        """Cut a batch into the samples that are sent at a time, with the input packed."""
        graph = program.graph
        step = max(1, self.CHUNK_WORDS // sum(self._tensor_host_words(graph.tensor(name), program)
                                              for name in graph.inputs))
        for start in range(0, len(inputs[0]), step):
            first, *others = (codes[start:start + step] for codes in inputs)
            yield list(zip(pack_input(graph, program.input_window, first), *others, strict=True))


def check_inputs(codes: Codes | tuple[Codes, ...], graph: Graph) -> tuple[Codes, ...]:
    """Check a batch of input codes, one array or one for every input of the graph.

    Raises
    ------
    DeviceError
        If they are not int8, empty, or of another shape than the network's input.
    """
    inputs = tuple(map(np.asarray, codes)) if isinstance(codes, tuple) else (np.asarray(codes),)
    if len(inputs) != len(graph.inputs):
        raise DeviceError(f"the network has {len(graph.inputs)} inputs, not {len(inputs)}")
    for given, tensor in zip(inputs, map(graph.tensor, graph.inputs), strict=True):
        if given.dtype != np.int8 or given.ndim != 4 or given.shape[1:] != tensor.shape or not len(given):
            raise DeviceError(f"input must be int8 codes of shape (batch, {', '.join(map(str, tensor.shape))}), "
                              f"not {given.dtype} of shape {given.shape}")
        if len(given) != len(inputs[0]):
            raise DeviceError(f"all inputs must have as many samples as the first, {len(inputs[0])}, "
                              f"not {len(given)}")
    return inputs


def check_sample(sample: Codes | tuple[Codes, ...], graph: Graph) -> tuple[Codes, ...]:
    """Check one sample, as :func:`check_inputs` checks a batch, and make it a batch of one."""
    inputs = sample if isinstance(sample, tuple) else (sample,)
    return check_inputs(tuple(np.asarray(codes)[np.newaxis] for codes in inputs), graph)


def tensor_words(program: Program, name: str, codes: Codes, *, fill: int) -> Words:
    """Lay a tensor out in activation words, ``rows * lanes`` channels of a pixel each; host words, uint32 (n,).

    Parameters
    ----------
    name : str
        The tensor, which has a place in the program.
    codes : int8 array, shape (channels, height, width)
        What it holds.
    fill : int
        What lanes without a channel hold.
    """
    placement, depth = program.placements[name], program.config.depth
    channels, height, width = codes.shape
    pixels = height * width
    words = placement.words // pixels
    padded = np.full((words * depth, pixels), fill, dtype=np.int8)
    padded[placement.lanes(channels)] = codes.reshape(channels, -1)
    per_pixel = padded.reshape(words, depth, -1).transpose(0, 2, 1).reshape(-1, depth)
    return pack_words(per_pixel, program.config.act_bits).reshape(-1)


def host_words(program: Program | Schedule) -> int:
    """Words that a :class:`StreamDevice` sends and receives to load a program and run it on one sample."""
    if isinstance(program, Program):
        return _load_words(program, None) + _run_words(program)
    before, words = None, 0
    for step in program.steps:
        words += _load_words(step.program, before) + len(step.turns) * _run_words(step.program)
        before = step.program
    return words


def _load_words(program: Program, before: Program | None) -> int:
    return sum(COMMAND_WORDS + len(words) for _, words in _differing(program, before))


def _run_words(program: Program) -> int:
    return run_words(program.config, (program.placements[name].words
                                      for name in (*program.graph.inputs, program.graph.output)))


def _differing(program: Program, before: Program | None) -> Iterator[tuple[Target, Words]]:
    """The memories of a program that are not as another's; weights only where they are in a memory."""
    memories = {Target.PROGRAM: "descriptors", Target.PARAMETER: "parameters"}
    if program.config.weights == "memory":
        memories[Target.WEIGHT] = "weights"
    for target, name in memories.items():
        words = getattr(program, name)
        if len(words) and (before is None or not np.array_equal(words, getattr(before, name))):
            yield target, words


def _check_reach(program: Program) -> None:
    """Refuse a program whose commands would count beyond a memory: the hardware keeps no more bits than it needs."""
    config = program.config
    ends = [(target, len(words) // -(-target_word_bits(config, target) // HOST_BITS))
            for target, words in _differing(program, None)]
    ends += [(Target.PROGRAM, len(program.layers) * DESCRIPTOR_WORDS)]
    ends += [(_bank(place.bank), place.address + place.words) for place in program.placements.values()]
    for target, end in ends:
        if end > (depth := target_depth(config, target)):
            raise DeviceError(f"the program reaches word {end - 1:,} of {target.name}, which has {depth:,} words on "
                              f"{config.name}: it is damaged")


def _counters(cycles: Words) -> dict[str, int]:
    """Counters of a run, given its cycles by cause."""
    return {"total": int(cycles.sum()), **dict(zip(CAUSES, map(int, cycles), strict=True))}


def _bank(index: int) -> Target:
    return (Target.ACTIVATION_0, Target.ACTIVATION_1)[index]


def _command(opcode: Opcode, target: int, address: int, count: int) -> Words:
    """The three words of a command."""
    return np.array([opcode | target << 8, address, count], dtype=np.uint32)
