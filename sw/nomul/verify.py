"""Compare a device, and fake quantization, with the golden model and the estimate: bit for bit, cycle for cycle.

The whole batch runs as one would run it; then one sample runs once more, layer by layer, reading back what each layer
wrote. Where there is PyTorch, every tensor of every sample is also computed there, on the real numbers that a network
is trained with. The first difference in the order of execution is the one to look at, so it is named: layer, sample,
element. Of three that compute the same, two that agree say which one is wrong.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nomul_hw.descriptor import COUNTERS

from .compiler import Program
from .driver import StreamDevice
from .estimate import estimate_alone
from .graph import Graph
from .schedule import Schedule

if TYPE_CHECKING:
    from .quantize import QuantizedNetwork

__all__ = ["Difference", "FakeCheck", "LayerCheck", "Verification", "mismatching_bits", "verify"]

Codes = npt.NDArray[np.int8]

#: Values of all tensors that fake quantization holds at a time, 8 bytes each.
PART_VALUES = 1 << 24


@dataclass(frozen=True)
class Difference:
    """One value that the device and the golden model disagree on.

    Parameters
    ----------
    layer : str
        The node that wrote it.
    sample : int
        Index in the batch.
    element : (int, int, int)
        Channel, row, column.
    expected, found : int
        Code of the golden model, code of the device.
    """

    layer: str
    sample: int
    element: tuple[int, int, int]
    expected: int
    found: int

    def __str__(self) -> str:
        channel, row, column = self.element
        return (f"layer {self.layer!r}, sample {self.sample}, channel {channel}, row {row}, column {column}: "
                f"expected {self.expected}, found {self.found}")


@dataclass(frozen=True)
class LayerCheck:
    """One layer of the sample that runs layer by layer.

    Parameters
    ----------
    name : str
        The node.
    mismatches : int
        Output bits that differ from the golden model's.
    cycles, estimated_cycles : int
        Of the layer on its own: it fetches its descriptor and its first weights itself.
    """

    name: str
    mismatches: int
    cycles: int
    estimated_cycles: int


@dataclass(frozen=True)
class FakeCheck:
    """Fake quantization in PyTorch against the golden model, in every tensor of every sample.

    Parameters
    ----------
    bits : int
        Bits of the codes that were compared.
    mismatches : int
        How many of them differ.
    first : Difference or None
        The first wrong code; ``found`` is fake quantization's.
    skipped : str or None
        Why nothing was compared, where nothing was.
    """

    bits: int = 0
    mismatches: int = 0
    first: Difference | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Parameters
    ----------
    images : int
        Samples of the batch.
    bits : int
        Output bits that were compared over the batch.
    mismatches : int
        How many of them differ.
    cycles : tuple of int
        Cycles of each sample.
    estimated_cycles : int
        Cycles that the estimate gives for a sample.
    accounting, estimated_accounting : mapping of str to int
        Cycles by cause; measured on the first sample whose account differs, or else on the first.
    layers : tuple of LayerCheck
        The sample that ran layer by layer.
    first : Difference or None
        The first value of the device that is not the golden model's.
    fake : FakeCheck
        What fake quantization in PyTorch computes.
    """

    images: int
    bits: int
    mismatches: int
    cycles: tuple[int, ...]
    estimated_cycles: int
    accounting: Mapping[str, int]
    estimated_accounting: Mapping[str, int]
    layers: tuple[LayerCheck, ...]
    first: Difference | None
    fake: FakeCheck = FakeCheck()

    @property
    def cycle_differences(self) -> int:
        """Samples whose cycles are not those of the estimate."""
        return sum(cycles != self.estimated_cycles for cycles in self.cycles)

    @property
    def ok(self) -> bool:
        """Whether nothing differs: no bit, no cycle, no cause of a cycle."""
        return (not self.mismatches and not self.cycle_differences and self.first is None and not self.fake.mismatches
                and self.accounting == self.estimated_accounting
                and all(not layer.mismatches and layer.cycles == layer.estimated_cycles for layer in self.layers))

    @property
    def suspect(self) -> str | None:
        """Which of the three is wrong in the first wrong code, by the other two; None where they do not say."""
        device, fake = self.first, self.fake.first
        if device is not None and device == fake:
            return "golden model"
        if device is not None and fake is None and not self.fake.skipped:
            return "device"
        return "fake quantization" if fake is not None and device is None else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "ok": self.ok,
            "images": self.images,
            "bits": self.bits,
            "mismatches": self.mismatches,
            "rtl_cycles": self.cycles[0],
            "estimated_cycles": self.estimated_cycles,
            "cycle_differences": self.cycle_differences,
            "accounting": dict(self.accounting),
            "estimated_accounting": dict(self.estimated_accounting),
            "layers": [vars(layer) for layer in self.layers],
            "first_mismatch": _plain(self.first),
            "fake_quant": {**vars(self.fake), "first": _plain(self.fake.first)},
            "suspect": self.suspect,
        }


def _plain(difference: Difference | None) -> dict[str, Any] | None:
    return None if difference is None else {**vars(difference), "element": list(difference.element)}


def mismatching_bits(expected: Codes, found: Codes) -> int:
    """Count the bits that differ."""
    return int(np.bitwise_count(expected.view(np.uint8) ^ found.view(np.uint8)).sum(dtype=np.int64))


def _first_difference(layer: str, sample: int, expected: Codes, found: Codes) -> Difference | None:
    """Find the first wrong value of one sample, arrays (channels, height, width)."""
    wrong = np.argwhere(expected != found)
    if not len(wrong):
        return None
    channel, row, column = (int(i) for i in wrong[0])
    return Difference(layer, sample, (channel, row, column), int(expected[channel, row, column]),
                      int(found[channel, row, column]))


def _check_fake(graph: Graph, network: "QuantizedNetwork | None", codes: Codes,
                expected: Mapping[str, Codes]) -> FakeCheck:
    """Run fake quantization, and compare all tensors with the golden model's."""
    try:
        import torch
    except ModuleNotFoundError:
        return FakeCheck(skipped="PyTorch is not installed")
    from .quantize.config import QuantizeError
    from .quantize.fake_quant import FakeQuant, codes_of

    source = graph.tensor(graph.input)
    if network is not None and not {source} <= set(network.start.tensors) <= set(graph.tensors):
        raise QuantizeError("The program was not made from this network: its tensors are others")
    try:
        module = FakeQuant(graph) if network is None else network
    except QuantizeError as error:
        return FakeCheck(skipped=str(error))
    maker = {graph.input: "input", **{node.output: node.name for node in graph.nodes}}
    part = max(1, PART_VALUES // sum(int(np.prod(tensor.shape)) for tensor in graph.tensors))
    bits = mismatches = 0
    first: Difference | None = None
    for start in range(0, len(codes), part):
        samples = slice(start, start + part)
        reals = np.ldexp(codes[samples].astype(np.float64) - source.zero_point, source.exponent)
        with torch.no_grad():
            tensors = codes_of(graph, module.tensors(torch.from_numpy(reals)))
        found: list[Difference] = []
        for name, tensor in tensors.items():
            fake, golden = tensor.numpy(), expected[name][samples]
            bits += fake.size * graph.act_bits
            mismatches += mismatching_bits(golden, fake)
            for index in np.flatnonzero((golden != fake).any(axis=(1, 2, 3)))[:1].tolist():
                difference = _first_difference(maker[name], start + index, golden[index], fake[index])
                found += [difference] if difference else []
        if first is None and found:
            first = min(found, key=lambda difference: difference.sample)  # of these the one that is executed first
    return FakeCheck(bits, mismatches, first)


def verify(program: Program | Schedule, codes: Codes, device: StreamDevice, *, layers: bool = True,
           network: "QuantizedNetwork | None" = None,
           progress: Callable[[str], None] | None = None) -> Verification:
    """Run a batch on a device, and compare it with the golden model, fake quantization and the estimate.

    Parameters
    ----------
    program : Program or Schedule
        What to run.
    codes : int8 array, shape (batch, channels, height, width)
        Input codes.
    device : StreamDevice
        The device.
    layers : bool
        Whether to run one sample layer by layer too: the first that is wrong, or else the first.
    network : QuantizedNetwork, optional
        The module that the program was made from: what it computes in mode ``"fake"``, the arithmetic that it trains
        in, is then compared. Without it the program's own graph runs as real arithmetic.
    progress : callable, optional
        Called with what is done next.

    Raises
    ------
    nomul.driver.DeviceError
        If the device was generated for another array, or does not answer.
    nomul.quantize.QuantizeError
        If the program was not made from this network.
    """
    from nomul_sim import golden

    tell = progress or (lambda _: None)
    graph = program.graph
    estimate = program.estimate()
    tell("Golden model")
    expected = golden.run(graph, codes)
    tell("Fake quantization")
    fake = _check_fake(graph, network, codes, expected)
    tell(f"Device: {len(codes)} samples")
    result = device.run(program, codes)
    wrong = np.flatnonzero((expected[graph.output] != result.outputs).any(axis=(1, 2, 3)))
    counted = next((counters for counters in result.counters if dict(counters) != estimate.accounting),
                   result.counters[0])

    checks: list[LayerCheck] = []
    first: Difference | None = None
    if layers:
        tell("Device: layer by layer")
        sample = int(wrong[0]) if len(wrong) else 0
        for name, output, counters in device.run_layers(program, codes[sample]):
            node = next(node for node in graph.computing if node.name == name)
            reference = expected[node.output][sample]
            checks.append(LayerCheck(name, mismatching_bits(reference, output), counters["total"],
                                     estimate_alone(program, name)["total"]))
            first = first or _first_difference(name, sample, reference, output)
    if first is None and len(wrong):
        sample = int(wrong[0])
        last = next(node.name for node in graph.nodes if node.output == graph.output)
        first = _first_difference(last, sample, expected[graph.output][sample], result.outputs[sample])
    return Verification(
        images=len(codes),
        bits=result.outputs.size * graph.act_bits,
        mismatches=mismatching_bits(expected[graph.output], result.outputs),
        cycles=tuple(counters["total"] for counters in result.counters),
        estimated_cycles=estimate.cycles,
        accounting={name: counted[name] for name in COUNTERS},
        estimated_accounting=estimate.accounting,
        layers=tuple(checks),
        first=first,
        fake=fake,
    )
