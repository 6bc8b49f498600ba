"""Tiling: which pieces a network that does not fit is cut into."""

import re
from dataclasses import replace

import pytest

from nomul.compiler import CompileError
from nomul.compiler.cutting import cut_piece
from nomul.compiler.plan import plan_passes
from nomul.compiler.tiling import Tiling, tile_network
from nomul.estimate import estimate_network
from nomul.graph import Concat
from nomul.inputs import load_shape
from nomul.schedule import Part
from nomul.shapes import LayerShape, NetworkShape, TensorShape
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.formats import get_format
from nomul_hw.timing import run_cycles

#: Large memories, of which a test takes some away.
CONFIG = ArrayConfig(get_format("ternary"), rows=4, cols=4, memory=MemoryConfig(1 << 16, 1 << 16, 1 << 12, 1024, 100))


def chain(*layers: LayerShape, source: tuple[int, int, int] = (4, 12, 10), channels: int = 4) -> NetworkShape:
    """Layers of one number of output channels, which name what they read; the first reads the input ``x``."""
    tensors = {"x": TensorShape("x", *source)}
    for layer in layers:
        read = tensors[layer.input]
        sizes = ((size + sum(layer.padding[axis::2]) - (layer.kernel[axis] - 1) * layer.dilation[axis] - 1)
                 // layer.stride[axis] + 1 for axis, size in enumerate((read.height, read.width)))
        tensors[layer.output] = TensorShape(layer.output, channels if layer.kind == "conv" else read.channels, *sizes)
    return NetworkShape(tuple(tensors.values()), layers, "x", layers[-1].output)


def conv(name: str, source: str, kernel: int = 3, stride: int = 1, skip: str | None = None,
         groups: int = 1) -> LayerShape:
    pad = kernel // 2
    return LayerShape(name, "conv", source, name, (kernel, kernel), (stride, stride), (pad, pad, pad, pad), skip=skip,
                      groups=groups)


def small(**memory: int) -> ArrayConfig:
    return replace(CONFIG, memory=replace(CONFIG.memory, **memory))


def layers(tiling: Tiling) -> list[tuple[str, ...]]:
    """Names of the layers of every run."""
    return [tuple(layer.name for layer in piece.network.layers) for piece in tiling.pieces]


def cycles(tiling: Tiling, config: ArrayConfig) -> int:
    return sum(counters["total"] for piece in tiling.pieces for counters in run_cycles(
        config, [layer.values for layer in plan_passes(piece.network, config).layers]))


def outputs(tiling: Tiling, tensor: str) -> set[tuple[int, int]]:
    """Channels and rows of a tensor that pieces leave behind."""
    parts = [piece.parts[tensor] for piece in tiling.pieces if piece.network.output == tensor]
    return {(channel, row) for part in parts for channel in range(part.channel, part.channel_end)
            for row in range(part.row, part.row_end)}


# Cutting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows, needed, padding", [
    (range(0, 3), (0, 4), (1, 1, 0, 1)),
    (range(4, 7), (3, 8), (0, 1, 0, 1)),
    (range(10, 12), (9, 12), (0, 1, 1, 1)),
    (range(0, 12), (0, 12), (1, 1, 1, 1)),
])
def test_a_band_reads_its_halo_and_keeps_its_padding(rows, needed, padding):
    network = chain(conv("a", "x"))
    piece = cut_piece(network, network.nodes, rows)
    assert piece.parts == {"a": Part("a", 0, 4, rows.start, rows.stop), "x": Part("x", 0, 4, *needed)}
    assert piece.network.layers[0].padding == padding
    assert piece.network.tensor("x").height == needed[1] - needed[0]
    assert piece.padded == (padding[0] + padding[2] > 0)


def test_bands_with_stride_and_dilation():
    layer = LayerShape("a", "conv", "x", "a", (3, 1), (2, 1), (3, 0, 0, 0), (2, 1))
    network = chain(layer)
    assert network.tensor("a").height == 6
    first, inner = (cut_piece(network, [layer], rows) for rows in (range(0, 2), range(2, 4)))
    assert (first.parts["x"][3:], first.network.layers[0].padding) == ((0, 4), (3, 0, 0, 0))
    assert (inner.parts["x"][3:], inner.network.layers[0].padding) == ((1, 8), (0, 0, 0, 0))


def test_halos_grow_from_layer_to_layer():
    network = chain(conv("a", "x"), conv("b", "a"), conv("c", "b", 1))
    piece = cut_piece(network, network.nodes, range(5, 7))
    assert {name: part[3:] for name, part in piece.parts.items()} == {
        "c": (5, 7), "b": (5, 7), "a": (4, 8), "x": (3, 9)}


def test_a_residual_over_bands_is_an_input_of_its_own():
    network = chain(conv("a", "x"), conv("b", "a", skip="x"))
    piece = cut_piece(network, network.nodes, range(5, 7))
    assert (piece.network.input, piece.network.more_inputs) == ("x'", ("x",))
    assert piece.parts["x"][3:] == (5, 7) and piece.parts["x'"] == Part("x", 0, 4, 3, 9)
    assert [layer.sources for layer in piece.network.layers] == [("x'",), ("a", "x")]
    whole = cut_piece(network, network.nodes, range(12))
    assert whole.network.more_inputs == () and whole.network.layers == network.layers
    assert cut_piece(network, network.nodes, range(12), own_skips=True).network.more_inputs == ("x",)


def test_layers_that_read_different_rows_of_what_one_makes_stay_apart():
    network = chain(conv("a", "x"), conv("b", "a"), conv("c", "b", skip="a"))
    assert cut_piece(network, network.nodes, range(5, 7)) is None
    assert cut_piece(network, network.nodes[1:], range(5, 7)) is not None
    assert cut_piece(network, network.nodes, range(12)) is not None


def test_rows_of_padding_alone_are_no_band():
    layer = LayerShape("a", "max", "x", "a", padding=(2, 0, 0, 0))
    network = chain(layer)
    assert cut_piece(network, [layer], range(0, 2)) is None
    assert cut_piece(network, [layer], range(0, 3)).parts["x"][3:] == (0, 1)


@pytest.mark.parametrize("layer, channels, reads, groups", [
    (conv("a", "x"), range(2, 4), (0, 8), 1),
    (conv("a", "x", groups=8), range(2, 6), (2, 6), 4),
    (conv("a", "x", groups=2), range(4, 8), (4, 8), 1),
    (LayerShape("a", "max", "x", "a"), range(3, 8), (3, 8), 1),
])
def test_blocks_of_channels(layer, channels, reads, groups):
    network = chain(layer, source=(8, 4, 4), channels=8)
    piece = cut_piece(network, [layer], range(4), channels)
    assert piece.parts["x"][1:3] == reads and piece.block == (channels.start, channels.stop)
    assert piece.network.layers[0].groups == groups
    assert piece.network.tensor("a").channels == len(channels)


# What is chosen ----------------------------------------------------------------------------------------------------


def test_what_fits_is_one_piece():
    network = chain(conv("a", "x"), conv("b", "a"), conv("c", "b", skip="a"))
    (piece,) = tile_network(network, CONFIG).pieces
    assert piece.network.layers == network.layers
    assert cycles(Tiling((piece,), 0), CONFIG) == estimate_network(network, CONFIG).cycles


def test_as_few_bands_as_possible_and_nothing_computed_twice():
    network = chain(*(conv(name, source) for name, source in zip("abcd", "xabc", strict=True)), source=(4, 40, 10))
    config = small(activations=160)
    tiling = tile_network(network, config)
    assert layers(tiling) == [(name,) for name in "abcd" for _ in range(3)]
    assert [piece.parts["b"][3:] for piece in tiling.pieces[3:6]] == [(0, 14), (14, 28), (28, 40)]
    for name in "abcd":
        assert len(outputs(tiling, name)) == 4 * 40 == 4 * sum(
            piece.network.tensor(name).height for piece in tiling.pieces if piece.network.output == name)


def test_words_that_count_make_layers_stay_together():
    network = chain(*(conv(name, source) for name, source in zip("abcd", "xabc", strict=True)), source=(4, 40, 10))
    config = small(activations=160)
    apart, together = (tile_network(network, config, word_cycles=each) for each in (0, 4))
    assert len(set(layers(together))) < len(set(layers(apart)))
    assert together.host_words < apart.host_words
    assert cycles(together, config) > cycles(apart, config)
    assert outputs(together, "d") == outputs(apart, "d")


def test_layers_without_a_halo_stay_together():
    network = chain(conv("a", "x"), conv("b", "a", 1), conv("c", "b", 1), source=(4, 40, 10))
    tiling = tile_network(network, small(activations=160))
    assert set(layers(tiling)) == {("a", "b", "c")}


def test_weights_that_do_not_fit_at_once():
    network = chain(conv("a", "x"), conv("b", "a"), conv("c", "b"), channels=16)
    tiling = tile_network(network, small(weights=200))  # the layers take 36 * 4, 144 * 4 and 144 * 4 words
    assert [(piece.network.output, piece.block) for piece in tiling.pieces] == [
        ("a", (0, 16)), *((name, (first, first + 4)) for name in "bc" for first in range(0, 16, 4))]


def test_streamed_weights_need_no_blocks():
    network = chain(conv("a", "x"), conv("b", "a"), conv("c", "b"), channels=16)
    config = replace(small(weights=16, activations=400), weights="stream")
    assert {piece.block for piece in tile_network(network, config).pieces} == {(0, 16)}


def test_depthwise_layers_and_pools_run_by_channels():
    """Bands would have the host send their halos, blocks of channels have none."""
    network = chain(conv("a", "x", groups=32), LayerShape("b", "max", "a", "b", (3, 3), padding=(1, 1, 1, 1)),
                    source=(32, 12, 10), channels=32)
    tiling = tile_network(network, small(activations=500))
    assert {piece.parts[name][3:] for piece in tiling.pieces for name in piece.parts} == {(0, 12)}
    assert outputs(tiling, "b") == {(channel, row) for channel in range(32) for row in range(12)}


def test_concatenations_are_left_to_the_host_where_they_do_not_fit():
    tensors = (*chain(conv("a", "x"), conv("b", "x"), source=(4, 40, 10)).tensors, TensorShape("ab", 8, 40, 10),
               TensorShape("c", 4, 40, 10))
    network = NetworkShape(tensors, (conv("a", "x"), conv("b", "x"), Concat("ab", ("a", "b"), "ab"), conv("c", "ab")),
                           "x", "c")
    tiling = tile_network(network, small(activations=160))
    assert {piece.network.nodes[0].name for piece in tiling.pieces} == {"a", "b", "c"}
    assert not any(isinstance(node, Concat) for piece in tiling.pieces for node in piece.network.nodes)
    assert any(isinstance(node, Concat) for node in tile_network(network, CONFIG).pieces[0].network.nodes)


# Refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [{"activations": 30}, {"weights": 100}, {"weights": 100, "activations": 30}])
def test_says_what_would_do(memory):
    network = chain(conv("a", "x"), conv("b", "a"), channels=16)
    message = r"^layer '[ab]' does not fit: one row of 4 output channels is the least that runs at a time: memory\."
    with pytest.raises(CompileError, match=message) as caught:
        tile_network(network, small(**memory))
    would_do = {what: int(words) for what, words in re.findall(r"memory\.(\w+) = (\d+) would do", str(caught.value))}
    assert would_do and set(would_do) <= set(memory)
    found = re.search("layer '(.)'", str(caught.value))
    try:
        tile_network(network, small(**{**memory, **would_do}))
    except CompileError as error:  # the next layer needs more
        assert (found[1], re.search("layer '(.)'", str(error))[1]) == ("a", "b")


def test_rows_of_padding_alone_are_refused():
    network = chain(LayerShape("a", "max", "x", "a", padding=(9, 0, 0, 0)))
    message = ("layer 'a' does not fit: all of it, as some of its rows read nothing but padding, is the least that "
               "runs at a time: memory.activations = 210 would do, not 20")
    with pytest.raises(CompileError, match=f"^{re.escape(message)}$"):
        tile_network(network, small(activations=20))


def test_what_has_nothing_to_do_with_memories():
    network = chain(conv("a", "x", kernel=1), source=(4, 2, 2000))
    with pytest.raises(CompileError, match=r"^layer 'a': a row of 2000 output pixels needs memory\.accumulators"):
        tile_network(replace(network, nodes=(replace(network.layers[0], planes=2),)), CONFIG)


# Large networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations, least", [(4096, 0.980), (8192, 0.981)])
def test_resnet18_at_224(activations, least):
    memory = MemoryConfig(activations=activations, weights=8192, lines=112)
    found = estimate_network(load_shape("resnet18", None), ArrayConfig(get_format("ternary"), memory=memory))
    assert found.utilisation >= least and found.runs <= 240 and found.host_words < 4_000_000
    assert found.to_dict()["runs"] == found.runs and found.to_dict()["host_words"] == found.host_words
