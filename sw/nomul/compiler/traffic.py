"""Traffic: words that go between the host and an accelerator."""

from collections.abc import Iterable

from nomul_hw.config import ArrayConfig
from nomul_hw.descriptor import CAUSES, HOST_BITS, Target, target_word_bits

__all__ = ["COMMAND_WORDS", "run_words", "transfer_words"]

#: Host words of a command, before its data.
COMMAND_WORDS = 3


def transfer_words(config: ArrayConfig, target: Target, count: int) -> int:
    """Host words that it takes to write or read words of a target, the command among them; none for none."""
    return COMMAND_WORDS + count * -(-target_word_bits(config, target) // HOST_BITS) if count else 0


def run_words(config: ArrayConfig, tensors: Iterable[int]) -> int:
    """Host words that a run takes: for its start, its counters, and its tensors, which have so many words each."""
    return (sum(transfer_words(config, Target.ACTIVATION_0, words) for words in tensors) + COMMAND_WORDS
            + transfer_words(config, Target.COUNTER, len(CAUSES)))
