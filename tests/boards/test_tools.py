"""Tools: found, adapted, and their mistakes told."""

import zlib

import pytest

from nomul_boards import tools
from nomul_boards.errors import BuildError
from nomul_boards.tools import add_dfu_suffix, find_tool, himbaechel_options, require, run_tool


def test_options_of_gowins_place_and_route():
    assert himbaechel_options(["--log", "top.tim", "--family", "GW1N-9C", "--json", "a", "--cst", "top.cst"]) == [
        "--log", "top.tim", "--vopt", "family=GW1N-9C", "--json", "a", "--vopt", "cst=top.cst"]


def test_dfu_suffix(tmp_path):
    path = tmp_path / "top.bit"
    path.write_bytes(b"bits")
    add_dfu_suffix(path, 0x1209, 0x5AF0)
    content = path.read_bytes()
    assert content[:4] == b"bits" and len(content) == 20
    # From the end: CRC, length, signature, version of the suffix, vendor, product, version of the device.
    assert content[-5] == 16 and content[-8:-5] == b"UFD" and content[-10:-8] == b"\x00\x01"
    assert content[-12:-10] == b"\x09\x12" and content[-14:-12] == b"\xf0\x5a" and content[-16:-14] == b"\xff\xff"
    assert int.from_bytes(content[-4:], "little") == zlib.crc32(content[:-4]) ^ 0xFFFFFFFF


def test_missing_tool(monkeypatch):
    monkeypatch.setattr(tools.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    with pytest.raises(BuildError, match=r"^this needs ecppack, .* not installed: pip install 'nomul\[boards\]'$"):
        require(["ecppack"])
    monkeypatch.setattr(tools.shutil, "which", lambda name: f"/opt/{name}")
    assert find_tool("ecppack") == ["/opt/ecppack"]


def test_a_tools_own_words(tmp_path):
    with pytest.raises(BuildError, match=r"^gowin_pack: .*nothing.json"):
        run_tool("gowin_pack", ["-d", "GW1N-9C", "nothing.json"], tmp_path)
