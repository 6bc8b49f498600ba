"""AXI: signatures, ports with the names that tools look for, and a slave that reaches registers.

Amaranth would name the ports of an interface ``s_axi__awaddr``. Vivado and cocotbext-axi find interfaces by the names
of their ports, ``s_axi_awaddr``; so a top has those as members (:func:`ports`), and :func:`attach` puts an interface
behind them. Its clock is ``aclk``, its reset ``aresetn``, low when active, synchronous.
"""

from amaranth.hdl import ClockDomain, ClockSignal, Module, Mux, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..descriptor import HOST_BITS
from .bank import RegisterPort
from .registers import ADDRESS_BITS

__all__ = ["DECODE_ERROR", "Axi", "AxiLite", "AxiLiteSlave", "AxiStream", "OKAY", "SLAVE_ERROR", "attach",
           "attach_stream", "clock_ports", "ports", "use_clock"]

#: Answers to reads and writes.
OKAY, SLAVE_ERROR, DECODE_ERROR = 0, 2, 3


class AxiLite(wiring.Signature):
    """AXI4-Lite, seen from the master."""

    def __init__(self, address_bits: int = ADDRESS_BITS, data_bits: int = HOST_BITS):
        super().__init__({
            "awaddr": Out(address_bits), "awprot": Out(3), "awvalid": Out(1), "awready": In(1),
            "wdata": Out(data_bits), "wstrb": Out(data_bits // 8), "wvalid": Out(1), "wready": In(1),
            "bresp": In(2), "bvalid": In(1), "bready": Out(1),
            "araddr": Out(address_bits), "arprot": Out(3), "arvalid": Out(1), "arready": In(1),
            "rdata": In(data_bits), "rresp": In(2), "rvalid": In(1), "rready": Out(1),
        })


class Axi(wiring.Signature):
    """AXI4, seen from the master, without the signals that nobody needs here (region, user)."""

    def __init__(self, address_bits: int, data_bits: int, id_bits: int = 1):
        def address(prefix):
            return {
                f"{prefix}id": Out(id_bits), f"{prefix}addr": Out(address_bits), f"{prefix}len": Out(8),
                f"{prefix}size": Out(3), f"{prefix}burst": Out(2), f"{prefix}lock": Out(1), f"{prefix}cache": Out(4),
                f"{prefix}prot": Out(3), f"{prefix}qos": Out(4), f"{prefix}valid": Out(1), f"{prefix}ready": In(1),
            }
        super().__init__({
            **address("aw"),
            "wdata": Out(data_bits), "wstrb": Out(data_bits // 8), "wlast": Out(1), "wvalid": Out(1), "wready": In(1),
            "bid": In(id_bits), "bresp": In(2), "bvalid": In(1), "bready": Out(1),
            **address("ar"),
            "rid": In(id_bits), "rdata": In(data_bits), "rresp": In(2), "rlast": In(1), "rvalid": In(1),
            "rready": Out(1),
        })


class AxiStream(wiring.Signature):
    """AXI4-Stream, seen from the source."""

    def __init__(self, data_bits: int, *, last: bool = False):
        super().__init__({
            "tdata": Out(data_bits), "tvalid": Out(1), "tready": In(1), **({"tlast": Out(1)} if last else {}),
        })


def ports(prefix: str, signature: wiring.Signature) -> dict[str, wiring.Member]:
    """Members of a top for an interface: each of the signature's, with its name behind the prefix."""
    return {f"{prefix}_{name}": member for name, member in signature.members.items()}


def attach(m: Module, top: wiring.Component, prefix: str, interface) -> None:
    """Connect the ports of a top to an interface within it, which has the same members."""
    for name in interface.signature.members:
        port = getattr(top, f"{prefix}_{name}")
        if top.signature.members[f"{prefix}_{name}"].flow is In:
            m.d.comb += getattr(interface, name).eq(port)
        else:
            m.d.comb += port.eq(getattr(interface, name))


def attach_stream(m: Module, top: wiring.Component, prefix: str, words) -> None:
    """Connect the ports of an AXI4-Stream to a stream within the top."""
    valid, ready, data = (getattr(top, f"{prefix}_t{name}") for name in ("valid", "ready", "data"))
    if top.signature.members[f"{prefix}_tdata"].flow is In:
        m.d.comb += [words.payload.eq(data), words.valid.eq(valid), ready.eq(words.ready)]
    else:
        m.d.comb += [data.eq(words.payload), valid.eq(words.valid), words.ready.eq(ready)]


def clock_ports() -> dict[str, wiring.Member]:
    """Members of a top for clock and reset."""
    return {"aclk": In(1), "aresetn": In(1)}


def use_clock(m: Module, top: wiring.Component, *interfaces: str) -> None:
    """Let all of a top run with its ``aclk`` and ``aresetn``, and tell Vivado that its interfaces and interrupt do.

    Parameters
    ----------
    interfaces : str
        Prefixes of the interfaces.
    """
    for port, kind, role, parameter in (
        (top.aclk, "clock", "CLK", f"ASSOCIATED_BUSIF {':'.join(interfaces)}, ASSOCIATED_RESET aresetn"),
        (top.aresetn, "reset", "RST", "POLARITY ACTIVE_LOW"),
        (top.interrupt, "interrupt", "INTERRUPT", "SENSITIVITY LEVEL_HIGH"),
    ):
        port.attrs["X_INTERFACE_INFO"] = f"xilinx.com:signal:{kind}:1.0 {port.name} {role}"
        port.attrs["X_INTERFACE_PARAMETER"] = parameter
    m.domains.sync = ClockDomain()
    m.d.comb += [ClockSignal().eq(top.aclk), ResetSignal().eq(~top.aresetn)]


class AxiLiteSlave(wiring.Component):
    """Reads and writes registers for an AXI4-Lite master.

    One access at a time; a write is answered two cycles after the later of its address and its data, a read two cycles
    after its address, if nothing else is under way. Accesses that the registers refuse are answered with ``SLVERR``.

    Members
    -------
    bus : In(AxiLite())
        The master.
    port : Out(RegisterPort)
        The registers.
    """

    bus: In(AxiLite())
    port: Out(RegisterPort)

    def elaborate(self, platform):
        m = Module()
        bus, port = self.bus, self.port
        held = {channel: Signal(name=f"{channel}_held") for channel in ("aw", "w", "ar")}
        address = {channel: Signal(ADDRESS_BITS - 2, name=f"{channel}_address") for channel in ("aw", "ar")}
        data, strobe = Signal.like(bus.wdata), Signal.like(bus.wstrb)
        for channel, kept in (("aw", [address["aw"].eq(bus.awaddr[2:])]), ("ar", [address["ar"].eq(bus.araddr[2:])]),
                              ("w", [data.eq(bus.wdata), strobe.eq(bus.wstrb)])):
            ready = getattr(bus, f"{channel}ready")
            m.d.comb += ready.eq(~held[channel])
            with m.If(getattr(bus, f"{channel}valid") & ready):
                m.d.sync += [held[channel].eq(1), *kept]

        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        write = Signal()
        response = Mux(port.error, SLAVE_ERROR, OKAY)
        m.d.comb += [
            write.eq(held["aw"] & held["w"] & ~bus.bvalid),
            port.address.eq(Mux(write, address["aw"], address["ar"])),
            port.write.eq(write),
            port.strobe.eq(strobe),
            port.data.eq(data),
        ]
        with m.If(write):
            m.d.sync += [held["aw"].eq(0), held["w"].eq(0), bus.bvalid.eq(1), bus.bresp.eq(response)]
        with m.Elif(held["ar"] & ~bus.rvalid):
            m.d.sync += [held["ar"].eq(0), bus.rvalid.eq(1), bus.rresp.eq(response), bus.rdata.eq(port.read)]
        return m
