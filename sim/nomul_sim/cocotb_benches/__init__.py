"""cocotb benches: test code that runs inside a Verilog simulator, beside the design.

``array`` and ``accelerator`` are the benches; :mod:`.runner` starts them on Icarus Verilog or on Verilator. They see
the generated Verilog as any other tool does, with unknown values in all that has not been written (on Icarus), and
drive its ports cycle by cycle. For whole networks they are far too slow: that is what
:mod:`nomul_sim.verilated` is for.
"""
