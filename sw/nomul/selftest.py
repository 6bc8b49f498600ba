"""Self-tests: what an accelerator with a program built in is sent, and what it has to answer to that.

The words are the driver's own, which talks to nobody here; the answers are the golden model's outputs and the
estimate's cycles. So a self-test passes if every bit of the outputs is right, and every counter.
"""

import numpy as np

from nomul_hw.bus.selftest import SelfTestBus, masked_crc
from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import CAUSES

from .compiler.program import Program
from .driver import Codes, StreamDevice, Words, tensor_words
from .inputs import random_codes

__all__ = ["self_test"]


def self_test(program: Program, clock: int, codes: Codes | None = None) -> SelfTestBus:
    """Make the self-test of an accelerator that has a program built in.

    Parameters
    ----------
    program : Program
        The accelerator's; its weights lie in memory.
    clock : int
        Frequency of the clock in Hz.
    codes : int8 array, shape (batch, channels, height, width), optional
        Inputs; all of them are run, and take their room in memory. A random one if not given.

    Returns
    -------
    SelfTestBus
        To put around ``Accelerator(program.config, program.contents)``, or for :func:`nomul_hw.verilog.generate`.

    Raises
    ------
    DeviceError
        If the inputs do not fit the network.
    """
    from nomul_sim.golden import run

    if codes is None:
        codes = random_codes(program.graph, 1, 0)
    tape = _Tape(program)
    StreamDevice(tape).run(program, codes)
    accounting = program.estimate().accounting
    counters = np.array([accounting[cause] for cause in CAUSES], dtype=np.uint32)
    name = program.graph.output
    outputs = run(program.graph, codes)[name]
    words = [part for sample in outputs for part in (counters, tensor_words(program, name, sample, fill=0))]
    # What lanes without a channel hold is no matter.
    used = [np.full_like(counters, 0xFFFFFFFF), tensor_words(program, name, np.full_like(outputs[0], -1), fill=0)]
    answers, masks = (np.concatenate(parts).tolist() for parts in (words, used * len(outputs)))
    return SelfTestBus(clock, tuple(np.concatenate(tape.sent).tolist()), tuple(masks), masked_crc(answers, masks))


class _Tape:
    """Records what the driver sends to a device with a program built in; results are zeros."""

    def __init__(self, program: Program):
        self.config: ArrayConfig = program.config
        self.sent: list[Words] = []
        self._identity = np.array([program.config.identity, program.contents.identity], dtype=np.uint32)
        self._asked = False

    def transfer(self, words: Words, replies: int) -> Words:
        if not self._asked:  # the driver's first question
            self._asked = True
            return self._identity
        self.sent.append(words)
        return np.zeros(replies, dtype=np.uint32)

    def feed(self, words: Words) -> None:
        pass  # the hardware's half refuses streamed weights
