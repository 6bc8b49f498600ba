"""Contents of a baked program's memories: the words that a host would write, and the files that Verilog reads."""

import numpy as np
import pytest

from nomul_hw.config import ArrayConfig
from nomul_hw.contents import Contents, Table
from nomul_hw.descriptor import HOST_BITS, Target, target_word_bits

from .vectors import join

CONFIG = ArrayConfig("exp5", 3, 5, lanes=2)  # words of weights of 50 bits


def host_words(rng: np.random.Generator, config: ArrayConfig, target: Target, count: int) -> np.ndarray:
    """Words as a host sends them; what they have beyond the target's bits does not matter."""
    return rng.integers(0, 1 << 32, count * -(-target_word_bits(config, target) // HOST_BITS), dtype=np.uint32)


def contents(seed: int, config: ArrayConfig = CONFIG, weights: int = 11) -> tuple[Contents, dict[Target, np.ndarray]]:
    rng = np.random.default_rng(seed)
    words = {target: host_words(rng, config, target, count) for target, count in (
        (Target.PROGRAM, 40), (Target.PARAMETER, 3), (Target.WEIGHT, weights))}
    return Contents.from_host_words(config, program=words[Target.PROGRAM], parameters=words[Target.PARAMETER],
                                    weights=words[Target.WEIGHT]), words


def test_words():
    made, sent = contents(1)
    assert list(made.tables) == [Target.PROGRAM, Target.PARAMETER, Target.WEIGHT]
    for target, table in made.tables.items():
        bits = target_word_bits(CONFIG, target)
        size = -(-bits // HOST_BITS)
        expected = [join(parts, HOST_BITS) % (1 << bits) for parts in sent[target].reshape(-1, size).tolist()]
        assert (table.bits, table.words) == (bits, tuple(expected))
        lines = table.text.splitlines()
        assert [int(line, 16) for line in lines] == expected
        assert {len(line) for line in lines} == {-(-bits // 4)}
    assert [table.file for table in made.tables.values()] == ["program.hex", "parameter.hex", "weight.hex"]


def test_small_memories_have_two_words():
    made, _ = contents(1, weights=0)
    assert made.tables[Target.WEIGHT].words == (0, 0)
    assert contents(1, weights=1)[0].tables[Target.WEIGHT].words[1] == 0


def test_streamed_weights_are_no_contents():
    made, _ = contents(1, ArrayConfig("exp5", 3, 5, lanes=2, weights="stream"))
    assert list(made.tables) == [Target.PROGRAM, Target.PARAMETER]


def test_identity_tells_programs_apart():
    identities = [contents(seed)[0].identity for seed in (1, 2)]
    assert 0 < min(identities) and max(identities) < 1 << 32 and identities[0] != identities[1]
    assert contents(1)[0].identity == identities[0]
    for target in (Target.PROGRAM, Target.PARAMETER, Target.WEIGHT):
        made, _ = contents(1)
        table = made.tables[target]
        changed = Table(table.file, table.bits, (table.words[0] ^ 1, *table.words[1:]))
        assert Contents({**made.tables, target: changed}).identity != identities[0]


@pytest.mark.parametrize("bits, digits", [(1, 1), (4, 1), (5, 2), (64, 16)])
def test_file(bits, digits, tmp_path):
    table = Table("table.hex", bits, (1, (1 << bits) - 1))
    table.write(tmp_path / table.file)
    low, high = (tmp_path / "table.hex").read_text().splitlines()
    assert low == "1".zfill(digits) and int(high, 16) == (1 << bits) - 1 and len(high) == digits
