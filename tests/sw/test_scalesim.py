"""SCALE-Sim: tables of layers are read as it reads them, its totals come out, and mistakes are named by line."""

from dataclasses import replace
from pathlib import Path

import pytest

from nomul.cli import ModelName
from nomul.estimate import estimate_network
from nomul.scalesim import MODELS, TopologyError, estimate_by, load_topology, parse_topology, report_csv
from nomul.shapes import NetworkShape, TensorShape
from nomul_hw.config import ArrayConfig, ConfigError
from nomul_hw.formats import get_format

TOPOLOGIES = Path(__file__).parents[2] / "examples" / "topologies"

HEADINGS = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,\n"


def array(rows: int, cols: int, lanes: int = 1) -> ArrayConfig:
    return ArrayConfig(get_format("ternary"), rows=rows, cols=cols, lanes=lanes)


def table(*lines: str, headings: str = HEADINGS) -> NetworkShape:
    return parse_topology(headings + "\n".join(lines), source="t.csv")


# Tables ------------------------------------------------------------------------------------------------------------


def test_a_convolution():
    network = table("a, 9, 12, 3, 4, 5, 7, 2,")
    (layer,) = network.layers
    assert (network.tensor(layer.input), network.tensor(layer.output)) == (
        TensorShape("a input", 5, 9, 12), TensorShape("a", 7, 4, 5))
    assert (layer.kernel, layer.stride, layer.padding) == ((3, 4), (2, 2), (0, 0, 0, 0))
    assert (network.input, network.output) == ("a input", "a")


def test_windows_may_hang_over_the_edge():
    network = table("a, 10, 11, 3, 4, 5, 7, 3,")
    assert network.layers[0].padding == (0, 0, 2, 2) and network.tensor("a") == TensorShape("a", 7, 4, 4)


def test_strides_of_their_own():
    """SCALE-Sim reads one stride and writes two."""
    headings = HEADINGS.replace("Strides", "Stride height, Stride width")
    (layer,) = table("a, 9, 9, 3, 3, 1, 1, 2, 1", headings=headings).layers
    assert layer.stride == (2, 1)


@pytest.mark.parametrize(("headings", "line"), [
    ("Layer, M, N, K,\n", "a, 12, 5, 30,"),
    (HEADINGS, "a, 12, 30, 1, 30, 1, 5, 1,"),  # as SCALE-Sim keeps a product
    (HEADINGS, "a, 2, 6, 1, 1, 30, 5, 1,"),
], ids=["M, N, K", "a kernel as wide as the input", "1x1"])
def test_products_of_matrices(headings, line):
    network = table(line, headings=headings)
    (layer,) = network.layers
    assert network.tensor(layer.input) == TensorShape("a input", 30, 3, 4)
    assert network.tensor(layer.output) == TensorShape("a", 5, 3, 4) and layer.kernel == (1, 1)
    assert network.macs(layer) == 12 * 5 * 30


def test_a_product_of_many_rows_fits_a_descriptor():
    network = table("a, 64000, 16, 16", headings="Layer, M, N, K\n")
    assert network.tensor("a").height == 250
    assert estimate_network(network, array(16, 16), fit=False).layers[0].counters["busy"] == 64000


def test_spaces_commas_notes_and_names():
    tidy = table("a, 5, 5, 3, 3, 2, 6, 1,", "a_2, 3, 3, 1, 1, 6, 2, 1,", "layer 3, 1, 1, 1, 1, 2, 2, 1,")
    untidy = table("  a,5, 5,3,3 ,2,6,1,,, 110, note", ",,,,,,,,", "", "a, 3,3,1,1,6,2,1", ", 1,1,1,1,2,2,1,  ",
                   headings="anything\r\n")
    assert untidy == tidy


def test_batches_and_sparsity_of_one_are_no_matter():
    line = "a, 5, 5, 3, 3, 2, 6, 1, "
    assert table(line) == table(line + "1,", headings=HEADINGS[:-1] + " Batch Size,\n")
    assert table(line) == table(line + "4:4,", headings=HEADINGS[:-1] + " Sparsity,\n")


@pytest.mark.parametrize(("text", "message"), [
    ("", "t.csv: no layers; a line of headings comes first, then a line per layer"),
    (HEADINGS, "t.csv: no layers; a line of headings comes first, then a line per layer"),
    (HEADINGS + "\na, 5, 5, 3, 3, 2, 6,", "t.csv:3: '' is not a positive integer"),
    (HEADINGS + "a, 5, 5, 3", ("t.csv:2: a line of 4 columns; expected name, input height, input width, kernel height, "
                               "kernel width, channels, filters, stride")),
    (HEADINGS + "a, 5, 5, 3, x, 2, 6, 1,", "t.csv:2: 'x' is not a positive integer"),
    (HEADINGS + "a, 5, 5, 3, 3, 0, 6, 1,", "t.csv:2: '0' is not a positive integer"),
    (HEADINGS + "a, 5, 5, 3, 3, -2, 6, 1,", "t.csv:2: '-2' is not a positive integer"),
    (HEADINGS + "a, 5, 5, 3, 3, 2.0, 6, 1,", "t.csv:2: '2.0' is not a positive integer"),
    (HEADINGS + "a, 5, 5, 3, 3, ²,6,1,", "t.csv:2: '²' is not a positive integer"),
    (HEADINGS + "a, 5, 5, 3, 6, 2, 6, 1,", "t.csv:2: a kernel of 3 x 6 is larger than its input of 5 x 5"),
    ("Layer, M, N, K,\na, 5, 5", "t.csv:2: a line of 3 columns; expected name, M, N, K"),
    (HEADINGS[:-1] + " Batch Size,\na, 5, 5, 3, 3, 2, 6, 1, 8,", "t.csv:2: a batch size of 8 is not supported"),
    ("Layer, M, N, K, Sparsity,\na, 5, 5, 3, 2:4,", "t.csv:2: a sparsity of 2:4 is not supported"),
], ids=lambda text: text[-40:])
def test_lines_that_are_no_layers(text, message):
    with pytest.raises(TopologyError) as caught:
        parse_topology(text, source="t.csv")
    assert str(caught.value) == message


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(TopologyError, match=r"no\.csv: No such file or directory"):
        load_topology(tmp_path / "no.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyError, match=r"bytes\.csv: not a text file"):
        load_topology(tmp_path / "bytes.csv")
    (tmp_path / "marked.csv").write_text("\ufeff" + HEADINGS + "a, 5, 5, 3, 3, 2, 6, 1,", encoding="utf-8")
    assert load_topology(tmp_path / "marked.csv") == table("a, 5, 5, 3, 3, 2, 6, 1,")


# Models ------------------------------------------------------------------------------------------------------------


def test_models_by_hand():
    """M = 9, K = 18, N = 6 on 4 x 4: 3 x 2 folds of outputs, 5 x 2 of weights. Then M = 3, K = 5, N = 4."""
    network = table("conv, 5, 5, 3, 3, 2, 6, 1,", "product, 3, 5, 1, 5, 1, 4, 1,")
    expected = {
        "scalesim-os": [3 * 2 * (18 + 4 + 4 - 2) - 1, 5 + 4 + 4 - 2 - 1],
        "scalesim-ws": [5 * 2 * (4 + 4 + 4 + 9 - 2) - 1, 2 * (4 + 4 + 4 + 3 - 2) - 1],
        "gemmini": [3 * 5 * 2 * 4, 2 * 4],
        "overlapped": [5 * 2 * 9 + 10, 2 * 4 + 10],
    }
    for model, cycles in expected.items():
        found = estimate_by(model, network, array(4, 4))
        assert [layer.cycles for layer in found.layers] == cycles and found.cycles == sum(cycles)
        assert found.macs == 9 * 18 * 6 + 3 * 5 * 4 and found.model == model
        for layer in found.layers:
            assert layer.cycles == sum(n for name, n in layer.counters.items() if name != "total")
            assert min(layer.counters.values()) >= 0
    # What counts is how many inputs are reduced, not how they are shared out.
    assert estimate_by("scalesim-os", network, array(2, 4, 2)).cycles == sum(expected["scalesim-os"])


@pytest.mark.parametrize(("name", "mmacs", "totals"), [
    ("resnet18", 1471.2, (6_359_601, 7_885_563, 6_123_136, 5_817_350)),
    ("resnet50", 3479.5, (15_680_376, 18_216_922, 14_464_384, 13_754_772)),
    ("mobilenet", 565.5, (3_682_863, 3_799_529, 3_279_520, 3_112_162)),
    ("tiny_yolo", 1753.6, (8_583_116, 9_970_863, 7_995_200, 7_121_678)),
])
def test_known_totals(name, mmacs, totals):
    """16 x 16. SCALE-Sim itself says so of the first two columns, layer by layer."""
    network = load_topology(TOPOLOGIES / f"{name}.csv")
    found = [estimate_by(model, network, array(16, 16)) for model in MODELS]
    assert tuple(each.cycles for each in found) == totals
    assert {each.macs for each in found} == {sum(map(network.macs, network.layers))}
    assert round(found[0].macs / 1e6, 1) == mmacs


def test_square_arrays_only():
    with pytest.raises(ConfigError, match="Gemmini's arrays are square, not 8 x 4"):
        estimate_by("gemmini", table("a, 5, 5, 3, 3, 2, 6, 1,"), array(4, 4, 2))


def test_groups_are_products_of_their_own():
    whole, part = table("a, 5, 5, 3, 3, 8, 6, 1,"), table("a, 5, 5, 3, 3, 4, 3, 1,")
    grouped = replace(whole, nodes=(replace(whole.layers[0], groups=2),))
    for model in MODELS:
        assert (estimate_by(model, grouped, array(4, 4)).cycles
                == 2 * estimate_by(model, part, array(4, 4)).cycles)


def test_a_network_without_convolutions_takes_no_time():
    whole = table("a, 5, 5, 3, 3, 6, 6, 1,")
    pooled = replace(whole, nodes=(replace(whole.layers[0], kind="max"),))
    found = estimate_by("overlapped", pooled, array(4, 4))
    assert (found.cycles, found.utilisation) == (0, 0)


def test_the_command_line_knows_the_models():
    assert [model.value for model in ModelName] == ["nomul", *MODELS]


# Report ------------------------------------------------------------------------------------------------------------

COLUMNS = "LayerID, Total Cycles, Stall Cycles, Overall Util %, Mapping Efficiency %, Compute Util %,"


def rows(report: str) -> list[list[float]]:
    first, *lines = report.splitlines()
    assert first == COLUMNS and all(line.endswith(",") for line in lines)
    return [[float(cell) for cell in line[:-1].split(", ")] for line in lines]


def test_the_report_is_scalesims():
    """The figures that its own test expects of AlexNet's first layer, 32 x 32, weight-stationary."""
    network = table("Conv1, 224, 224, 11, 11, 3, 96, 4,")
    (row,) = rows(report_csv(estimate_by("scalesim-ws", network, array(32, 32))))
    assert row == pytest.approx([0, 112283, 0, 91.68309650614964, 94.53125, 90.78000992063485], rel=1e-14)


def test_the_report_of_an_exact_estimate():
    network = load_topology(TOPOLOGIES / "resnet18.csv")
    found = estimate_network(network, array(16, 16), fit=False)
    report = rows(report_csv(found))
    assert [row[0] for row in report] == list(range(21))
    assert [row[1] for row in report] == [layer.cycles for layer in found.layers]
    *_, (_, cycles, stall, overall, mapping, compute) = report
    assert stall == found.layers[-1].counters["weight"] > 0
    macs = 512 * 1000
    assert overall == pytest.approx(100 * macs / (256 * cycles))
    assert compute == pytest.approx(100 * macs / (256 * (cycles - stall)))
    assert mapping == pytest.approx(100 * 1000 / 1008)
