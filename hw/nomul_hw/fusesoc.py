"""The description by which FuseSoC, and with it Edalize's tools, builds a generated accelerator: a core file, CAPI2."""

import json
from collections.abc import Sequence

__all__ = ["core_file"]


def core_file(name: str, top: str, verilog: str, tables: Sequence[str], *, version: str, description: str) -> str:
    """Write a core file.

    Parameters
    ----------
    name : str
        Of the core, the third part of its name of four.
    top : str
        Top module.
    verilog : str
        The file that it is in, beside the core file.
    tables : sequence of str
        Files that it reads memories from; a tool finds them where it runs.
    version, description : str
        Of the core.
    """
    # JSON's strings are YAML's, too.
    files = [f"      - {json.dumps(verilog)}: {{file_type: verilogSource-2005}}\n"]
    files += [f"      - {json.dumps(table)}: {{file_type: user, copyto: {json.dumps(table)}}}\n" for table in tables]
    return (
        "CAPI=2:\n"
        f"name: {json.dumps(f'nomul:accelerator:{name}:{version}')}\n"
        f"description: {json.dumps(description)}\n"
        "filesets:\n"
        "  rtl:\n"
        "    files:\n"
        f"{''.join(files)}"
        "targets:\n"
        "  default: &default\n"
        "    filesets: [rtl]\n"
        f"    toplevel: {json.dumps(top)}\n"
        "  lint:\n"
        "    <<: *default\n"
        "    flow: lint\n"
        "    flow_options: {tool: verilator}\n"
    )
